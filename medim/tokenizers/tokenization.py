"""Token pairs: every report and picture as ids, written once, so that no VQGAN runs in a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa

from medim.pairs import PROMPT_END, Pair, TableWriter, iter_pairs, load_images
from medim.tokenizers.text import TextTokenizer
from medim.tokenizers.vqgan import VQGAN, load_vqgan
from medim.tokenizers.vqgan_training import encode_images

TOKEN_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("text", pa.list_(pa.int32()), nullable=False),  # EOS-padded to one length
        pa.field("image", pa.list_(pa.int32()), nullable=False),  # VQGAN codes, raster order
        pa.field("prompt_tokens", pa.int32(), nullable=False),  # leading text tokens that belong to "<prompt>:"
        pa.field("text_tokens", pa.int32(), nullable=False),  # tokens before the padding; 0 = none
    ]
)


def build_text_tokenizer(files: Iterable[Path], vocab_size: int, pretrained: str | None) -> TextTokenizer:
    """A byte-level BPE over the texts of these pair files, or the tokenizer in a file or folder (`pretrained`)."""
    if pretrained is not None:
        return TextTokenizer.from_file(Path(pretrained))
    texts = (pair.full_text for pair in chain.from_iterable(map(iter_pairs, files)))
    return TextTokenizer.train(texts, vocab_size)


def token_rows(
    pairs: Iterable[Pair], tokenizer: TextTokenizer, vqgan: VQGAN, length: int, batch: int
) -> Iterator[dict[str, object]]:
    """Rows of TOKEN_SCHEMA; a text longer than `length` - 1 tokens is cut (text_tokens then equals `length`)."""
    for group in _groups(pairs, batch):
        codes = encode_images(vqgan, load_images(group), batch)
        for pair, image in zip(group, codes.tolist(), strict=True):
            yield {
                "pair_id": pair.pair_id,
                "text": tokenizer.encode(pair.full_text, length),
                "image": image,
                "prompt_tokens": min(tokenizer.num_tokens(pair.prompt + PROMPT_END), length),
                "text_tokens": min(tokenizer.num_tokens(pair.full_text), length),
            }


def tokenize_split(
    pairs: Path, out: Path, tokenizer: TextTokenizer, vqgan: VQGAN, length: int, batch: int,
    rows: tuple[int, int] | None = None,
) -> Mapping[str, int]:  # fmt: skip
    """Write the token pairs of one split, or of its rows (start, stop) where start is a multiple of `batch`.

    Returns:
        {"pairs", "cut"}: how many there are and how many texts were cut.
    """
    cut = 0
    with TableWriter(out, TOKEN_SCHEMA) as writer:
        for row in token_rows(iter_pairs(pairs, rows=rows), tokenizer, vqgan, length, batch):
            cut += row["text_tokens"] == length
            writer.write(row)
    return {"pairs": writer.count, "cut": cut}


def make_tokens(
    *, tokenizer: str, vqgan: str, length: int, batch: int, device: str
) -> Callable[..., Mapping[str, int]]:
    """What a worker does to rows of a pair file: see `tokenize_split`.

    Args:
        tokenizer: folder of the text tokenizer.
        vqgan: folder of the image tokenizer.
        device: torch's name of it.
    """
    text, model = TextTokenizer.load(Path(tokenizer)), load_vqgan(Path(vqgan)).to(device)

    def write(source: Path, target: Path, *, start: int, stop: int) -> Mapping[str, int]:
        return tokenize_split(source, target, text, model, length, batch, (start, stop))

    return write


def _groups(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    source = iter(pairs)
    while group := list(islice(source, size)):
        yield group
