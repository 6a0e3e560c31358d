"""Qwen2-VL as judge of image-report pairs, the paper's automatic evaluator of Figure 5a, through transformers.

Three ways to a score in [0, 1], each under its own name, none of them the phantom judge (alignment.py):

- `official`: prompt and reading of the official script (UCSC-VLAA/MeDiM, pair_metric.py). It takes the first 0 or 1 it
  meets, so "8 out of 10", "10" and ".81" are read as 1, "0,85" and "2.0" as 0, "-0.5" as 0.5. An answer without either
  is left out of its mean; the share of these stands beside, and n counts the others.
- `strict`: a prompt that asks for one digit after the point; the whole answer must be a number in [0, 1], else it is a
  refusal. A refusal scores 0, so that n is the number of pairs, and the share of refusals stands beside.
- `grid`: no answer is written; the prompt is the strict one, the score is the mean of 0.0, 0.1, ..., 1.0 under the
  model's probabilities of these eleven answers. One forward pass, no refusals; how probable the model finds that it
  answers with any of them stands beside.

Deviations from the script: greedy decoding (it takes what the checkpoint's settings say), and pictures go to the
processor as they are (it first rounds their sides to multiples of 28 pixels, which halves the detail of small ones).
Shapes: N pairs, B pairs of a batch, L tokens of a prompt, n nodes of the tree of answers, G = 11 answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medim.metrics.bootstrap import Estimate, bootstrap_mean

Floats = NDArray[np.float64]
Images = NDArray[np.uint8]

MODEL_TYPE = "qwen2_vl"
PROMPTS = {
    "official": "Report: {report}. Please give a matching score from 0 (mismatch) to 1 (perfect match). Only output a "
    "decimal number.",
    "strict": "Below is the report of this medical picture. Compare every finding, its side and how certain it is.\n"
    "Report: {report}\nHow well does the report describe the picture? Answer with one number from 0.0 (it does not) to "
    "1.0 (it does in every finding), with one digit after the point, and with nothing else.",
}
OFFICIAL_NUMBER = re.compile(r"0(\.\d+)?|1(\.0+)?")
STRICT_NUMBER = re.compile(r"(?:0?[.,][0-9]+|0|1(?:[.,]0+)?)\.?")
GRID = tuple(f"{tenth / 10:.1f}" for tenth in range(11))
FILES = (("config.json",), ("preprocessor_config.json", "processor_config.json"), ("tokenizer_config.json",))
NEEDED = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")


@dataclass(frozen=True)
class QwenSettings:
    """The judge; the official script's values in brackets.

    Attributes:
        name: what the metrics call it; the tables have columns for "Qwen2-VL".
        weights: its Hugging Face folder [Qwen2-VL-7B-Instruct].
        min_pixels, max_pixels: area that pictures are scaled into [256 * 28^2, 1280 * 28^2].
        new_tokens: longest answer [128].
        batch: pairs at once [1].
        dtype: of the weights, a name of torch [float16].
    """

    name: str
    weights: str
    min_pixels: int
    max_pixels: int
    new_tokens: int
    batch: int
    dtype: str


def parse_official(answer: str) -> float | None:
    """The number that the official script reads out of an answer; None where it finds none."""
    found = OFFICIAL_NUMBER.search(answer)
    return None if found is None else float(found.group(0))


def parse_strict(answer: str) -> float | None:
    """An answer that is a number in [0, 1] and nothing else; None (a refusal) for every other.

    White space around it and one full stop behind it are let pass; the leading 0 may be missing, and the point may be
    a comma: ".81" and "0,85" can mean nothing else.
    """
    text = answer.strip()
    if STRICT_NUMBER.fullmatch(text) is None:
        return None
    return float(text.replace(",", ".").removesuffix("."))


PARSERS = {"official": parse_official, "strict": parse_strict}


class AnswerTree(NamedTuple):
    """Answers as a tree: `tokens` (n,), `parents` (n,) (-1: the prompt), and each answer's last node, `ends` (G,)."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    ends: tuple[int, ...]

    def depths(self) -> list[int]:
        """Tokens before each node, (n,)."""
        out: list[int] = []
        for parent in self.parents:
            out.append(0 if parent < 0 else out[parent] + 1)
        return out

    def sees(self) -> Tensor:
        """(n, n) bool: whether the row's node has the column's among its ancestors or is it."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def answer_tree(answers: Sequence[Sequence[int]]) -> AnswerTree:
    """The tree of token lists, beginnings shared.

    Raises:
        ValueError: an answer is empty or the beginning of another, whose probabilities could then not be told apart.
    """
    tokens: list[int] = []
    parents: list[int] = []
    ends: list[int] = []
    known: dict[tuple[int, int], int] = {}
    for answer in answers:
        node = -1
        for token in answer:
            if (node, token) not in known:
                known[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = known[node, token]
        ends.append(node)
    if -1 in ends or len(set(ends)) < len(ends) or set(ends) & set(parents):
        raise ValueError(f"answers must be token lists none of which begins another, got {list(map(list, answers))}")
    return AnswerTree(tuple(tokens), tuple(parents), tuple(ends))


class QwenJudge:
    """The model with its processor; see the top of this file. As a `Judge` (alignment.py) it is the strict one."""

    def __init__(self, model: Any, processor: Any, settings: QwenSettings) -> None:
        """`model`: Qwen2VLForConditionalGeneration; `processor`: its processor, with a chat template."""
        self.model, self.processor, self.settings = model.eval(), processor, settings
        ids = [processor.tokenizer(answer, add_special_tokens=False).input_ids for answer in GRID]
        self.tree = answer_tree(ids)

    def scores(self, images: Images, reports: Sequence[str]) -> Floats:
        """See `Judge`: the strict protocol's scores, a refusal as 0."""
        found = [parse_strict(answer) for answer in self.answers(images, reports, "strict")]
        return np.array([0.0 if score is None else score for score in found])

    @torch.no_grad()
    def answers(self, images: Images, reports: Sequence[str], protocol: str) -> list[str]:
        """What the model writes, greedily, about pictures (N, S, S, 3) uint8 and N reports; `protocol`: of PROMPTS.

        Raises:
            ValueError: see `inputs`.
        """
        from transformers import GenerationConfig

        ends = self.model.generation_config.eos_token_id
        greedy = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=self.settings.new_tokens,
            eos_token_id=self.processor.tokenizer.eos_token_id if ends is None else ends,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )  # fmt: skip
        out: list[str] = []
        for rows in self._batches(images, reports):
            inputs = self.inputs(images[rows], reports[rows], protocol)
            ids = self.model.generate(**inputs, generation_config=greedy)
            written = ids[:, inputs["input_ids"].shape[1] :]
            out += self.processor.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return out

    @torch.no_grad()
    def grid_log_p(self, images: Images, reports: Sequence[str]) -> Floats:
        """Log probability of each answer of GRID after the strict prompt, (N, G); not normalised over the grid.

        The answers are one tree behind the prompt; each node sees the prompt and its own ancestors only and has the
        position that it would have if its answer stood there alone, so one pass gives what G passes would.

        Raises:
            ValueError: see `inputs`.
        """
        batches = self._batches(images, reports)
        out = [self._grid(self.inputs(images[rows], reports[rows], "strict")) for rows in batches]
        return np.concatenate(out) if out else np.zeros((0, len(GRID)))

    def _batches(self, images: Images, reports: Sequence[str]) -> list[slice]:
        if len(images) != len(reports):
            raise ValueError(f"{len(images)} pictures and {len(reports)} reports: pairs need as many of both")
        return [slice(start, start + self.settings.batch) for start in range(0, len(reports), self.settings.batch)]

    def inputs(self, images: Images, reports: Sequence[str], protocol: str) -> dict[str, Tensor]:
        """All that the processor gives for B pairs, padded on the left, on the model's device.

        `mm_token_type_ids` must be among it: without it transformers' `generate` gives pictures the positions of text
        and says nothing.

        Raises:
            ValueError: a report holds a control token, or the processor leaves something out.
        """
        special = sorted(token for token in self.processor.tokenizer.all_special_tokens)
        special += [self.processor.image_token, self.processor.video_token]
        for report in reports:
            if any(token in report for token in special):
                raise ValueError(f"report {report!r} holds a control token of {self.settings.name}: clean it first")
        texts = [self._text(PROMPTS[protocol].replace("{report}", report.strip())) for report in reports]
        found = self.processor(
            text=texts, images=[Image.fromarray(image) for image in images],
            text_kwargs={"padding": True, "padding_side": "left"}, return_tensors="pt",
            images_kwargs={
                "size": {"shortest_edge": self.settings.min_pixels, "longest_edge": self.settings.max_pixels}
            },
        )  # fmt: skip
        missing = [name for name in NEEDED if name not in found]
        if missing:
            raise ValueError(
                f"the processor of {self.settings.weights} gives no {', '.join(missing)}: use a transformers whose "
                f"Qwen2VLProcessor does (pyproject.toml names the versions)"
            )
        return {name: found[name].to(self.model.device) for name in NEEDED}

    def _text(self, prompt: str) -> str:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        text: str = self.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        return text

    def _grid(self, inputs: Mapping[str, Tensor]) -> Floats:
        """`grid_log_p` of one batch."""
        ids, there, tree = inputs["input_ids"], inputs["attention_mask"].bool(), self.tree
        rows, length = ids.shape
        nodes, device = len(tree.tokens), ids.device
        allowed = torch.zeros(rows, length + nodes, length + nodes, dtype=torch.bool, device=device)
        allowed[:, :length, :length] = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        allowed[:, length:, :length] = True
        allowed[:, :, :length] &= there[:, None, :]
        allowed[:, length:, length:] = tree.sees().to(device)
        dtype = self.model.dtype
        mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
        mask.masked_fill_(~allowed, torch.finfo(dtype).min)

        positions, deltas = self.model.model.get_rope_index(
            ids, mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )  # fmt: skip
        after = there.sum(dim=1, keepdim=True) + deltas + torch.tensor(tree.depths(), device=device)  # (B, n)
        found = self.model(
            input_ids=torch.cat([ids, torch.tensor(tree.tokens, device=device).expand(rows, -1)], dim=1),
            attention_mask=mask[:, None], position_ids=torch.cat([positions, after.expand(3, -1, -1)], dim=2),
            pixel_values=inputs["pixel_values"], image_grid_thw=inputs["image_grid_thw"],
            logits_to_keep=nodes + 1, use_cache=False,
        )  # fmt: skip
        log_p = found.logits.float().log_softmax(dim=-1)  # (B, n + 1, V): after the prompt, after each node
        sums: list[Tensor] = []
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            own = log_p[:, parent + 1, token]
            sums.append(own if parent < 0 else sums[parent] + own)
        return torch.stack([sums[end] for end in tree.ends], dim=1).cpu().numpy().astype(np.float64)


def grid_means(log_p: Floats) -> tuple[Floats, Floats]:
    """Log probabilities of GRID's answers (N, G) -> (mean number (N,), probability of any of them (N,)), in [0, 1]."""
    largest = log_p.max(axis=1, keepdims=True)
    weights = np.exp(log_p - largest)
    total = weights.sum(axis=1)
    return weights @ np.array([float(answer) for answer in GRID]) / total, total * np.exp(largest[:, 0])


def answer_scores(answers: Sequence[str], protocol: str, name: str, seed: int, resamples: int) -> dict[str, Estimate]:
    """What N answers say under a protocol; the rule for refusals stands at the top of this file.

    Returns:
        `alignment (<name>, <protocol>)`, its mean score; `refusals (<name>, <protocol>)`, the share of answers that
        were not read, n = N. Without any readable answer the official mean is "not measured".
    """
    found = [PARSERS[protocol](answer) for answer in answers]
    read = [score for score in found if score is not None]
    counted = read if protocol == "official" else [0.0 if score is None else score for score in found]
    return {
        f"alignment ({name}, {protocol})": bootstrap_mean(counted, seed, resamples),
        f"refusals ({name}, {protocol})": bootstrap_mean([float(s is None) for s in found], seed, resamples),
    }


def qwen_alignment(
    judge: QwenJudge, images: Images, reports: Sequence[str], seed: int, resamples: int
) -> dict[str, Estimate]:
    """All three ways on N pairs: `answer_scores` of both protocols, and of the grid `alignment (<name>, grid)` and
    `answers on the grid (<name>)`, the mean probability of any of its answers.

    Args:
        judge: see `load_qwen_judge`.
        images: (N, S, S, 3) uint8.
        reports: N reports.
        seed: seed of the bootstrap over pairs.
        resamples: its draws.

    Raises:
        ValueError: numbers differ, or see `QwenJudge.inputs`.
    """
    name = judge.settings.name
    scores: dict[str, Estimate] = {}
    for protocol in PROMPTS:
        answers = judge.answers(images, reports, protocol)
        scores |= answer_scores(answers, protocol, name, seed, resamples)
    means, mass = grid_means(judge.grid_log_p(images, reports))
    scores[f"alignment ({name}, grid)"] = bootstrap_mean(means, seed, resamples)
    scores[f"answers on the grid ({name})"] = bootstrap_mean(mass, seed, resamples)
    return scores


def load_qwen_judge(settings: QwenSettings, device: torch.device) -> QwenJudge:
    """The judge in a local Hugging Face folder; nothing is downloaded.

    Raises:
        FileNotFoundError: names what is missing and what belongs there.
        ValueError: the folder holds another kind of model, or no chat template.
    """
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    folder = Path(settings.weights)
    missing = [names[0] for names in FILES if not any((folder / name).is_file() for name in names)]
    missing += [] if list(folder.glob("*.safetensors")) else ["*.safetensors"]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}: place the Hugging Face files of {settings.name} there, e.g. "
            f"`hf download Qwen/Qwen2-VL-7B-Instruct --local-dir {folder}` (17 GB); without them the judge of pairs is "
            f"the phantom judge, in phantom worlds only"
        )
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    if kind != MODEL_TYPE:
        raise ValueError(f"{folder}/config.json: model_type {kind!r} is not {MODEL_TYPE!r}")
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if processor.chat_template is None:
        raise ValueError(f"{folder} holds no chat template: place the checkpoint's chat_template.json there")
    dtype = getattr(torch, settings.dtype)
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return QwenJudge(model.to(device), processor, settings)
