"""The finding reader: a small network that says which findings a phantom picture shows; it judges generated pictures.

It is trained on phantoms drawn from a seed and patients of its own, never on pictures that a model is trained or tested
with. Its penultimate layer, FEATURES numbers a picture, also stands in for Inception in `FID (phantom features)`: a
phantom is no photograph, and Inception's weights are not drawn by us.

Architecture: pixels and two coordinate channels -> residual CNN -> coordinates again, EVIDENCE channels at S / 8 ->
maximum over either half and over all of the picture, mean -> FEATURES -> one 3-state head a label list and one head for
the domain. Halves and coordinates keep left and right apart, the maximum finds a small finding wherever it lies. While
it is trained, the evidence must also tell in which cells each finding lies: phantoms come with masks.
Shapes: B pictures, S picture side, L labels of a domain, D domains. Sources: residual blocks as in He et al. 2016
(arXiv:1512.03385), coordinate channels as in Liu et al. 2018 (CoordConv, arXiv:1807.03247).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medim.data.domain import STATES, Domain, labels_of
from medim.metrics.findings import macro, precision_recall_f1, soft_counts
from medim.training import FitResult, OnLog, Optimisation, fit, step_seed

FEATURES = 64  # width of the penultimate layer; small on purpose: FID needs more pictures than features
EVIDENCE = 256  # channels that are pooled over the picture
CELL = 8  # pixels a side of a cell of the evidence map: the strides
PLACE_WEIGHT = 10.0  # of the loss that asks where findings lie; it only teaches the trunk sooner
READER_PATIENT = 30_000_000  # first patient of its training; models' patients lie below
HELD_OUT_PATIENT = 40_000_000  # first patient of its validation
UNLABELLED = -100  # padding of `ReaderBatch.states`, ignored by cross entropy


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


@dataclass(frozen=True)
class Drawn:
    """Phantoms in memory: images (N, S, S, 3) uint8, domain (N,) int64, states (N, L max) int64, padded.

    `places` (N, L max, S / CELL, S / CELL) bool: cells that a drawn finding's mask covers at least half
    as much as the cell it covers most, so that thin and small findings have cells too.
    """

    images: Tensor
    domain: Tensor
    states: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor) -> Drawn:
        """The pictures of an index (M,)."""
        return Drawn(self.images[index], self.domain[index], self.states[index], self.places[index])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip, (B, C, H, W) -> (B, width, H / stride, W / stride).

    BatchNorm, not GroupNorm: a norm within one picture would wipe out the contrast that tells faint from clear.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        same = channels == width and stride == 1
        self.skip: nn.Module = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        hidden = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.skip(x) + self.norms[1](self.second(hidden)))


def with_place(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C + 2, H, W): row and column of each place, from -1 to 1."""
    rows, columns = (torch.linspace(-1, 1, length, device=x.device, dtype=x.dtype) for length in x.shape[2:])
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([x, place.expand(len(x), -1, -1, -1)], 1)


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
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 2 * width, 1),
            ResidualBlock(2 * width, 4 * width, 2),
            ResidualBlock(4 * width, 4 * width, 1),
        )
        self.evidence = nn.Conv2d(4 * width + 2, EVIDENCE, 1)
        self.project = nn.Linear(4 * EVIDENCE, FEATURES)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, len(labels) * len(STATES)) for labels in self.label_lists)
        self.place_heads = nn.ModuleList(nn.Conv2d(EVIDENCE, len(labels), 1) for labels in self.label_lists)
        self.domain_head = nn.Linear(FEATURES, len(self.names))
        self.to(memory_format=torch.channels_last)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, 3, size, size) float32 in [-1, 1]."""
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        if x.shape[-1] != self.config.size or x.shape[-2] != self.config.size:
            x = F.interpolate(x, (self.config.size,) * 2, mode="bilinear", antialias=True)
        return x

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] -> (B, FEATURES)."""
        return self.pool(self.evidence_map(x))

    def evidence_map(self, x: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] -> (B, EVIDENCE, size / CELL, size / CELL), non-negative."""
        x = with_place(F.pixel_unshuffle(x, 2)).contiguous(memory_format=torch.channels_last)
        return F.relu(self.evidence(with_place(self.blocks(self.stem(x)))))

    def pool(self, evidence: Tensor) -> Tensor:
        """(B, EVIDENCE, H, W) -> (B, FEATURES), non-negative."""
        halves = [half.amax((2, 3)) for half in evidence.tensor_split(2, dim=3)]
        pooled = torch.cat([*halves, torch.maximum(*halves), evidence.mean((2, 3))], 1)
        return F.relu(self.project(pooled))

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

    def state_logits(self, features: Tensor, domain: str) -> Tensor:
        """(B, FEATURES) -> (B, L, 3) logits of absent, uncertain, present."""
        logits: Tensor = self.heads[self.head_of(domain)](features)
        return logits.unflatten(1, (-1, len(STATES)))


def blur_and_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mild changes that move no finding and keep its contrast: blur, noise, brightness; (B, 3, S, S) in [-1, 1].

    They keep the reader from judging a decoder's smoothness instead of the finding. No flips: they would swap sides.
    """
    b = len(x)
    draw = torch.rand(3, b, 1, 1, 1, generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, (2 * draw[0] - 1).clamp_min(0) * 0.6)  # every second picture stays sharp
    return x + (draw[1] - 0.5) * 0.06 + noise * (2 * draw[2] - 1).clamp_min(0) * 0.05


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
        evidence = reader.evidence_map(blur_and_noise(reader.prepare(batch.images.to(device)), generator))
        features = reader.pool(evidence)
        state, place, count = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for number, name in enumerate(reader.names):
            mine = batch.domain == number
            if not mine.any():
                continue
            logits = reader.state_logits(features[mine.to(device)], name).float()
            states = batch.states[mine, : logits.shape[1]].to(device)
            cells = reader.place_heads[reader.head_of(name)](evidence[mine.to(device)]).float()
            truth = batch.places[mine, : logits.shape[1]].to(device).float()
            state = state + F.cross_entropy(logits.flatten(0, 1), states.flatten(), reduction="sum")
            place = place + F.binary_cross_entropy_with_logits(cells, truth, reduction="sum") / truth[0, 0].numel()
            count += states.numel()
        domain = F.cross_entropy(reader.domain_head(features).float(), batch.domain.to(device))
        logs = {"state_loss": state / count, "place_loss": place / count, "domain_loss": domain}
        return (state + PLACE_WEIGHT * place) / count + 0.1 * domain, logs


def draw_phantoms(domains: Mapping[str, Domain], seed: int, patient: int, count: int, size: int) -> Drawn:
    """Draw `count` pictures a domain at `size` pixels, patients counted from `patient`."""
    width = max(len(labels_of(domain.findings)) for domain in domains.values())
    total, cells = count * len(domains), size // CELL
    states = np.full((total, width), UNLABELLED, np.int64)
    images = np.empty((total, size, size, 3), np.uint8)
    places = np.zeros((total, width, cells, cells), bool)
    for number, domain in enumerate(domains.values()):
        labels = labels_of(domain.findings)
        for row, scene in zip(
            range(number * count, (number + 1) * count), _scenes(domain, seed, patient), strict=False
        ):
            drawn, truth = domain.render(scene, size), domain.truth(scene)
            images[row] = drawn.image
            states[row, : len(labels)] = [STATES.index(truth.get(label, "absent")) for label in labels]
            for label, mask in drawn.masks.items():
                cover = mask[: cells * CELL, : cells * CELL].reshape(cells, CELL, cells, CELL).mean((1, 3))
                places[row, labels.index(label)] = (cover > 0) & (cover >= cover.max() / 2)
    owner = torch.arange(len(domains)).repeat_interleave(count)
    return Drawn(torch.from_numpy(images), owner, torch.from_numpy(states), torch.from_numpy(places))


def _scenes(domain: Domain, seed: int, patient: int) -> Iterator[Mapping[str, Any]]:
    while True:
        yield from domain.studies(seed, patient)
        patient += 1


def epochs(drawn: Drawn, batch_size: int, seed: int, accumulate: int) -> Callable[[int, int], Drawn]:
    """Batches as `fit` wants them: each epoch is a new permutation; a pure function of (step, part)."""
    per_part = max(1, batch_size // accumulate)
    if len(drawn) < per_part:
        raise ValueError(
            f"{len(drawn)} phantoms are fewer than a batch of {per_part}: raise pictures or lower batch_size"
        )
    per_epoch = len(drawn) // per_part

    def batch(step: int, part: int) -> Drawn:
        epoch, place = divmod(step * accumulate + part, per_epoch)
        order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(step_seed(seed, epoch)))
        return drawn.rows(order[place * per_part : (place + 1) * per_part])

    return batch


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
    features = _encode(reader, unseen.images)
    scores: dict[str, float] = {}
    for number, name in enumerate(reader.names):
        mine = unseen.domain == number
        predicted = reader.state_logits(features[mine], name).argmax(-1).cpu().numpy() / 2
        true = unseen.states[mine, : predicted.shape[1]].numpy() / 2
        sums = soft_counts(true.astype(np.float64), predicted).sum(0, keepdims=True)
        scores[f"{name}/f1"] = float(macro(precision_recall_f1(sums)[2])[0])
    guess = reader.domain_head(features).argmax(-1).cpu()
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


@torch.no_grad()
def _encode(reader: FindingReader, images: Tensor, batch_size: int = 128) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, FEATURES) float32 on the reader's device, in eval mode and full precision."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"pictures must be (N, S, S, 3) uint8, got {tuple(images.shape)} {images.dtype}")
    device, was_training = next(reader.parameters()).device, reader.training
    reader.eval()
    with torch.autocast(device.type, enabled=False):
        parts = [reader.features(reader.prepare(part.to(device))) for part in images.split(batch_size) if len(part)]
    reader.train(was_training)
    return torch.cat(parts) if parts else torch.zeros(0, FEATURES, device=device)


def features(reader: FindingReader, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, S, S, 3) uint8 -> (N, FEATURES) float32, non-negative: the features of `FID (phantom features)`."""
    encoded: NDArray[np.float32] = _encode(reader, torch.from_numpy(np.ascontiguousarray(images))).cpu().numpy()
    return encoded


@torch.no_grad()
def state_probabilities(reader: FindingReader, images: NDArray[np.uint8], domain: str) -> NDArray[np.float32]:
    """(N, L, 3) probabilities of absent, uncertain, present for the labels of `reader.config.domains[domain]`."""
    encoded = _encode(reader, torch.from_numpy(np.ascontiguousarray(images)))
    states: NDArray[np.float32] = reader.state_logits(encoded, domain).softmax(-1).cpu().numpy()
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
    logits = reader.domain_head(_encode(reader, torch.from_numpy(np.ascontiguousarray(images))))
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
    encoded = _encode(reader, torch.from_numpy(np.ascontiguousarray(images)))
    domain_log = reader.domain_head(encoded).log_softmax(-1)
    parts = []
    for number, name in enumerate(reader.names):
        states = reader.state_logits(encoded, name).double().softmax(-1)  # (N, L, 3)
        nothing = states[..., 0].prod(1, keepdim=True)
        shares = torch.cat([nothing, states[..., 2] + states[..., 1] / 2], 1).clamp_min(1e-12)
        parts.append(domain_log[:, number, None] + (shares / shares.sum(1, keepdim=True)).log())
    joined: NDArray[np.float32] = torch.cat(parts, 1).float().cpu().numpy()
    return joined
