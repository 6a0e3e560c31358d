"""Stage tokenize_pairs: pairs -> report tokens and image codes.   dvc repro tokenize_pairs

in   data/pairs, models/vqgan
out  data/tokens/<dataset>/{train,val,test}.parquet, models/text_tokenizer

Several workers, this machine's or a Ray cluster's: docs/scale.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medim.pairs import join_tables
from medim.tokenizers.tokenization import TOKEN_SCHEMA, build_text_tokenizer, make_tokens
from pipeline.params import read_section
from pipeline.paths import SPLITS, world_from_params
from pipeline.resources import device
from pipeline.shards import cut, stage_engine, stage_shards
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
    params, engine = read_section("tokenize_pairs", Section), stage_engine()
    world = world_from_params()
    tokens, folder, vqgan = world.tokens_folder(), world.model("text_tokenizer"), world.model("vqgan")
    inputs, outputs = [world.pairs_folder(), vqgan], [tokens, folder]
    with stage_run("tokenize_pairs", section=params, inputs=inputs, outputs=outputs) as run:
        files = [world.pairs(dataset, "train") for dataset in params.datasets]
        text = run.work / "text_tokenizer"
        build_text_tokenizer(files, params.vocabulary, params.tokenizer).save(text)
        splits = [Path(dataset) / split for dataset in params.datasets for split in SPLITS]
        jobs = [
            cut(world.pairs(split.parent.name, split.name), run.work / "tokens" / f"{split}.parquet",
                run.work / "parts" / split, engine.rows, params.batch)
            for split in splits
        ]  # fmt: skip
        settings = {
            "tokenizer": str(text), "vqgan": str(vqgan), "length": params.length, "batch": params.batch,
            "device": str(device()),
        }  # fmt: skip
        made = iter(stage_shards(run, engine, make_tokens, settings, [job for of_split in jobs for job in of_split]))
        total = 0
        for split, of_split in zip(splits, jobs, strict=True):
            counts = [next(made) for _ in of_split]
            pairs, cut_off = (sum(count[name] for count in counts) for name in ("pairs", "cut"))
            total += pairs
            if cut_off:
                print(f"tokenize_pairs: {cut_off} of {pairs} texts of {split.parent} {split.name} are cut at "
                      f"{params.length} tokens (params.yaml:tokenize_pairs.length)", flush=True)  # fmt: skip
            if len(of_split) > 1:
                join_tables([part for _, part, _ in of_split], run.work / "tokens" / f"{split}.parquet", TOKEN_SCHEMA)
        run.cost(examples=total)
        run.place(text, folder)
        run.place(run.work / "tokens", tokens)


if __name__ == "__main__":
    command(main)
