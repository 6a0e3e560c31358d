"""The finding reader: a small network that says which findings a phantom picture shows; it judges generated pictures.

It is trained on phantoms drawn from a seed and patients of its own, never on pictures that a model is trained or tested
with. Its penultimate layer, FEATURES numbers a picture, also stands in for Inception in `FID (phantom features)`: a
phantom is no photograph, and Inception's weights are not drawn by us.

Architecture: pixels and two coordinate channels -> residual CNN -> coordinates again, EVIDENCE channels at S / 8. Then
two ways: pooled (maximum over either half and over all, mean) -> FEATURES -> a head; and for each finding how much each
cell looks like it and like a clear one -> maximum over either half and over all -> a small head a label. The states are
read from the sum of both; a third head tells the domain. Halves and coordinates keep left and right apart, the maximum
finds a small finding wherever it lies. Phantoms come with masks, so the cells are taught directly.
Shapes: B pictures, S picture side, L labels of a domain, D domains. Blocks and their sources: medim.residual_cnn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medim.data.domain import STATES, Domain, labels_of, without_side
from medim.metrics.findings import macro, precision_recall_f1, soft_counts
from medim.metrics.reader_phantoms import Drawn, draw_phantoms, epochs, findings_of
from medim.residual_cnn import ResidualBlock, side_maxima, with_place
from medim.training import FitResult, OnLog, Optimisation, fit

FEATURES = 64  # width of the penultimate layer; small on purpose: FID needs more pictures than features
EVIDENCE = 256  # channels that are pooled over the picture
PLACE_WEIGHT = 8.0  # of the loss that asks where findings lie; it only teaches the trunk sooner
READER_PATIENT = 30_000_000  # first patient of its training; models' patients lie below
HELD_OUT_PATIENT = 40_000_000  # first patient of its validation


@dataclass(frozen=True)
class ReaderConfig:
    """What a reader's weights depend on; stands in its config.json."""

    domains: Mapping[str, tuple[str, ...]]  # domain -> its labels, in order
    width: int  # channels after the first convolution
    size: int  # picture side it works at; other sizes are resized to it


@dataclass(frozen=True)
class ReaderSettings:
    """How a reader is made; the values stand in params.yaml."""

    pictures: int  # training pictures a domain
    held_out: int  # validation pictures a domain
    size: int  # picture side in pixels
    width: int  # channels after the first convolution


class Reading(NamedTuple):
    """What the trunk says of B pictures, h an index of `FindingReader.label_lists`.

    `features` (B, FEATURES), non-negative. `cells[h]` (B, 2 F, S / CELL, S / CELL): logits of 'uncertain or present' of
    each finding, then of 'present'. `peaks[h]` (B, F, 6): their maxima over left half, right half and all.
    """

    features: Tensor
    cells: list[Tensor]
    peaks: list[Tensor]


class PeakHead(nn.Module):
    """(B, F, 6) peaks -> (B, L, 3) state logits, each label from its own finding only."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        super().__init__()
        findings = findings_of(labels)
        self.rows = [findings.index(without_side(label)) for label in labels]
        self.weight = nn.Parameter(torch.zeros(len(labels), 6, len(STATES)))
        self.bias = nn.Parameter(torch.zeros(len(labels), len(STATES)))

    def forward(self, peaks: Tensor) -> Tensor:
        """See the class."""
        return torch.einsum("blp,lps->bls", peaks[:, self.rows], self.weight) + self.bias


class FindingReader(nn.Module):
    """Pictures -> features, state logits and domain logits. Domains with the same labels share a head."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.names = tuple(config.domains)
        self.label_lists = tuple(dict.fromkeys(tuple(labels) for labels in config.domains.values()))
        width = config.width
        self.stem = nn.Sequential(nn.Conv2d(14, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 2 * width, 1),
            ResidualBlock(2 * width, 4 * width, 2),
            ResidualBlock(4 * width, 4 * width, 1),
        )
        self.evidence = nn.Conv2d(4 * width + 2, EVIDENCE, 1)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, len(labels) * len(STATES)) for labels in self.label_lists)
        counts = [2 * len(findings_of(labels)) for labels in self.label_lists]
        self.place_heads = nn.ModuleList(nn.Conv2d(EVIDENCE, count, 1) for count in counts)
        self.peak_heads = nn.ModuleList(PeakHead(labels) for labels in self.label_lists)
        self.project = nn.Linear(4 * EVIDENCE, FEATURES)
        self.domain_head = nn.Linear(FEATURES, len(self.names))
        self.to(memory_format=torch.channels_last)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, 3, size, size) float32 in [-1, 1]."""
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        if x.shape[-1] != self.config.size or x.shape[-2] != self.config.size:
            x = F.interpolate(x, (self.config.size,) * 2, mode="bilinear", antialias=True)
        return x

    def forward(self, x: Tensor) -> Reading:
        """(B, 3, size, size) in [-1, 1] -> what the trunk says."""
        x = with_place(F.pixel_unshuffle(x, 2)).contiguous(memory_format=torch.channels_last)
        evidence = F.relu(self.evidence(with_place(self.blocks(self.stem(x)))))
        pooled = torch.cat([*side_maxima(evidence), evidence.mean((2, 3))], 1)
        cells = [head(evidence).float() for head in self.place_heads]
        peaks = [torch.cat([m.unflatten(1, (2, -1)).mT for m in side_maxima(cell)], 2) for cell in cells]
        return Reading(F.relu(self.project(pooled)).float(), cells, peaks)

    def head_of(self, domain: str) -> int:
        """Index of the head that reads a domain.

        Raises:
            KeyError: the reader was not trained for this domain.
        """
        if domain not in self.config.domains:
            raise KeyError(
                f"the finding reader knows {', '.join(self.names)}, not {domain!r}: add it to "
                f"params.yaml:train_finding_reader.domains and run `dvc repro train_finding_reader`"
            )
        return self.label_lists.index(tuple(self.config.domains[domain]))

    def feature_logits(self, reading: Reading, domain: str) -> Tensor:
        """(B, L, 3) state logits from the features alone: what keeps the features about findings."""
        logits: Tensor = self.heads[self.head_of(domain)](reading.features)
        return logits.float().unflatten(1, (-1, len(STATES)))

    def state_logits(self, reading: Reading, domain: str) -> Tensor:
        """(B, L, 3) logits of absent, uncertain, present."""
        head = self.head_of(domain)
        peaks: Tensor = self.peak_heads[head](reading.peaks[head])
        return self.feature_logits(reading, domain) + peaks


def blur_and_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mild changes that move no finding and keep its contrast: blur, noise, brightness; (B, 3, S, S) in [-1, 1].

    They keep the reader from judging a decoder's smoothness instead of the finding. No flips: they would swap sides.
    """
    b = len(x)
    draw = torch.rand(3, b, 1, 1, 1, generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, (2 * draw[0] - 1).clamp_min(0) * 0.3)  # every second picture stays sharp
    return x + (draw[1] - 0.5) * 0.06 + noise * (2 * draw[2] - 1).clamp_min(0) * 0.03


class ReaderTrainee:
    """What `fit` trains: cross entropy of the states of each label and of the domain."""

    def __init__(self, reader: FindingReader) -> None:
        self.reader = reader

    def players(self) -> dict[str, nn.Module]:
        """The reader alone."""
        return {"reader": self.reader}

    def loss(
        self, player: str, batch: Drawn, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats a label plus nats of the domain."""
        reader, device = self.reader, next(self.reader.parameters()).device
        reading = reader(blur_and_noise(reader.prepare(batch.images.to(device)), generator))
        total, count = torch.zeros(3, device=device), 0
        for number, name in enumerate(reader.names):
            mine = (batch.domain == number).nonzero()[:, 0]
            if not len(mine):
                continue
            part = rows_of(reading, mine.to(device))
            states = batch.states[mine, : len(reader.config.domains[name])].to(device)
            cells = part.cells[reader.head_of(name)]
            drawn = batch.places[mine, : cells.shape[1] // 2].to(device)
            losses = [
                F.cross_entropy(reader.state_logits(part, name).flatten(0, 1), states.flatten()),
                F.cross_entropy(reader.feature_logits(part, name).flatten(0, 1), states.flatten()),
                F.binary_cross_entropy_with_logits(cells, torch.cat([drawn >= 1, drawn >= 2], 1).float()),
            ]
            total = total + torch.stack(losses) * states.numel()
            count += states.numel()
        state, feature, place = total / count
        domain = F.cross_entropy(reader.domain_head(reading.features).float(), batch.domain.to(device))
        logs = {"state_loss": state, "feature_loss": feature, "place_loss": place, "domain_loss": domain}
        return state + 0.5 * feature + PLACE_WEIGHT * place + 0.1 * domain, logs


def train_finding_reader(
    domains: Mapping[str, Domain], settings: ReaderSettings, *, optim: Optimisation, seed: int, work: Path, out: Path,
    on_log: OnLog, device: torch.device,
) -> FitResult:  # fmt: skip
    """Train a reader and write `out`/config.json and `out`/model.safetensors.

    Args:
        domains: name -> the domain that draws its pictures.
        settings: its size and data; the held-out pictures give `val/<domain>/f1` (macro soft F1 with side).
        optim: how it is trained.
        seed: of the drawing, the weights and the order of batches.
        work: folder of the checkpoints.
        out: folder of the result.
        on_log: gets (step, scalars).
        device: where it is trained.
    """
    torch.manual_seed(seed)
    labels = {name: labels_of(domain.findings) for name, domain in domains.items()}
    reader = FindingReader(ReaderConfig(labels, settings.width, settings.size)).to(device)
    drawn = draw_phantoms(domains, seed, READER_PATIENT, settings.pictures, settings.size)
    unseen = draw_phantoms(domains, seed, HELD_OUT_PATIENT, settings.held_out, settings.size)
    batches = epochs(drawn, optim.batch_size, seed, optim.accumulate)
    result = fit(
        ReaderTrainee(reader), batches, optim, seed=seed, work=work, name="train_finding_reader", on_log=on_log,
        validate=lambda module, _: held_out_scores(module, unseen),
    )  # fmt: skip
    save_finding_reader(result.averaged, out)
    return result


def held_out_scores(reader: nn.Module, unseen: Drawn) -> dict[str, float]:
    """Macro soft F1 with side and the share of pictures whose domain is told, on drawn phantoms."""
    assert isinstance(reader, FindingReader)
    reading = _encode(reader, unseen.images)
    scores: dict[str, float] = {}
    for number, name in enumerate(reader.names):
        mine = (unseen.domain == number).nonzero()[:, 0]
        part = rows_of(reading, mine.to(reading.features.device))
        predicted = reader.state_logits(part, name).argmax(-1).cpu().numpy() / 2
        true = unseen.states[mine, : predicted.shape[1]].numpy() / 2
        sums = soft_counts(true.astype(np.float64), predicted).sum(0, keepdims=True)
        scores[f"{name}/f1"] = float(macro(precision_recall_f1(sums)[2])[0])
    guess = reader.domain_head(reading.features).argmax(-1).cpu()
    return scores | {"domain_accuracy": float((guess == unseen.domain).float().mean())}


def save_finding_reader(reader: nn.Module, out: Path) -> None:
    """Write config.json and model.safetensors."""
    assert isinstance(reader, FindingReader)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(reader.config), indent=1) + "\n")
    save_file({name: value.contiguous() for name, value in reader.state_dict().items()}, out / "model.safetensors")


def load_finding_reader(folder: Path) -> FindingReader:
    """The reader of a folder, on the CPU, in eval mode.

    Raises:
        FileNotFoundError: names the file and the command that makes it.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: run `dvc repro train_finding_reader`")
    config = json.loads((folder / "config.json").read_text())
    config["domains"] = {name: tuple(labels) for name, labels in config["domains"].items()}
    reader = FindingReader(ReaderConfig(**config))
    reader.load_state_dict(load_file(folder / "model.safetensors"))
    return reader.eval()


def rows_of(reading: Reading, index: Tensor) -> Reading:
    """The pictures of an index (M,)."""
    cells, peaks = ([value[index] for value in values] for values in (reading.cells, reading.peaks))
    return Reading(reading.features[index], cells, peaks)


@torch.no_grad()
def _encode(reader: FindingReader, images: Tensor, batch_size: int = 128) -> Reading:
    """(N, S, S, 3) uint8 -> what the reader says, without the cells, on its device, in eval mode and full precision."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"pictures must be (N, S, S, 3) uint8, got {tuple(images.shape)} {images.dtype}")
    device, was_training, size = next(reader.parameters()).device, reader.training, reader.config.size
    reader.eval()
    with torch.autocast(device.type, enabled=False):
        parts = [reader(reader.prepare(part.to(device))) for part in images.split(batch_size) if len(part)]
        parts = parts or [rows_of(reader(torch.zeros(1, 3, size, size, device=device)), torch.zeros(0).long())]
    reader.train(was_training)
    peaks = [torch.cat(rows) for rows in zip(*(part.peaks for part in parts), strict=True)]
    return Reading(torch.cat([part.features for part in parts]), [], peaks)


def _encode_array(reader: FindingReader, images: NDArray[np.uint8]) -> Reading:
    return _encode(reader, torch.tensor(images))


def features(reader: FindingReader, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, S, S, 3) uint8 -> (N, FEATURES) float32, non-negative: the features of `FID (phantom features)`."""
    encoded: NDArray[np.float32] = _encode_array(reader, images).features.cpu().numpy()
    return encoded


@torch.no_grad()
def state_probabilities(reader: FindingReader, images: NDArray[np.uint8], domain: str) -> NDArray[np.float32]:
    """(N, L, 3) probabilities of absent, uncertain, present for the labels of `reader.config.domains[domain]`."""
    reading = _encode_array(reader, images)
    states: NDArray[np.float32] = reader.state_logits(reading, domain).softmax(-1).cpu().numpy()
    return states


def read_pictures(reader: FindingReader, images: NDArray[np.uint8], domain: str) -> list[dict[str, str]]:
    """Findings that each picture shows: label -> 'uncertain' or 'present' (the likeliest state; absent ones left out).

    Raises:
        KeyError: the reader does not know the domain.
        ValueError: pictures are not (N, S, S, 3) uint8.
    """
    likeliest = state_probabilities(reader, images, domain).argmax(-1)
    labels = reader.config.domains[domain]
    return [{label: STATES[s] for label, s in zip(labels, row, strict=True) if s} for row in likeliest]


@torch.no_grad()
def domains_of(reader: FindingReader, images: NDArray[np.uint8], among: Sequence[str] | None = None) -> list[str]:
    """The likeliest domain of each picture; `among`: only these are considered (None: all that the reader knows)."""
    names = reader.names if among is None else tuple(among)
    for name in names:
        reader.head_of(name)
    logits = reader.domain_head(_encode_array(reader, images).features)
    columns = logits[:, [reader.names.index(name) for name in names]]
    return [names[int(i)] for i in columns.argmax(-1)]


@torch.no_grad()
def class_logits(reader: FindingReader, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, C) log-probabilities of the classes that `IS (phantom features)` counts.

    Classes: for each domain 'nothing found' and each of its labels, C = sum of (1 + L). A picture's probability of a
    domain is shared out over them in proportion to each label's expected value, P(present) + P(uncertain) / 2,
    and, for 'nothing found', to the probability that every label is absent. So IS lies in [1, C]: high where pictures
    show one finding each and all findings are shown equally often.
    """
    reading = _encode_array(reader, images)
    domain_log = reader.domain_head(reading.features).log_softmax(-1)
    parts = []
    for number, name in enumerate(reader.names):
        states = reader.state_logits(reading, name).double().softmax(-1)  # (N, L, 3)
        nothing = states[..., 0].prod(1, keepdim=True)
        shares = torch.cat([nothing, states[..., 2] + states[..., 1] / 2], 1).clamp_min(1e-12)
        parts.append(domain_log[:, number, None] + (shares / shares.sum(1, keepdim=True)).log())
    joined: NDArray[np.float32] = torch.cat(parts, 1).float().cpu().numpy()
    return joined
