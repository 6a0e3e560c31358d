"""Released checkpoints of R2Gen and R2GenCMN as folders that `load_system` reads, and ResNets as their `start`.

    python -m medim.baselines.published_r2gen r2gen --checkpoint model_iu_xray.pth --annotation annotation.json
        --threshold 3 --max-length 60 --out runs/<world>/models/r2gen
    python -m medim.baselines.published_r2gen resnet --weights resnet101-63fe2227.pth --out FOLDER

Their files (cuhksz-nlp/R2Gen and zhjohnchan/R2GenCMN, links in the READMEs) hold weights under "state_dict", but no
vocabulary and no sizes: the words come from the annotation.json that the checkpoint was trained on, with its
threshold (3 for IU X-Ray, 10 for MIMIC-CXR), the sizes from the publication (`R2GEN`, `R2GEN_CMN`). Published weights
know no prompts, so what they write is all report.

    visual_extractor.model.0, .1, .4 to .7        torchvision's conv1, bn1, layer1 to layer4
    encoder_decoder.model.encoder / decoder       layers; `sublayer.k.norm` is gamma, beta or a_2, b_2
    encoder_decoder.model.rm                      relational memory (R2Gen)
    encoder_decoder.cmn, .model.cmn               the shared memory twice, and `memory_matrix` (R2GenCMN)
    encoder_decoder.model.*_embed.*.pe            codes of positions, which are computed here
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medim.baselines.encoder_decoder_writer import EncoderDecoderWriter, Writing
from medim.baselines.r2gen_cmn_network import CMNNetwork, CMNSizes
from medim.baselines.r2gen_network import R2GenNetwork, R2GenSizes
from medim.baselines.report_decoder import DecoderSizes
from medim.baselines.report_words import UNKNOWN, ReportWords, r2gen_words
from medim.baselines.report_writer import save_writer
from medim.baselines.visual_extractor import ExtractorSettings, VisualExtractor, save_extractor


@dataclass(frozen=True)
class Published:
    """A publication's method, its sizes and its beams."""

    method: str  # file of medim/baselines
    extractor: ExtractorSettings
    network: R2GenSizes | CMNSizes
    beams: int


RESNET_101 = ExtractorSettings(64, (256, 512, 1024, 2048), (3, 4, 23, 3), "bottleneck", "imagenet")
DECODER = DecoderSizes(width=512, inner=512, heads=8, layers=3, dropout=0.1, feature_dropout=0.5)
R2GEN = Published("r2gen", RESNET_101, R2GenSizes(DECODER, slots=3, memory_heads=8), beams=3)
R2GEN_CMN = Published("r2gen_cmn", RESNET_101, CMNSizes(DECODER, slots=2048, top=32), beams=3)

SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
ATTENTION = {"0": "query", "1": "key", "2": "value", "3": "out"}
STACKED = r"memory\.attn\.linears\.([012])\."  # query, key and value that are one matrix here
COPIES = "model.cmn."
LEFT_OUT = re.compile(r"model\.(src|tgt)_embed\.\d+\.pe")

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

RESNET_NAMES: tuple[Rule, ...] = (  # torchvision -> transformers
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers.{found[2]}."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"\.conv(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.normalization."),
)
DECODER_NAMES: tuple[Rule, ...] = (
    (r"^att_embed\.0\.", "features."),
    (r"^logit\.", "logits."),
    (r"^memory_matrix$", "memory.slots"),
    (r"^cmn\.", "memory."),
    (r"^model\.tgt_embed\.0\.lut\.", "words."),
    (r"^model\.rm\.attn\.linears\.3\.", "memory.out."),
    (r"^model\.rm\.W\.", "memory.gate_of_input."),
    (r"^model\.rm\.U\.", "memory.gate_of_memory."),
    (r"^model\.rm\.", "memory."),
    (r"^model\.encoder\.", "encoder."),
    (r"^model\.decoder\.", ""),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"\.self_attn\.", ".own."),
    (r"\.src_attn\.", ".source."),
    (r"\.feed_forward\.w_1\.", ".inner.first."),
    (r"\.feed_forward\.w_2\.", ".inner.second."),
    (r"\.sublayer\.(\d)\.norm\.", r".norms.\1."),
    (r"\.mlp_(gamma|beta)\.", r".\1_change."),
    (r"\.a_2$", ".gamma"),
    (r"\.b_2$", ".beta"),
    (r"^(?!memory\.attn)(.*)\.linears\.(\d)\.", lambda found: f"{found[1]}.{ATTENTION[found[2]]}."),
)


def resnet_name(name: str) -> str:
    """Name of a weight in torchvision's ResNet -> its name in `transformers.ResNetModel`."""
    return _renamed(name, RESNET_NAMES)


def _renamed(name: str, rules: Sequence[Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the published names -> under those of `EncoderDecoderWriter`.

    Raises:
        ValueError: a name that is not of these networks, or two copies of the shared memory that differ.
    """
    out: dict[str, Tensor] = {}
    stacked: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "visual_extractor":
            number, _, inner = rest.removeprefix("model.").partition(".")
            if number not in SEQUENTIAL:
                raise ValueError(f"{name} is no weight of a published visual extractor")
            out[f"extractor.model.{resnet_name(f'{SEQUENTIAL[number]}.{inner}')}"] = value
        elif part != "encoder_decoder":
            raise ValueError(f"{name} is no weight of a published R2Gen or R2GenCMN")
        elif rest.startswith(COPIES):
            twin = state.get(f"encoder_decoder.cmn.{rest.removeprefix(COPIES)}")
            if twin is None or (twin is not value and not torch.equal(value, twin)):
                raise ValueError(f"{name} differs from its copy without 'model.': the checkpoint is damaged")
        elif not LEFT_OUT.fullmatch(rest):
            ours = _renamed(rest, DECODER_NAMES)
            found = re.match(STACKED, ours)
            if found:
                stacked.setdefault(ours[found.end() :], {})[int(found[1])] = value
            else:
                out[f"network.{ours}"] = value
    for kind, parts in stacked.items():
        out[f"network.memory.project.{kind}"] = torch.cat([parts[number] for number in sorted(parts)])
    return out


def load_published(writer: EncoderDecoderWriter, state: Mapping[str, Tensor]) -> None:
    """Set a writer's weights to published ones.

    Raises:
        ValueError: names are missing or unknown, or shapes differ (another vocabulary?).
    """
    found, own = published_state(state), writer.state_dict()
    missing = sorted(name for name in own.keys() - found.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(found.keys() - own.keys())
    if missing or unknown:
        raise ValueError(f"the checkpoint is of another network: missing {missing}, unknown {unknown}")
    shapes = {name: (tuple(value.shape), tuple(own[name].shape)) for name, value in found.items()}
    wrong = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    if wrong:
        raise ValueError(
            f"shapes (checkpoint, network) differ: {wrong}; where the words differ, name the annotation.json and the "
            f"threshold that the checkpoint was trained with"
        )
    writer.load_state_dict(found, strict=False)


def published_words(reports: Sequence[str], threshold: int) -> ReportWords:
    """The published vocabulary of training reports without prompts."""
    counts = Counter(word for report in reports for word in r2gen_words(report))
    return ReportWords(sorted({word for word, count in counts.items() if count >= threshold} | {UNKNOWN}), "r2gen")


def published_writer(published: Published, words: ReportWords, max_length: int) -> EncoderDecoderWriter:
    """An untrained writer of the published sizes; `max_length`: 60 for IU X-Ray, 100 for MIMIC-CXR."""

    def network(features: int, ids: int) -> R2GenNetwork | CMNNetwork:
        if isinstance(published.network, R2GenSizes):
            return R2GenNetwork(published.network, features, ids)
        return CMNNetwork(published.network, features, ids)

    return EncoderDecoderWriter(published.extractor, network, words, Writing(max_length, True, published.beams))


def import_published(
    published: Published, checkpoint: Path, annotation: Path, threshold: int, max_length: int, out: Path
) -> None:
    """Write the folder `out` of a released checkpoint.

    Args:
        published: `R2GEN` or `R2GEN_CMN`.
        checkpoint: the released .pth file.
        annotation: the annotation.json that it was trained with: {"train": [{"report": …}, …], …}.
        threshold: words of at least so many uses; 3 for IU X-Ray, 10 for MIMIC-CXR.
        max_length: words that it writes at most; 60 and 100.

    Raises:
        FileNotFoundError: names the file that is missing.
        ValueError: see `load_published`.
    """
    for path in (checkpoint, annotation):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the checkpoint and its annotation.json come from the authors")
    reports = [item["report"] for item in json.loads(annotation.read_text(encoding="utf-8"))["train"]]
    writer = published_writer(published, published_words(reports, threshold), max_length)
    load_published(writer, torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    save_writer(writer, out, {"system": f"medim.baselines.{published.method}", "published": checkpoint.name})


def import_resnet(settings: ExtractorSettings, weights: Path, out: Path) -> None:
    """Write the folder `out`, which `load_extractor` reads, of a torchvision ResNet's weights (.pth, with `fc`).

    Raises:
        FileNotFoundError: the file is missing.
        RuntimeError: the weights are of a network of other sizes (from torch).
    """
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: torchvision's ResNet-101 is resnet101-*.pth of pytorch.org")
    state = torch.load(weights, map_location="cpu", weights_only=True)
    extractor = VisualExtractor(settings)
    extractor.model.load_state_dict(
        {resnet_name(name): one for name, one in state.items() if not name.startswith("fc.")}
    )
    save_extractor(extractor, out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a folder; exit code 1 where a file is missing or does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for published in (R2GEN, R2GEN_CMN):
        kind = kinds.add_parser(published.method, help="a released checkpoint, as a trained system's folder")
        kind.set_defaults(published=published)
        kind.add_argument("--checkpoint", type=Path, required=True, help="the released .pth")
        kind.add_argument("--annotation", type=Path, required=True, help="the annotation.json that it was trained with")
        kind.add_argument("--threshold", type=int, required=True, help="3 for IU X-Ray, 10 for MIMIC-CXR")
        kind.add_argument("--max-length", type=int, required=True, help="words: 60 for IU X-Ray, 100 for MIMIC-CXR")
    resnet = kinds.add_parser("resnet", help="torchvision's ResNet-101, for settings.<method>.start")
    resnet.add_argument("--weights", type=Path, required=True, help="the .pth")
    for kind in kinds.choices.values():
        kind.add_argument("--out", type=Path, required=True, help="folder")
    given = parser.parse_args(arguments)
    try:
        if given.kind == "resnet":
            import_resnet(RESNET_101, given.weights, given.out)
        else:
            import_published(
                given.published, given.checkpoint, given.annotation, given.threshold, given.max_length, given.out
            )
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
