"""The networks of profiles/phantom-gpu.yaml at their full widths, for 20 steps on the CPU, through the whole graph."""

import json

import pytest
from worlds import SMALL, merged_mappings, new_clone

from pipeline.params_file import parse_yaml

STEPS = {"steps": 20, "batch_size": 4, "warmup": 5, "checkpoint_every": 10, "validate_every": 0, "log_every": 5}
SHORT = {
    "threads": 2,
    "train_finding_reader": {"reader": {"pictures": 40, "held_out": 16}, "optim": STEPS},
    "train_vqgan": {
        "val_pairs": 4,
        "training": {
            "codebook": {"start_after": 5, "samples_per_code": 1},
            "loss": {"disc_start": 10},
            "sheet_at": [],
            "sheet_images": 4,
        },
        "optim": STEPS,
    },
    "pretrain_backbone": {"val_pairs": 4, "optim": STEPS},
    "pretrain_towers": {"training": {"val_pairs": 4}, "optim": STEPS},
    "train_medim": {"settings": {"opening": {"steps": 5}, "val_pairs": 4}, "optim": STEPS},
    "train_baseline": {
        "settings": {
            "unidisc": {"val_pairs": 4, "optim": STEPS},
            "r2gen": {"pretraining": {"optim": STEPS}, "val_pairs": 4, "optim": STEPS},
            "bllm": {
                "pretraining": {"optim": STEPS}, "bootstrapping": {"align_steps": 10, "pairs": 2}, "val_pairs": 4,
                "optim": STEPS,
            },
        }
    },
    "generate": {
        "sampler": {"text_steps": 4, "image_steps": 4},
        "sampler_of_model": {"unidisc": {"text_steps": 4, "image_steps": 4}},
    },
    "train_downstream": {
        "arms": ["real", "real_medim"],
        "changes": {
            "r2gen": {"optim": {"steps": 4}},
            "bllm": {"optim": {"steps": 4}, "bootstrapping": {"align_steps": 2}},
        },
        "test_pairs": 8,
    },
    "prepare_reader_study": {"models": []},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_steps_of_every_network(tmp_path):
    clone = new_clone(tmp_path / "gpu")
    overlay = parse_yaml((clone.folder / "profiles/phantom-gpu.yaml").read_text(), "phantom-gpu")
    few = {
        key: SMALL[key]
        for key in ("prepare_data", "evaluate_vqgan", "generate", "synthesize_pairs", "mix_pairs", "evaluate")
    }
    clone.write_overlay("short", merged_mappings(merged_mappings(overlay, few), SHORT))
    clone.switch("short")
    clone.repro()
    runs = clone.folder / "runs/short"
    size = {
        "vqgan": json.loads((runs / "models/vqgan/config.json").read_text())["ch"],
        "medim": json.loads((runs / "models/medim/config.json").read_text())["backbone"]["decoder"]["hidden_size"],
    }
    assert size == {
        "vqgan": overlay["train_vqgan"]["training"]["model"]["ch"],
        "medim": overlay["train_medim"]["settings"]["backbone"]["decoder"]["hidden_size"],
    }
    scores = json.loads((runs / "metrics/medim.json").read_text())["rows"]["MeDiM"]
    assert scores["phantom_cxr/image_to_report/finding_f1"]["n"] == 8
    assert len(list((runs / "tables").glob("*.json"))) > 10
