"""The hash of the code that a stage instance runs: DVC depends on it, so an edit reruns what it can change and no more.

A stage's code is the import closure of stages/<stage>.py over our own packages. Comments, docstrings and layout do not
count: each file is hashed as `ast.unparse` of its tree without docstrings. (Another Python version may unparse
differently; then everything runs once more.) Imports under `if TYPE_CHECKING` do not count either.

A package whose `__init__.py` maps names to modules by text, or lists names of its modules, loads them lazily
(medim.data, medim.baselines); a stage that imports such a package reaches all of its modules, except that packages in
NAMED_BY_INSTANCE give a stage with a matrix only the modules whose names stand in the instance
(`train_baseline@unidisc` reaches medim.baselines.unidisc). SYSTEMS loads the module that a trained folder's config.json
names under "system": the method that the instance names, or else what the code outside NAMED_BY_INSTANCE writes there.
TRANSPARENT modules say where files are and what params.yaml may hold (files and values are dependencies of their own),
or show what a stage does while it runs.

Data files that code reads count by their bytes: every non-Python file with a module's stem beside it, and the names in
a module's constant DATA_FILES (relative to the module).
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.params_file import ParamsError, read_yaml

PACKAGES = ("medim", "pipeline", "stages")
NAMED_BY_INSTANCE = ("medim.baselines",)
SYSTEMS = "medim.system_loading"
TRANSPARENT = (
    "pipeline.params", "pipeline.params_checked", "pipeline.params_file", "pipeline.params_names", "pipeline.paths",
    "pipeline.tracking_live",
)  # fmt: skip
CACHE = Path(".work/code_hash.json")
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Instance:
    """One stage instance of dvc.yaml: `train_medim@medim` is stage train_medim with items {"variant": "medim"}."""

    stage: str
    items: tuple[tuple[str, str], ...]  # matrix key -> value, in dvc.yaml's order

    @property
    def name(self) -> str:
        """DVC's name."""
        return self.stage if not self.items else f"{self.stage}@{'-'.join(value for _, value in self.items)}"


@dataclass(frozen=True)
class Module:
    """What one source file says about itself."""

    digest: str  # of the code without comments and docstrings
    imports: tuple[str, ...]  # dotted names, `from a import b` as both `a.b` and `a`
    registry: tuple[tuple[str, str], ...]  # name -> dotted module
    data_files: tuple[str, ...]
    systems: tuple[str, ...]  # modules in entries {"system": "medim.x"}


class Sources:
    """The source tree under `root`; files are parsed once, and once ever where `cache` (a file) is given."""

    def __init__(self, root: Path, cache: Path | None = None) -> None:
        self.root, self.cache = root, cache
        self._modules: dict[Path, Module] = {}
        self._known: dict[str, Any] = {}
        if cache is not None and cache.is_file():
            self._known = json.loads(cache.read_text(encoding="utf-8"))
        self._used: dict[str, Any] = {}
        self._reader = f"{sys.version_info[:2]} {_file_hash(Path(__file__))}"  # another reader, another cache entry
        self._parsed = False
        self.find = lru_cache(maxsize=None)(self._find)

    def _find(self, name: str) -> Path | None:
        """The file of a dotted module name of ours, relative to the root; None where there is none."""
        if name.split(".")[0] not in PACKAGES:
            return None
        base = Path(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if (self.root / path).is_file():
                return path
        return None

    def module(self, path: Path) -> Module:
        """The parsed file (path relative to the root)."""
        if path not in self._modules:
            source = (self.root / path).read_bytes()
            key = hashlib.sha256(f"{self._reader} {path}\n".encode() + source).hexdigest()
            if key not in self._known:
                self._known[key] = asdict(_parse(source.decode("utf-8"), path))
                self._parsed = True
            self._used[key] = self._known[key]
            self._modules[path] = _from_cache(self._known[key])
        return self._modules[path]

    def save(self) -> None:
        """Write the cache; what no file has any more is forgotten."""
        if self.cache is not None and (self._parsed or len(self._used) < len(self._known)):
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            partial = self.cache.with_suffix(".partial")
            partial.write_text(json.dumps(self._used), encoding="utf-8")
            partial.replace(self.cache)


def _from_cache(data: Mapping[str, Any]) -> Module:
    registry = tuple((str(name), str(module)) for name, module in data["registry"])
    rest = (tuple(data[key]) for key in ("data_files", "systems"))
    return Module(str(data["digest"]), tuple(data["imports"]), registry, *rest)


def _parse(source: str, path: Path) -> Module:
    tree = ast.parse(source, str(path))
    package = path.parent.parts
    imports = tuple(sorted(set(_imports(tree, package))))
    constants = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    registry = (
        tuple(pair for node in constants for pair in _registry(node, package)) if path.name == "__init__.py" else ()
    )
    systems = tuple(sorted(set(_systems(tree))))
    data_files = tuple(name for node in constants for name in _data_files(node, path))
    return Module(hashlib.sha256(code_text(tree).encode()).hexdigest(), imports, registry, data_files, systems)


def code_text(tree: ast.Module) -> str:
    """The code of a module without comments, docstrings and layout (the tree is changed)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from _imports(ast.Module([other], []), package)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield from (f"{base}:{alias.name}" for alias in node.names)
        else:
            yield from _imports(node, package)


def _systems(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "system" and isinstance(value, ast.Constant):
                    yield str(value.value)


def _registry(node: ast.Assign | ast.AnnAssign, package: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name, module) of a mapping from names to dotted module names (`medim.x.y:Class` too), or of a list of names."""
    if isinstance(node.value, ast.Tuple | ast.List):
        texts = [part.value for part in node.value.elts if isinstance(part, ast.Constant)]
        yield from (
            (text, ".".join((*package, text))) for text in texts if isinstance(text, str) and text.isidentifier()
        )
    if not isinstance(node.value, ast.Dict):
        return
    for key, value in zip(node.value.keys, node.value.values, strict=True):
        if not isinstance(key, ast.Constant):
            continue
        for part in ast.walk(value):
            text = part.value if isinstance(part, ast.Constant) else None
            if isinstance(text, str) and text.split(".")[0] in PACKAGES and "." in text:
                yield str(key.value), text.partition(":")[0]


def _data_files(node: ast.Assign | ast.AnnAssign, path: Path) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if node.value is None or not any(isinstance(t, ast.Name) and t.id == "DATA_FILES" for t in targets):
        return
    try:
        names = ast.literal_eval(node.value)
    except ValueError as error:
        raise ValueError(f"{path}: DATA_FILES must be a literal tuple of file names") from error
    yield from (str(name) for name in names)


def closure(entry: str, sources: Sources, items: Iterable[str] = ()) -> list[Path]:
    """Files that running a module may run, sorted, relative to the root.

    Args:
        entry: dotted name, e.g. `stages.train_medim`.
        sources: the source tree.
        items: values of the instance's matrix; they choose from the registries in NAMED_BY_INSTANCE.

    Raises:
        FileNotFoundError: there is no such module, or a registry names one that is missing.
    """
    chosen = tuple(items)
    if sources.find(entry) is None:
        raise FileNotFoundError(f"there is no module {entry} under {sources.root.resolve()}")
    reached = _Reached(sources, chosen)
    reached.add([(entry, True)])
    if SYSTEMS in reached.names():
        reached.add((name, True) for name in _system_modules(sources, chosen))
        while more := {name for path in reached.files for name in sources.module(path).systems} - reached.names():
            reached.add((name, True) for name in more)
            if not more & reached.names():
                break  # names of modules that are not ours
    return sorted(reached.files)


class _Reached:
    """A growing set of modules, closed under imports. The flag says whether the module's registry counts, which it
    does not where only a submodule of the package is imported."""

    def __init__(self, sources: Sources, items: tuple[str, ...]) -> None:
        self.sources, self.items = sources, items
        self.seen: set[tuple[str, bool]] = set()
        self.files: set[Path] = set()

    def names(self) -> set[str]:
        """Dotted names."""
        return {name for name, _ in self.seen}

    def add(self, modules: Iterable[tuple[str, bool]]) -> None:
        """Add modules and all that they import."""
        todo = list(modules)
        while todo:
            name, direct = todo.pop()
            path = self.sources.find(name)
            if (name, direct) in self.seen or path is None or name in TRANSPARENT:
                continue
            self.seen.add((name, direct))
            self.files.add(path)
            module = self.sources.module(path)
            todo += [(target, True) for target in _targets(module.imports, self.sources)]
            todo += [(parent, False) for parent in _parents(name)]
            todo += [(target, True) for target in _registered(name, module, self.items, self.sources)] if direct else []


def _system_modules(sources: Sources, items: tuple[str, ...]) -> Iterator[str]:
    """What SYSTEMS may load: the methods that the instance names, or else all other systems (both without a matrix)."""
    named: list[str] = []
    for package in NAMED_BY_INSTANCE:
        path = sources.find(package)
        named += [] if path is None else _registered(package, sources.module(path), items, sources)
    yield from named
    if not named or not items:
        for path in sorted((sources.root / "medim").rglob("*.py")):
            inner = path.relative_to(sources.root)
            if not any(inner.is_relative_to(package.replace(".", "/")) for package in NAMED_BY_INSTANCE):
                yield from sources.module(inner).systems


def _targets(imports: Iterable[str], sources: Sources) -> Iterator[str]:
    for text in imports:
        base, _, attribute = text.partition(":")
        submodule = f"{base}.{attribute}" if attribute else base
        yield submodule if sources.find(submodule) is not None else base


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts)))


def _registered(name: str, module: Module, items: tuple[str, ...], sources: Sources) -> Iterator[str]:
    listed = f"{name}."
    for key, target in module.registry:
        if sources.find(target) is None:
            if target == listed + key:
                continue  # a list of other texts than module names
            raise FileNotFoundError(f"{sources.find(name)} names {target} for {key!r}, and there is no such module")
        if name not in NAMED_BY_INSTANCE or not items or key in items:
            yield target


def data_files(path: Path, sources: Sources) -> list[Path]:
    """Files that belong to a module: same stem beside it, and its DATA_FILES.

    Raises:
        FileNotFoundError: a file in DATA_FILES is missing.
    """
    folder = sources.root / path.parent
    beside = [f for f in folder.glob(f"{path.stem}.*") if f.is_file() and f.suffix not in (".py", ".pyc", ".pyi")]
    named = [folder / name for name in sources.module(path).data_files]
    for file in named:
        if not file.is_file():
            raise FileNotFoundError(f"{path}: DATA_FILES names {file}, which is missing")
    return sorted({file.relative_to(sources.root) for file in [*beside, *named]})


def hash_text(instance: Instance, sources: Sources) -> str:
    """The content of code/<instance>.txt: one hash over all, then one line a file, so that a diff says what changed."""
    lines: list[str] = []
    for path in closure(f"stages.{instance.stage}", sources, (value for _, value in instance.items)):
        lines.append(f"{sources.module(path).digest}  {path.as_posix()}")
        lines += [f"{_file_hash(sources.root / file)}  {file.as_posix()}" for file in data_files(path, sources)]
    lines = sorted(set(lines), key=lambda line: line.split("  ")[1])
    return "\n".join([hashlib.sha256("\n".join(lines).encode()).hexdigest(), *lines]) + "\n"


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def instances(dvc: Mapping[str, Any], params: Mapping[str, Any]) -> list[Instance]:
    """Every stage instance of a dvc.yaml with these params, in its order.

    Raises:
        ParamsError: a matrix names a parameter that is missing or no list of texts and numbers, or a `foreach` is used.
    """
    found: list[Instance] = []
    for stage, body in dvc["stages"].items():
        if "foreach" in body:
            raise ParamsError(f"dvc.yaml:{stage}: use matrix instead of foreach")
        axes = {
            key: _axis(values, params, f"dvc.yaml:{stage}.matrix.{key}")
            for key, values in body.get("matrix", {}).items()
        }
        found += [Instance(stage, tuple(zip(axes, combo, strict=True))) for combo in itertools.product(*axes.values())]
    return found


def _axis(values: Any, params: Mapping[str, Any], place: str) -> list[str]:
    reference = REFERENCE.fullmatch(values) if isinstance(values, str) else None
    if reference is not None:
        node: Any = params
        for key in reference[1].split("."):
            if not isinstance(node, Mapping) or key not in node:
                raise ParamsError(f"{place}: params.yaml has no {reference[1]}")
            node = node[key]
        values = node
    if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values):
        raise ParamsError(f"{place}: expected a list of texts or numbers, got {values!r}")
    return [str(value) for value in values]


def write_hashes(
    out: Path = Path("code"), root: Path = Path(), params: Path = Path("params.yaml"), cache: Path | None = CACHE
) -> list[str]:
    """Write `<out>/<instance>.txt` for every stage instance of dvc.yaml; files of instances that are gone are removed.

    `hash_code` itself gets none: its dependencies are the source folders. DVC deletes `out` before the stage, so what
    was written last is remembered beside the cache.

    Returns:
        Names of the instances whose hash is not what it was last time.
    """
    sources = Sources(root, cache)
    out.mkdir(parents=True, exist_ok=True)
    wanted: dict[Path, str] = {}
    for instance in instances(read_yaml(root / "dvc.yaml"), read_yaml(params)):
        if instance.stage != "hash_code":
            wanted[out / f"{instance.name}.txt"] = hash_text(instance, sources)
    for old in set(out.glob("*.txt")) - set(wanted):
        old.unlink()
    memory = None if cache is None else cache.with_name("code_hash_last.json")
    last: dict[str, str] = {path.stem: path.read_text(encoding="utf-8") for path in out.glob("*.txt")}
    if memory is not None and memory.is_file():
        last = json.loads(memory.read_text(encoding="utf-8")) | last
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    sources.save()
    now = {path.stem: text for path, text in wanted.items()}
    if memory is not None:
        memory.write_text(json.dumps(last | now, indent=1), encoding="utf-8")
    return [name for name, text in now.items() if last.get(name) != text]
