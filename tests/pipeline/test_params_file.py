"""params.yaml is read strictly, and errors say where and what was meant."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from pipeline.params_file import ParamsError, check_schema, load_section, load_top, models_in, parse_yaml


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Optim(Strict):
    lr: float
    steps: int


class Split(Strict):
    train: int


class Train(Strict):
    optim: Optim
    methods: tuple[str, ...]
    datasets: dict[str, Split]
    ema: bool


GOOD = """
profile: tiny
world: tiny
seed: 0
threads: 2
train_medim:
  optim: {lr: 1e-4, steps: 5}
  methods: [a, b]
  datasets: {phantom_cxr: {train: 3}}
  ema: true
"""


def write(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


def test_a_good_section_is_read_with_its_types(tmp_path):
    section = load_section(Train, "train_medim", write(tmp_path, GOOD))
    assert section == Train(
        optim=Optim(lr=1e-4, steps=5), methods=("a", "b"), datasets={"phantom_cxr": Split(train=3)}, ema=True
    )


def test_top_is_read(tmp_path):
    top = load_top(write(tmp_path, GOOD))
    assert (top.profile, top.world, top.seed, top.threads) == ("tiny", "tiny", 0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps: 5", "step: 5"), "nothing reads ['optim.step'] (did you mean 'steps'?); not set: ['optim.steps']"),
        (("  ema: true\n", ""), "not set: ['ema']"),
        (("train: 3", "train: 3, trian: 4"), "nothing reads ['datasets.phantom_cxr.trian'] (did you mean 'train'?)"),
        (("lr: 1e-4", "lr: high"), "optim.lr: Input should be a valid number, got 'high'"),
        (("steps: 5", "steps: '5'"), "optim.steps: Input should be a valid integer, got '5'"),
        (("ema: true", "ema: 1"), "ema: Input should be a valid boolean, got 1"),
        (("train_medim:", "train_mdim:"), "no section 'train_medim' (did you mean 'train_mdim'?)"),
        (("steps: 5", "steps: 5, steps: 6"), "a key stands twice: ['steps']"),
    ],
)
def test_errors_name_file_section_key_and_nearest_name(tmp_path, change, message):
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(ParamsError) as error:
        load_section(Train, "train_medim", path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed: 0", "sed: 0"), "not set: 'seed' (found 'sed' instead)"),
        (("seed: 0", "seed: -1"), "seed must be >= 0"),
        (("threads: 2", "threads: true"), "threads must be int, got True"),
        (("world: tiny", "world: ../x"), "world must be a folder name"),
    ],
)
def test_top_errors(tmp_path, change, message):
    with pytest.raises(ParamsError) as error:
        load_top(write(tmp_path, GOOD.replace(*change)))
    assert message in str(error.value)


def test_a_missing_file_says_how_to_write_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m pipeline\.profile phantom"):
        load_top(tmp_path / "params.yaml")


def test_models_with_defaults_or_open_models_are_refused():
    class Loose(Strict):
        inner: list[Optim]
        steps: int = 3

    class Open(BaseModel):
        steps: int

    with pytest.raises(TypeError, match=r"Loose has defaults for \['steps'\]"):
        check_schema(Loose)
    with pytest.raises(TypeError, match="forbid"):
        check_schema(Open)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_as_a_number(number):
    assert parse_yaml(f"x: {number!r}", "t") == {"x": number}


def test_scalars_are_those_of_yaml_1_2():
    assert parse_yaml("{a: no, b: on, c: true, d: 1e3, e: 12, f: -.5, g: 1.}", "t") == {
        "a": "no", "b": "on", "c": True, "d": 1000.0, "e": 12, "f": -0.5, "g": 1.0,
    }  # fmt: skip


def unread_fields(model: type[BaseModel], sources: Iterable[Path]) -> list[str]:
    """Fields of a section model, inner models included, that no source reads as an attribute.

    A model that is turned into a mapping whole (`x.optim.model_dump()`, `vars(x.optim)`) counts as read in all its
    fields: what it is passed to takes each by name.
    """
    read: set[str] = set()
    whole: set[str] = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
                if node.attr == "model_dump" and isinstance(node.value, ast.Attribute):
                    whole.add(node.value.attr)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("vars", "dict"):
                whole |= {arg.attr for arg in node.args if isinstance(arg, ast.Attribute)}
    taken = {id(inner) for name, field in _fields(model) if name in whole for inner in models_in(field)}
    return [
        f"{inner.__name__}.{name}"
        for inner in models_in(model)
        if id(inner) not in taken
        for name in inner.model_fields
        if name not in read
    ]


def _fields(model):
    return [(name, field.annotation) for inner in models_in(model) for name, field in inner.model_fields.items()]


def test_unread_fields_are_found(tmp_path):
    stage = tmp_path / "train.py"
    stage.write_text("def main(p):\n    f(p.methods, p.datasets, Optimisation(**p.optim.model_dump()))\n")
    assert unread_fields(Train, [stage]) == ["Train.ema", "Split.train"]
    stage.write_text("def main(p):\n    f(p.methods, p.ema, p.optim.lr, [d.train for d in p.datasets.values()])\n")
    assert unread_fields(Train, [stage]) == ["Optim.steps"]
