"""Settings of BLIP, BLLM and LLaVA-Rad with few parameters, as params.yaml would hold them."""

import tiny_language_writers as tiny

BLIP_TEXT = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
BLIP_NETWORK = {"vision": tiny.VISION, "text": BLIP_TEXT, "label_smoothing": 0.1, "beams": 3}
BLIP = {
    "words": tiny.WORDS, "network": BLIP_NETWORK, "start": None, "val_pairs": 3, "pretraining": None,
    "frozen": [], "optim": tiny.OPTIM,
}  # fmt: skip
QFORMER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "initializer_range": 0.15, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
BLLM_NETWORK = {
    "vision": tiny.VISION, "qformer": QFORMER, "queries": 4, "language": tiny.LANGUAGE, "lora": None,
    "coarse_prompt": "<ImageHere>:", "refine_prompt": "<ImageHere>?<ReportHere>:",
    "coarse": tiny.NUCLEUS, "answer": tiny.GREEDY,
}  # fmt: skip
BOOTSTRAPPING = {
    "align_steps": 60, "every": 2, "pairs": 4, "references": 1, "margin": 1.0, "coarse_weight": 0.5,
    "triplet_weight": 0.05, "refinement_weight": 1.0,
}  # fmt: skip
BLLM = {
    "words": tiny.WORDS, "network": BLLM_NETWORK, "start": {"blip2": None, "language": None}, "frozen": [],
    "bootstrapping": BOOTSTRAPPING, "val_pairs": 3, "pretraining": None,
    "optim": {**tiny.OPTIM, "steps": 100, "lr": 1e-2},
}  # fmt: skip
LLAVA_RAD_NETWORK = {
    "vision": tiny.VISION, "language": tiny.LANGUAGE, "prompt": "USER: <image> ASSISTANT:", "lora": None,
    "decoding": tiny.GREEDY,
}  # fmt: skip
LLAVA_RAD = {
    "words": tiny.WORDS, "network": LLAVA_RAD_NETWORK, "start": {"vision": None, "language": None, "release": None},
    "frozen": [], "projector_steps": 3, "val_pairs": 3, "pretraining": None,
    "optim": {**tiny.OPTIM, "steps": 80, "lr": 1e-2},
}  # fmt: skip
