"""A stage's command line: what is wrong in params.yaml is said in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.params_file import ParamsError
from pipeline.stage import command

ROOT = Path(__file__).parents[2]


def test_a_wrong_parameter_ends_without_a_traceback():
    def main():
        raise ParamsError("params.yaml:generate: nothing reads 'stepz'")

    with pytest.raises(SystemExit) as ended:
        command(main)
    assert ended.value.code == "params.yaml:generate: nothing reads 'stepz'"  # Python prints it and exits with 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 // 0)


def test_a_typo_in_the_last_section_is_found_before_the_first_training(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(
        text.replace("    columns: 4                    # of figure 8", "    colums: 4")
    )
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command_line = [sys.executable, "-m", "stages.hash_code"]
    done = subprocess.run(command_line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "record_tables" in done.stderr and "colums" in done.stderr and "did you mean 'columns'" in done.stderr
    assert not (tmp_path / "code").exists()
