"""A wrong name or number anywhere in params.yaml is found before any stage runs."""

from pathlib import Path

import pytest

from pipeline.params import check_sections
from pipeline.params_file import ParamsError
from pipeline.profile import profiles, render

ROOT = Path(__file__).parents[2]


def written(folder: Path, old: str, new: str) -> Path:
    text = render("phantom", ROOT / "profiles")
    assert old in text
    path = folder / "params.yaml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize("profile", profiles())
def test_every_profile_is_right(profile, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "params.yaml"
    path.write_text(render(profile, ROOT / "profiles"))
    check_sections(path)


GOAL = "least: 0.95                 # the goal\n      "
HIGH = "judged_by: high             # value | high: the interval's upper end\n      "


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("tasks: [report_to_image", "tasks: [report2image", r"generate: no task 'report2image': there are report_to_i"),
        ("models: [medim, trivial,", "models: [medimm, trivial,", r"generate.models: 'medimm' is not in train_medim.v"),
        ("models: [medim, unidisc]", "models: [medim, unidisk]",
         r"prepare_reader_study.models: 'unidisk' is not in generate.models and real"),
        ("questions: [agreement,", "questions: [agreements,", r"no question 'agreements' for readers: there are agree"),
        ("chest: phantom_cxr ", "chest: nope ", r"record_tables.chest: 'nope' is not in evaluate.datasets"),
        (
            "datasets: [drawings, marks]",
            "datasets: [drawing, marks]",
            r"pretrain_backbone.datasets: 'drawing' .*did you mean 'drawings'",
        ),
        ("phantom_cxr: phantom_cxr", "phantom_cxr: phantom_cx", r"evaluate.datasets: 'phantom_cx' is not in prepa"),
        ("datasets: [phantom_cxr, phantom_pathology]  # the training pairs; equal",
         "datasets: [phantom_cxr, phantom_pathologie]  # the training pairs; equal",
         r"settings.r2gen.pretraining.datasets: 'phantom_pathologie' is not in prepare_data.datasets"),
        ("masks: 16 ", "masks: 0 ", r"generate.side.masks must be at least 1, got 0"),
        ("datasets: [phantom_cxr]  ", "datasets: [chest]  ", r"generate.side.datasets: 'chest' is not in generate.d"),
        (f"{GOAL}judged_by: value ", f"{GOAL}judged_by: low ", r"judged_by must be value or h"),
        (f"{HIGH}datasets: [phantom_cxr,", f"{HIGH}datasets: [phantom_cxr_ood,",
         r"record_tables.mission: 'phantom_cxr_ood' is not in record_tables.chest and record_tables.pathology"),
        ("column: joint/finding_f1", "column: joint/f1", r"record_tables.*no column 'joint/f1' in the table mission"),
        ("datasets: [phantom_cxr, phantom_pathology, phantom_cxr_ood]  # names of prepare_data.datasets\n  tasks",
         "datasets: [phantom_cxr, side, phantom_cxr_ood]\n  tasks", r"a dataset cannot be called 'side'"),
        ("lr: 1e-3", "lr: .nan", r"lr must lie in .*, got nan"),
        ("precision: auto               # auto", "precision: fp16  # auto", r"precision must be one of auto, bf16"),
        ("generators: [unidisc, medim]", "generators: [unidisc, medimm]", r"generators: 'medimm' is not"),
        ("arms: [real, ", "arms: [reel, ", r"train_downstream.arms: 'reel' is not in mix_pairs.mixes .*'real'"),
        ("  datasets: {}                    # dataset -> test", "  datasets: {phantom: 3}  #",
         r"filter_reports.datasets: 'phantom' is not in evaluate.datasets"),
        ("  datasets: {}                    # dataset -> test", "  datasets: {phantom_cxr: 0}  #",
         r"filter_reports: datasets.phantom_cxr: at least 1 report must be kept, got 0"),
        ("ema: 0.999", "ema: 1.0", r"train_medim.optim: ema must lie in \[0, 1\), got 1.0"),
        ("timestep: t ", "timestep: x ", r"train_medim\.settings\.backbone: timestep must be one of t, sigma"),
        ("noise: log_linear             # log", "noise: pink # log",
         r"train_medim\.settings: no noise schedule 'pink'"),
        ("      steps: 0 ", "      steps: 10000 ",
         r"train_medim: settings\.opening\.steps must lie between 0 \(none\)"),
        ("length_known: 0.3", "length_known: 1.5", r"train_medim\.settings\.loss: length_known must lie in \[0, 1\]"),
        ("kind: ema", "kind: lfq", r"train_vqgan\.training\.codebook: codebook kind must be ema or learned, got 'lfq'"),
        ("method: maskgit", "method: guess", r"generate\.sampler: sampler\.method is 'guess'"),
        ("joint: {text", "joint: {text_order: rendom, text", r"generate\.sampler_of\.joint: sampler\.text_order"),
        ("joint: {text_lead", "joint: {text_laed", r"generate\.sampler_of\.joint: nothing reads"),
        ("    joint: {text_lead:", "    jiont: {text_lead:", r"generate: no task 'jiont'"),
        ("    medim: {}\n\n", "    medim: {settings: {noise: pink}}\n\n", r"train_medim\.changes\.medim\.settings: no"),
        ("    medim: {}\n\n", "    other: {}\n\n", r"train_medim\.changes: not set: 'medim'"),
        ("medim: {}\n    t", "medim: {text_ordr: random}\n    t", r"generate\.sampler_of_model\.medim: nothing reads"),
        ("      draws: 1 ", "      draws: 0 ",
         r"generate\.sampler_of_model\.unidisc: sampler\.draws is 0"),
        ("    trivial: {}\n", "", r"generate\.models: 'trivial' is not in generate\.sampler_of_model"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(old, new, says, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ParamsError, match=says) as found:
        check_sections(written(tmp_path, old, new))
    assert "\n" not in str(found.value)


def test_least_values(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = render("phantom", ROOT / "profiles")
    line = next(line for line in text.splitlines() if line.startswith("  chunk:") and "batch" in line)
    with pytest.raises(ParamsError, match=r"generate\.chunk must be at least 1, got 0"):
        check_sections(written(tmp_path, line, "  chunk: 0"))
