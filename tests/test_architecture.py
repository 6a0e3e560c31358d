"""The rules of the rooms: who may import whom, how long a file may be, and that every setting is read.

Everything here is read with `ast`; nothing of ours is imported.
"""

import ast
import functools
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("medim", "pipeline", "stages", "flows")
EVERYWHERE = (*ROOMS, "tests", "benchmarks")

# Inside medim a file imports from its own tier or a lower one, and never in a circle. Names are files or folders.
TIERS = (
    ("vocab", "pairs", "precision", "distributed", "training", "residual_cnn"),
    ("systems", "system_loading", "gguf_decoder"),
    ("data", "tokenizers", "diffusion", "metrics"),
    ("backbones",),
    ("model", "pretrained"),
    (
        "medim_training",
        "backbone_pretraining",
        "spliced_reports",
        "tower_pretraining",
        "likelihood",
        "questions",
        "generation",
        "generation_shards",
        "serving",
        "side_answers",
        "evaluation",
        "vqgan_evaluation",
        "report_filter",
        "synthesis_prompts",
        "synthesis",
        "synthesis_filters",
    ),
    ("baselines",),
    (
        "paper_numbers",
        "tables",
        "table_cells",
        "further_rows",
        "table_render",
        "mission",
        "figures",
        "paper_figures",
        "sample_sheets",
        "bar_charts",
        "reader_page",
        "reader_preparation",
        "reader_results",
        "synthesis_card",
        "synthesis_shards",
        "downstream",
        "downstream_gains",
    ),
)
FORBIDDEN = {  # room -> packages that none of its files imports, at any place
    "medim": {"yaml", "ruamel", "dvc", "prefect", "mlflow", "pydantic", "pipeline", "stages", "flows"},
    "pipeline": {"medim", "stages", "flows", "transformers", "prefect"},
    "stages": {"flows", "yaml", "ruamel", "dvc", "prefect", "mlflow", "torch", "transformers"},
    "flows": {"medim", "stages", "torch", "transformers", "mlflow"},
}
INSIDE_FUNCTIONS = {  # room -> packages that only functions (and TYPE_CHECKING blocks) import
    "pipeline": {"torch", "mlflow", "ray"},
    "medim": {"pydicom", "openslide", "f1chexbert", "radgraph", "radeval"},
}
MODEL_FROM_CODE = "pipeline/served_model.py"  # MLflow runs it: it imports mlflow at its top, and nobody imports it
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "core"}


def files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def nodes(path):
    return tuple(ast.walk(tree(path)))


def is_call(node, function):
    return isinstance(node, ast.Call) and ast.unparse(node.func) == function


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


OURS = {module_of(path): path for path in files(*ROOMS)}


@functools.cache
def imports(path):
    """(dotted module, inside a function or TYPE_CHECKING) of every import; `from a import b` is a.b where that is a
    module of ours, else a."""
    found = []
    package = path.relative_to(ROOT).parent.parts

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else ()
                base = ".".join((*above, *([child.module] if child.module else [])))
                targets = {f"{base}.{alias.name}" for alias in child.names}
                found.extend((target if target in OURS else base, inside) for target in sorted(targets))
            else:
                checking = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                visit(child, inside or checking or function)

    visit(tree(path), False)
    return found


def tier_of(module):
    part = module.split(".")[1]
    places = [number for number, names in enumerate(TIERS) if part in names]
    assert places, f"{module}: say in TIERS of tests/test_architecture.py between which tiers medim/{part} stands"
    return places[0]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in files(room)
        for module, _ in imports(path)
        if module.split(".")[0] in FORBIDDEN[room]
    ]
    assert not wrong


@pytest.mark.parametrize("room", sorted(INSIDE_FUNCTIONS))
def test_heavy_packages_are_imported_inside_functions(room):
    wrong = [
        f"{name_of(path)} imports {module} at its top"
        for path in files(room)
        for module, inside in imports(path)
        if module.split(".")[0] in INSIDE_FUNCTIONS[room] and not inside and name_of(path) != MODEL_FROM_CODE
    ]
    assert not wrong


def test_nobody_imports_the_file_that_mlflow_runs():
    own = module_of(ROOT / MODEL_FROM_CODE)
    assert not [name_of(path) for path in files(*ROOMS) for module, _ in imports(path) if module == own]


def test_medim_imports_upwards_only():
    wrong = [
        f"{name_of(path)} (tier {tier_of(module_of(path))}) imports {module} (tier {tier_of(module)})"
        for path in files("medim")
        for module, _ in imports(path)
        if module.startswith("medim.") and module_of(path) != "medim" and tier_of(module) > tier_of(module_of(path))
    ]
    assert not wrong


def test_the_one_training_loop_knows_nothing_of_what_it_trains():
    ours = {module for module, _ in imports(ROOT / "medim/training.py") if module.split(".")[0] in ROOMS}
    assert ours == {"medim.precision", "medim.distributed"}
    for name in sorted(ours):
        assert not [module for module, _ in imports(OURS[name]) if module.split(".")[0] in ROOMS]


def test_modules_import_each_other_in_no_circle():
    edges = {m: {target for target, _ in imports(path) if target in OURS} - {m} for m, path in OURS.items()}
    done = set()

    def visit(module, above):
        assert module not in above, f"a circle of imports: {' -> '.join([*above, module])}"
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, [*above, module])
            done.add(module)

    for module in edges:
        visit(module, [])


def defines_method(path):
    """Whether a file of medim/baselines is a method: it defines METHOD."""
    return any(
        isinstance(node, ast.Assign | ast.AnnAssign) and "METHOD" in {
            target.id
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for node in tree(path).body
    )  # fmt: skip


def test_a_baseline_never_imports_another_baseline():
    methods = {module_of(path): path for path in files("medim/baselines") if defines_method(path)}
    assert methods
    wrong = [
        f"{name_of(path)} imports {module}"
        for own, path in methods.items()
        for module, _ in imports(path)
        if any(module == other or module.startswith(f"{other}.") for other in methods if other != own)
    ]
    shared = [
        f"{name_of(path)} imports {module}"
        for path in files("medim/baselines")
        if not defines_method(path)
        for module, _ in imports(path)
        if module in methods
    ]
    assert not wrong + shared, "what two methods share is a file of its own, which imports no method"


def test_a_stage_is_short_and_imports_no_other_stage():
    for path in files("stages"):
        assert len(path.read_text().splitlines()) <= 80, f"{name_of(path)} has more than 80 lines"
        assert [module for module, _ in imports(path) if module.split(".")[0] == "stages"] == [], name_of(path)


@pytest.mark.parametrize("folder", EVERYWHERE)
def test_files_and_functions_are_short(folder):
    long = []
    for path in files(folder):
        lines = len(path.read_text().splitlines())
        long += [f"{name_of(path)}: {lines} lines"] if lines > 400 else []
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                long += [f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines"] if lines > 60 else []
    assert not long, "files have at most 400 lines, functions 60"


def test_names_say_what_a_file_holds():
    assert [name_of(path) for path in files(*EVERYWHERE) if VAGUE_NAMES & set(re.split(r"[_/.]", name_of(path)))] == []


def test_init_files_are_empty_but_for_the_lazy_registries():
    filled = [name_of(path) for path in files(*ROOMS) if path.name == "__init__.py" and path.read_text().strip()]
    assert filled == ["medim/baselines/__init__.py", "medim/data/__init__.py"]


def comments(path):
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("folder", EVERYWHERE)
def test_nothing_is_left_for_later(folder):
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [f"{name_of(p)}:{line} {text}" for p in files(folder) for line, text in comments(p) if later.search(text)]
    found += [
        f"{name_of(path)}:{node.lineno} {node.id}"
        for path in files(folder)
        for node in nodes(path)
        if isinstance(node, ast.Name) and node.id == "NotImplementedError"
    ]
    assert not found


def says_nothing(body):
    return all(isinstance(part, ast.Pass) or ast.unparse(part) == "..." for part in body)


def swallows(node):
    """An `except` with an empty body, a bare `except:`, or `suppress` of every error."""
    if isinstance(node, ast.ExceptHandler):
        return node.type is None or says_nothing(node.body)
    if is_call(node, "suppress") or is_call(node, "contextlib.suppress"):
        return any(ast.unparse(argument) in ("Exception", "BaseException") for argument in node.args)
    return False


def test_what_counts_as_swallowed():
    kept = "try: f()\nexcept OSError as e: print(e)"
    lost = "try: f()\nexcept OSError: pass"
    every = "with suppress(Exception): f()"
    assert [any(map(swallows, ast.walk(ast.parse(text)))) for text in (kept, lost, every)] == [False, True, True]


@pytest.mark.parametrize("room", ROOMS)
def test_no_error_is_swallowed(room):
    wrong = [f"{name_of(p)}:{node.lineno}" for p in files(room) for node in nodes(p) if swallows(node)]
    assert not wrong, "an error is handled or passed on; what may be ignored is said in words, not in an empty except"


# Law 2: a setting that nothing reads is an error.


@functools.cache
def dataclasses_of(folder):
    """Class name -> {field: names in its annotation}, for all dataclasses of a folder."""
    found = {}
    for path in files(folder):
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
                found[node.name] = {field.target.id: names_in(field.annotation) for field in fields}
    return found


def names_in(annotation):
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


@functools.cache
def aliases_of(folder):
    """Alias -> names, for `Source = DrawnSource | FolderSource` at the top of a file."""
    return {
        node.targets[0].id: names_in(node.value)
        for path in files(folder)
        for node in tree(path).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.BinOp)
    }


def fields_within(kind, known, aliases):
    """{(class, field)} of a dataclass and of those in its fields."""
    found, todo, seen = set(), [kind], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += sorted(aliases.get(name, ()))
        for field, names in known.get(name, {}).items():
            found.add((name, field))
            todo += sorted(names)
    return found


@functools.cache
def attributes_read(*folders):
    """Names of all attributes that are read, and patterns of those read by `getattr(x, f"{modality}_steps")`."""
    names, patterns = set(), set()
    for node in (node for path in files(*folders) for node in nodes(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        elif (
            is_call(node, "getattr") and ast.unparse(node.args[0]) != "self"
        ):  # a class that checks itself reads nothing
            parts = node.args[1].values if isinstance(node.args[1], ast.JoinedStr) else ()
            texts = [re.escape(part.value) if isinstance(part, ast.Constant) else r"[a-z]+" for part in parts]
            patterns |= {"".join(texts)} if len(texts) > 1 else set()
    return names, tuple(sorted(patterns))


def is_read(field):
    names, patterns = attributes_read("medim", "stages")
    return field in names or any(re.fullmatch(pattern, field) for pattern in patterns)


def section_of(stage):
    """The stage's Section, as in `dataclasses_of`."""
    for node in tree(ROOT / "stages" / f"{stage}.py").body:
        if isinstance(node, ast.ClassDef) and node.name == "Section":
            fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
            return {"Section": {field.target.id: names_in(field.annotation) for field in fields}}
    return {}


STAGES = [path.stem for path in files("stages") if path.name != "__init__.py"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_is_read(stage):
    known = dataclasses_of("medim") | section_of(stage)
    fields = fields_within("Section", known, aliases_of("medim"))
    assert fields, f"stages/{stage}.py defines no Section"
    # The lists of instances are read by dvc.yaml's matrices; test_dvc_yaml.py holds that they are.
    lists = {("Section", name) for name in ("models", "methods", "variants", "generators", "arms")}
    unread = sorted(f"{kind}.{field}" for kind, field in fields - lists if not is_read(field))
    assert not unread, f"params.yaml:{stage} holds settings that no code reads"
