"""A stage's command line: what is wrong in params.yaml is said in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.params_file import ParamsError
from pipeline.stage import command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checked(monkeypatch):
    """As if all sections were right."""
    monkeypatch.setattr("pipeline.params.check_sections", lambda: None)
    monkeypatch.setattr("pipeline.stage.params_key", lambda: None)  # nothing is remembered


@pytest.mark.usefixtures("checked")
def test_a_wrong_parameter_ends_without_a_traceback():
    def main():
        raise ParamsError("params.yaml:generate: nothing reads 'stepz'")

    with pytest.raises(SystemExit) as ended:
        command(main)
    assert ended.value.code == "params.yaml:generate: nothing reads 'stepz'"  # Python prints it and exits with 1


@pytest.mark.usefixtures("checked")
def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 // 0)


def refused(tmp_path, old, new, stage):
    """What a stage says of the repository's params.yaml with one change; it does nothing else."""
    text = (ROOT / "params.yaml").read_text()
    assert text.count(old) == 1
    (tmp_path / "params.yaml").write_text(text.replace(old, new))
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command_line = [sys.executable, "-m", f"stages.{stage}"]
    done = subprocess.run(command_line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.yaml", "params.yaml"]
    return done.stderr


@pytest.mark.parametrize("stage", ["hash_code", "train_finding_reader", "train_vqgan"])
def test_a_typo_in_the_last_section_is_found_before_the_first_training(tmp_path, stage):
    said = refused(tmp_path, "    columns: 4                    # of figure 8", "    colums: 4", stage)
    assert "record_tables" in said and "colums" in said and "did you mean 'columns'" in said


def test_the_check_loads_no_code_into_the_stages_own_process():
    code = "import sys; from pipeline.stage import command; command(lambda: print('stages.generate' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.usefixtures("checked")
def test_a_value_error_outside_of_params_yaml_keeps_its_traceback():
    def main():
        raise ValueError("not a parameter")

    with pytest.raises(ValueError, match="not a parameter"):
        command(main)


def test_sections_are_checked_once_and_again_after_a_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr("pipeline.params.check_sections", lambda: (tmp_path / "asked").open("a").write("x"))
    command(lambda: None)
    command(lambda: None)
    assert (tmp_path / "asked").read_text() == "x"
    with (tmp_path / "params.yaml").open("a") as file:
        file.write("# another comment\n")
    command(lambda: None)
    assert (tmp_path / "asked").read_text() == "xx"


def test_a_refused_params_yaml_is_refused_each_time(tmp_path, monkeypatch):
    def wrong():
        raise ParamsError("wrong")

    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr("pipeline.params.check_sections", wrong)
    for _ in range(2):
        with pytest.raises(SystemExit):
            command(lambda: None)
