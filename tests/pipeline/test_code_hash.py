"""Code hashes change with the code that an instance reaches, and with nothing else."""

import ast
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.code_hash import Sources, closure, code_text, instances, write_hashes
from pipeline.params_file import ParamsError

FILES = {
    "dvc.yaml": """
stages:
  hash_code: {cmd: python -m stages.hash_code}
  prepare_data: {cmd: python -m stages.prepare_data}
  train_baseline:
    matrix: {method: "${train_baseline.methods}"}
    cmd: python -m stages.train_baseline
  generate:
    matrix: {model: [medim, unidisc]}
    cmd: python -m stages.generate
  train_downstream:
    matrix: {method: [r2gen], seed: "${seeds}"}
    cmd: python -m stages.train_downstream
""",
    "params.yaml": "train_baseline: {methods: [unidisc, r2gen]}\nseeds: [0, 1]\n",
    "stages/__init__.py": "",
    "stages/hash_code.py": "import pipeline.code_hash\n",
    "stages/prepare_data.py": "from medim.data import get_domain\nfrom pipeline import paths\n",
    "stages/train_baseline.py": "from medim.baselines import load\nimport pipeline.stage\n",
    "stages/train_downstream.py": "from medim.baselines import load\nfrom medim.data.domain import STATES\n",
    "stages/generate.py": "from medim.system_loading import load_system\n",
    "medim/system_loading.py": (
        "from importlib import import_module\ndef load_system(name): return import_module(name)\n"
    ),
    "medim/model.py": 'CONFIG = {"system": "medim.questions"}\n',
    "medim/questions.py": "import medim.model\n",
    "medim/latent.py": "L = 1\n",
    "pipeline/__init__.py": "",
    "pipeline/paths.py": "A = 1\n",
    "pipeline/stage.py": "from pipeline import paths\n",
    "pipeline/code_hash.py": "",
    "medim/__init__.py": "",
    "medim/shared.py": "X = 1\n",
    "medim/data/__init__.py": 'DOMAINS = {"cxr": "medim.data.cxr", "ood": "medim.data.cxr"}\ndef get_domain(): ...\n',
    "medim/data/cxr.py": 'DATA_FILES = ("words.txt",)\n',
    "medim/data/words.txt": "effusion\n",
    "medim/data/cxr.json": "{}\n",
    "medim/data/domain.py": "STATES = 1\n",
    "medim/baselines/__init__.py": (
        'METHODS = {"unidisc": ("UniDisc", "medim.baselines.unidisc:UniDisc"), "r2gen": "medim.baselines.r2gen"}\n'
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from medim.data.domain import STATES\n"
        "def load(): ...\n"
    ),
    "medim/baselines/unidisc.py": '"""A."""\nfrom ..shared import X\n\n\ndef f():\n    """Text."""\n    return X\n',
    "medim/baselines/r2gen.py": "def g():\n    return 1\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def hashes(tree, cache=None):
    write_hashes(tree / "code", tree, tree / "params.yaml", cache)
    return {path.stem: path.read_text() for path in (tree / "code").glob("*.txt")}


def changed_by(tree, name, text, cache=None):
    before = hashes(tree, cache)
    (tree / name).write_text(text)
    after = hashes(tree, cache)
    return sorted(key for key in after if after[key] != before.get(key))


def test_instances_are_those_of_dvc(tree):
    assert sorted(hashes(tree)) == [
        "generate@medim", "generate@unidisc", "prepare_data", "train_baseline@r2gen", "train_baseline@unidisc",
        "train_downstream@r2gen-0", "train_downstream@r2gen-1",
    ]  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("medim/baselines/unidisc.py", '# c\n"""Other."""\nfrom ..shared import X\ndef f():\n  return (X)  # d\n', []),
        (
            "medim/baselines/unidisc.py",
            "from ..shared import X\ndef f():\n    return X + 1\n",
            ["generate@unidisc", "train_baseline@unidisc"],
        ),
        ("medim/shared.py", "X = 2\n", ["generate@unidisc", "train_baseline@unidisc"]),
        ("medim/questions.py", "import medim.model\nQ = 1\n", ["generate@medim"]),
        ("medim/model.py", 'CONFIG = {"system": "medim.latent"}\n', ["generate@medim"]),
        (
            "medim/baselines/r2gen.py",
            "",
            ["train_baseline@r2gen", "train_downstream@r2gen-0", "train_downstream@r2gen-1"],
        ),
        ("medim/data/cxr.py", 'DATA_FILES = ("words.txt",)\nY = 1\n', ["prepare_data"]),
        ("medim/data/words.txt", "mass\n", ["prepare_data"]),
        ("medim/data/cxr.json", "[]\n", ["prepare_data"]),
        ("medim/data/domain.py", "STATES = 2\n", ["train_downstream@r2gen-0", "train_downstream@r2gen-1"]),
        ("pipeline/paths.py", "A = 2\n", []),
        ("pipeline/stage.py", "B = 2\n", ["train_baseline@r2gen", "train_baseline@unidisc"]),
    ],
)
def test_an_edit_changes_the_instances_that_reach_it(tree, name, text, expected, cached):
    assert changed_by(tree, name, text, tree / "cache.json" if cached else None) == expected


def test_a_package_may_list_its_modules(tree):
    text = 'METHODS = ("unidisc", "r2gen")\nTASKS = ("joint",)\ndef load(): ...\n'
    (tree / "medim/baselines/__init__.py").write_text(text)
    hashes(tree)
    for stage in ("train_baseline", "generate"):
        reached = (tree / f"code/{stage}@unidisc.txt").read_text()
        assert "medim/baselines/unidisc.py" in reached
        assert "medim/baselines/r2gen.py" not in reached


def test_the_cache_changes_nothing(tree):
    first = hashes(tree, tree / "cache.json")
    stamp = (tree / "cache.json").read_bytes()
    assert hashes(tree, tree / "cache.json") == hashes(tree) == first
    assert (tree / "cache.json").read_bytes() == stamp


def test_a_file_that_did_not_change_is_not_written_and_an_instance_that_is_gone_goes(tree):
    assert len(write_hashes(tree / "code", tree, tree / "params.yaml", None)) == 7
    assert write_hashes(tree / "code", tree, tree / "params.yaml", None) == []
    (tree / "params.yaml").write_text("train_baseline: {methods: [unidisc]}\nseeds: [1]\n")
    assert sorted(hashes(tree)) == [
        "generate@medim", "generate@unidisc", "prepare_data", "train_baseline@unidisc", "train_downstream@r2gen-1",
    ]  # fmt: skip


def test_changes_are_named_though_dvc_deletes_the_folder_before(tree, tmp_path):
    cache = tmp_path / "cache.json"
    assert len(write_hashes(tree / "code", tree, tree / "params.yaml", cache)) == 7
    shutil.rmtree(tree / "code")
    assert write_hashes(tree / "code", tree, tree / "params.yaml", cache) == []


def test_errors_say_what_is_missing(tree):
    with pytest.raises(FileNotFoundError, match=r"no module stages\.nothing"):
        closure("stages.nothing", Sources(tree))
    (tree / "medim/data/words.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"words\.txt"):
        hashes(tree)
    with pytest.raises(ParamsError, match=r"params\.yaml has no a\.b"):
        instances({"stages": {"s": {"matrix": {"m": "${a.b}"}}}}, {})
    with pytest.raises(ParamsError, match="foreach"):
        instances({"stages": {"s": {"foreach": [1]}}}, {})


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0", exclude_categories=["Cs", "Cc"]), max_size=30))
def test_comments_and_docstrings_never_count(text):
    words = text.replace("\\", "").replace('"', "")
    plain = "class A:\n    def f(self):\n        return 'x'\n"
    head = f'"""{words} """\nclass A:  # {words}\n    """{words} """\n\n'
    full = head + f'    def f(self):\n        """{words} """\n        return "x"\n'
    assert code_text(ast.parse(plain)) == code_text(ast.parse(full))


def test_a_stage_of_this_repository_reaches_no_other_stage():
    root = Path(__file__).parents[2]
    sources = Sources(root)
    for stage in sorted((root / "stages").glob("[a-z]*.py")):
        reached = closure(f"stages.{stage.stem}", sources, ("none",))
        others = [p for p in reached if p.parts[0] == "stages" and p.stem not in ("__init__", stage.stem)]
        assert others == [], f"{stage.name} imports another stage"
