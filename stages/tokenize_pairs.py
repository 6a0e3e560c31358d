"""Stage tokenize_pairs: pairs -> report tokens and image codes.   dvc repro tokenize_pairs

in   data/pairs, models/vqgan
out  data/tokens/<dataset>/{train,val,test}.parquet, models/text_tokenizer
"""

from __future__ import annotations

from dataclasses import dataclass

from tqdm import tqdm

from medim.tokenizers.tokenization import build_text_tokenizer, tokenize_split
from medim.tokenizers.vqgan import load_vqgan
from pipeline.params import read_section
from pipeline.paths import SPLITS, world_from_params
from pipeline.resources import device
from pipeline.stage import command, stage_run


@dataclass(frozen=True)
class Section:
    """params.yaml:tokenize_pairs."""

    datasets: tuple[str, ...]
    vocabulary: int
    tokenizer: str | None
    length: int
    batch: int


def main() -> None:
    """Train or load the text tokenizer, then write every split's tokens."""
    params = read_section("tokenize_pairs", Section)
    world = world_from_params()
    tokens, folder, vqgan = world.tokens_folder(), world.model("text_tokenizer"), world.model("vqgan")
    inputs, outputs = [world.pairs_folder(), vqgan], [tokens, folder]
    with stage_run("tokenize_pairs", section=params, inputs=inputs, outputs=outputs) as run:
        files = [world.pairs(dataset, "train") for dataset in params.datasets]
        tokenizer = build_text_tokenizer(files, params.vocabulary, params.tokenizer)
        tokenizer.save(run.work / "text_tokenizer")
        model = load_vqgan(vqgan).to(device())
        total = 0
        splits = [(dataset, split) for dataset in params.datasets for split in SPLITS]
        for dataset, split in tqdm(splits, "tokenize_pairs", unit="split", disable=None):
            out = run.work / "tokens" / dataset / f"{split}.parquet"
            counts = tokenize_split(world.pairs(dataset, split), out, tokenizer, model, params.length, params.batch)
            total += counts["pairs"]
            if counts["cut"]:
                print(f"tokenize_pairs: {counts['cut']} of {counts['pairs']} texts of {dataset} {split} are cut at "
                      f"{params.length} tokens (params.yaml:tokenize_pairs.length)", flush=True)  # fmt: skip
        run.cost(examples=total)
        run.place(run.work / "text_tokenizer", folder)
        run.place(run.work / "tokens", tokens)


if __name__ == "__main__":
    command(main)
