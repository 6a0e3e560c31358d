"""A MeDiM of a few thousand parameters with its tokenizer, VQGAN and token files, for the tests beside it."""

from pathlib import Path

import numpy as np
import torch

from medim.backbones.mllm import BackboneSettings
from medim.diffusion.settings import SamplerSettings
from medim.medim_training import MeDiMSettings, Opening, TokenData, Tokens
from medim.model import LossSettings, MeDiM
from medim.tokenizers.text import TextTokenizer
from medim.tokenizers.vqgan import VQGAN, VQGANConfig
from medim.training import Optimisation
from medim.vocab import SequenceLayout

TEXTS = [
    "chest x-ray: the heart is large.",
    "chest x-ray: there is a left effusion.",
    "histology: there are many mitoses.",
    "histology: no mitoses are seen.",
]
CODES, LAYOUT = 24, SequenceLayout(n_text=20, n_image=9)
DECODER = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
BACKBONE = BackboneSettings(
    DECODER, "grid", "codebook", 1, 0, None, None, False, "t", "full", "identity", True, True, False
)
LOSS = LossSettings(
    {"joint": 0.5, "report_given_picture": 0.25, "picture_given_report": 0.25}, 0.1, 0.5, 0.0, 0.1, {}, 1e-3,
    "softmin_cap",
    5.0, 1.0, 0.6, False,
)  # fmt: skip
OPENING = Opening(0, {"report_given_picture": 1.0}, {"report_given_picture": 1.0}, 1.0)
OPTIM = Optimisation(
    steps=10, batch_size=4, accumulate=2, lr=1e-3, warmup=2, restarts=1, weight_decay=0.01, beta1=0.9, beta2=0.98,
    clip=1.0, ema=0.99, precision="fp32", checkpoint_every=4, validate_every=0, log_every=1,
)  # fmt: skip
SAMPLER = SamplerSettings(
    method="maskgit", pool="modality", time="fraction", text_steps=4, image_steps=3, text_lead=0.0,
    rewrites=0, rewrite_temperature=1.0,
    text_schedule="cosine", image_schedule="cosine", text_shift=1.0, image_shift=1.0, text_order="random",
    image_order="random", choice_temperature=1.0, text_commit="count", image_commit="count", text_commit_level=0.0,
    image_commit_level=0.0, text_temperature=1.0, image_temperature=1.0, text_top_p=1.0, image_top_p=1.0,
    sentence_temperature=None, text_guidance=0.0, image_guidance=0.0, guidance_ramp="constant",
    text_length="free", text_redraws=0, eos_fills=True,
    candidates=1, draws=1, text_beams=1, agreement_weight=0.0, precision="fp32",
)  # fmt: skip


def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS * 2, 300)


def medim(seed: int = 0, backbone: BackboneSettings = BACKBONE) -> MeDiM:
    torch.manual_seed(seed)
    return MeDiM(tokenizer(), CODES, LAYOUT, backbone, "log_linear")


def vqgan() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(CODES, 4, 4, 8, (1, 1, 1, 1), 1, 4)).eval()


def tokens(num: int = 6, seed: int = 0) -> Tokens:
    rng, text = np.random.default_rng(seed), tokenizer()
    rows = [TEXTS[(seed + i) % len(TEXTS)] for i in range(num)]
    prompts = [text.num_tokens(row.partition(":")[0] + ":") for row in rows]
    return Tokens(
        tuple(f"pair-{seed}-{i}" for i in range(num)),
        np.array([text.encode(row, LAYOUT.n_text) for row in rows], np.int32),
        rng.integers(CODES, size=(num, LAYOUT.n_image)).astype(np.int32),
        np.array(prompts, np.int32),
        np.array([text.num_tokens(row) for row in rows], np.int32),
    )


def data(folder: Path) -> TokenData:
    tokenizer().save(folder)
    return TokenData(
        {"a": tokens(6), "b": tokens(3, 1)},
        {"a": tokens(4, 2)},
        folder,
        torch.randn(CODES, 4, generator=torch.Generator().manual_seed(3)),
    )


def settings(backbone: BackboneSettings = BACKBONE) -> MeDiMSettings:
    return MeDiMSettings(backbone, "log_linear", OPENING, LOSS, val_pairs=4)
