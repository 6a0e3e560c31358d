"""R2Gen and R2GenCMN of a few thousand parameters, and pairs that they can learn by heart."""

from dataclasses import asdict

import numpy as np
import torch

from medim.baselines.base import TrainInputs
from medim.baselines.encoder_decoder_writer import EncoderDecoderWriter, Writing
from medim.baselines.r2gen_cmn_network import CMNNetwork, CMNSizes
from medim.baselines.r2gen_network import R2GenNetwork, R2GenSizes
from medim.baselines.report_decoder import DecoderSizes
from medim.baselines.report_words import ReportWords
from medim.baselines.visual_extractor import ExtractorSettings
from medim.pairs import Pair, encode_png, write_pairs
from medim.training import Optimisation

DECODER = DecoderSizes(width=32, inner=32, heads=4, layers=1, dropout=0.0, feature_dropout=0.0)
R2GEN, CMN = R2GenSizes(DECODER, slots=3, memory_heads=4), CMNSizes(DECODER, slots=16, top=4)
EXTRACTOR = ExtractorSettings(8, (8, 16), (1, 1), "basic", "unit")
WORDS = {"threshold": 1, "cleaning": "plain", "max_length": 16, "long_texts": "error"}
OPTIM = Optimisation(
    steps=45, batch_size=6, accumulate=1, lr=1e-2, warmup=5, restarts=1, weight_decay=0.0, beta1=0.9, beta2=0.98,
    clip=1.0, ema=0, precision="fp32", checkpoint_every=1000, validate_every=0, log_every=50,
)  # fmt: skip
REPORTS = [
    "The heart is large. No edema.",
    "There is a left effusion.",
    "Nodule of 1.5 cm, right upper lung.",
    "No effusion. The heart is normal.",
    "2/3 of the left lung is opaque.",
    "There is edema.",
]
PROMPT = "chest x-ray"


def network(sizes, features=16, num_ids=11, seed=0):
    """An untrained network in eval mode."""
    torch.manual_seed(seed)
    kind = R2GenNetwork if isinstance(sizes, R2GenSizes) else CMNNetwork
    return kind(sizes, features, num_ids).eval()


def writer(sizes=R2GEN, words=None, writing=None, seed=0):
    """An untrained writer in eval mode."""
    torch.manual_seed(seed)
    kind = R2GenNetwork if isinstance(sizes, R2GenSizes) else CMNNetwork
    words = words or ReportWords.build([f"{PROMPT}: {report}" for report in REPORTS], 1, "plain")
    writing = writing or Writing(16, False, 3)
    return EncoderDecoderWriter(EXTRACTOR, lambda f, ids: kind(sizes, f, ids), words, writing).eval()


def pairs():
    """Pairs of one dataset, each picture another pattern."""
    out = []
    for number, report in enumerate(REPORTS):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = encode_png(np.kron(pixels, np.ones((8, 8, 1), np.uint8)))
        out.append(Pair(f"d-{number}", f"s{number}", f"p{number}", "d", "", image, PROMPT, report))
    return out


def inputs(folder, sizes, **changes):
    """What `train` gets: all pairs in training and validation."""
    write_pairs(folder / "d.parquet", pairs())
    settings = {
        "extractor": asdict(EXTRACTOR), "network": asdict(sizes), "words": WORDS, "beams": 3, "val_pairs": 4,
        "start": None, "pretraining": None, "frozen": [], "optim": asdict(OPTIM),
    } | changes  # fmt: skip
    files = {"d": {"train": folder / "d.parquet", "val": folder / "d.parquet"}}
    logs = []
    return TrainInputs(
        files, ("d",), settings, 0, folder / "work", folder / "out", lambda step, values: logs.append((step, values))
    ), logs
