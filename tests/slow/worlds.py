"""Fresh clones of the working tree in which the whole graph runs with tiny parameters."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import yaml

from pipeline.params_file import parse_yaml, read_yaml

ROOT = Path(__file__).parents[2]
RAN = re.compile(r"^Running stage '([^']+)':", re.MULTILINE)
RESTORED = re.compile(r"^Stage '([^']+)' is cached - skipping run", re.MULTILINE)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# Laid over profiles/tiny.yaml: steps few enough for a test, checkpoints often enough to be killed between two of them.
OPTIM = {"steps": 12, "warmup": 2, "checkpoint_every": 3, "validate_every": 6, "log_every": 1, "batch_size": 8}
SMALL = {
    "threads": 1,
    "prepare_data": {
        "datasets": {
            "phantom_cxr": {"train": 48, "val": 8, "test": 8},
            "phantom_pathology": {"train": 48, "val": 8, "test": 8},
            "phantom_cxr_ood": {"train": 0, "val": 0, "test": 8},
            "drawings": {"train": 32, "val": 8, "test": 0},
            "marks": {"train": 32, "val": 8, "test": 0},
        }
    },
    "train_finding_reader": {"reader": {"pictures": 40, "held_out": 16}, "optim": OPTIM},
    "train_vqgan": {"val_pairs": 4, "training": {"loss": {"disc_start": 5}, "sheet_at": [4]}, "optim": OPTIM},
    "evaluate_vqgan": {"settings": {"resamples": 10, "set_resamples": 3}},
    "filter_reports": {"datasets": {"phantom_pathology": 6}},
    "pretrain_backbone": {"val_pairs": 4, "optim": OPTIM},
    "pretrain_towers": {"training": {"val_pairs": 4}, "optim": OPTIM},
    "train_medim": {"settings": {"val_pairs": 4}, "optim": OPTIM},
    "generate": {
        "pairs": 8,
        "joint": 8,
        "chunk": 8,
        "side": {"masks": 2},
        "sampler": {"text_steps": 4, "image_steps": 3},
    },
    "synthesize_pairs": {"settings": {"pairs": 8, "shard": 8, "chunk": 8}},
    "mix_pairs": {"pairs": 8},
    "evaluate": {"settings": {"resamples": 10, "quality": {"kid_subset_size": 8, "resamples": 3}}},
}

# Imported by every Python process of a clone: at its end it says which files of ours were loaded.
RECORDER = """
    import atexit, json, os, sys
    from pathlib import Path

    def record():
        stage = Path(sys.argv[0]).stem if sys.argv else ""
        if Path(sys.argv[0]).parent.name != "stages":
            return
        loaded = [m.__file__ for n, m in list(sys.modules.items())
                  if n.split(".")[0] in ("medim", "pipeline", "stages") and getattr(m, "__file__", None)]
        name = "-".join([stage, *sys.argv[2::2]])
        Path(os.environ["LOADED_FILES"], f"{name}.json").write_text(json.dumps([*loaded, os.path.abspath(sys.argv[0])]))

    if "LOADED_FILES" in os.environ:
        atexit.register(record)
"""


class Clone:
    """A repository of its own with the files of the working tree (committed or not) and params.yaml of `small`."""

    def __init__(self, folder):
        self.folder = folder
        self.loaded = folder.parent / f"{folder.name}-loaded"

    def environment(self, **more):
        """What a user's shell has after activating the environment, with caches of DVC that are the clone's own."""
        env = {name: value for name, value in os.environ.items() if name not in (*THREAD_VARIABLES, "DVC_STAGE")}
        return env | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
            "PYTHONPATH": f"{self.loaded}{os.pathsep}{self.folder}",
            "LOADED_FILES": str(self.loaded),
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / f"{self.folder.name}-site"),
            "DVC_NO_ANALYTICS": "1",
            "MEDIM_LIVE": "0",
            **more,
        }

    def call(self, *command, **env):
        """Run a command in the clone; returns what it said."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def python(self, *arguments, **env):
        """Run `python ...` in the clone."""
        return self.call(sys.executable, *arguments, **env)

    def repro(self, *targets):
        """`dvc repro`; returns the names of the stage instances that ran, and of those restored from the run cache."""
        said = self.call("dvc", "repro", *targets)
        return set(RAN.findall(said)), set(RESTORED.findall(said))

    def write_profile(self, name, changes):
        """profiles/<name>.yaml: tiny with changes, in a world of the profile's name."""
        overlay = parse_yaml((self.folder / "profiles/tiny.yaml").read_text(), "tiny")
        self.write_overlay(name, merged_mappings(overlay, changes))

    def write_overlay(self, name, overlay):
        """profiles/<name>.yaml, in a world of the profile's name."""
        merged = {**overlay, "profile": name, "world": name}
        (self.folder / f"profiles/{name}.yaml").write_text(yaml.safe_dump(merged, sort_keys=False))

    def switch(self, profile):
        """`python -m pipeline.profile NAME`."""
        self.python("-m", "pipeline.profile", profile)

    def params(self):
        """params.yaml as it is."""
        return read_yaml(self.folder / "params.yaml")

    def lock(self):
        """Bytes of dvc.lock."""
        return (self.folder / "dvc.lock").read_bytes()

    def edit(self, path, old, new):
        """Replace a text that stands once in a file."""
        file = self.folder / path
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} holds {old!r} {text.count(old)} times"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def files_loaded(self):
        """Stage instance -> files of ours that its process loaded, relative to the clone."""
        found = {}
        for path in sorted(self.loaded.glob("*.json")):
            stage, _, item = path.stem.partition("-")
            files = [Path(file).resolve() for file in json.loads(path.read_text())]
            found[f"{stage}@{item}" if item else stage] = {
                file.relative_to(self.folder.resolve()).as_posix() for file in files
            }
        return found

    def copy(self, folder):
        """Another clone with the same files, results and cache; nothing is shared.

        MLflow's database stays behind: it refers to its artifacts by absolute paths, and is built again from the files.
        """
        other = Clone(folder)
        mlflow = {f"{self.folder}/mlflow": ["mlflow.db", "artifacts"]}
        shutil.copytree(self.folder, folder, symlinks=True, ignore=lambda here, _: mlflow.get(here, []))
        shutil.copytree(self.loaded, other.loaded)
        return other


def merged_mappings(base, changes):
    """`base` with the values of `changes`, mapping by mapping."""
    out = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged_mappings(out[key], value) if both else value
    return out


def new_clone(folder, source=ROOT):
    """A clone of the files in `source` (this repository or another clone), without results and without dvc.lock."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=source, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (source / name).is_file() and name not in ("dvc.lock", "params.yaml"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target)
    clone = _recorded(folder)
    clone.call("git", "init", "-q")
    clone.write_profile("small", SMALL)
    clone.switch("small")
    return clone


def git_clone(folder):
    """What a user gets: a clone by git of what is committed here."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return _recorded(folder)


def _recorded(folder):
    clone = Clone(folder)
    clone.loaded.mkdir()
    (clone.loaded / "sitecustomize.py").write_text(textwrap.dedent(RECORDER))
    return clone
