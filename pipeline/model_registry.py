"""The model of a finished repro in MLflow's registry, for `mlflow.pyfunc.load_model("models:/medim@phantom")`.

A version is made where no version has the same weights and settings; the alias with the world's name points to the one
of the world's last repro. Weights are plain files (safetensors, JSON): the model is code (served_model.py), so nothing
is pickled. The package that opens it is logged with it, since this project is on no package index and a version shall
answer tomorrow as it does today; what the package needs from there is pinned to this environment's versions.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.paths import World
from pipeline.repro_record import DIGEST
from pipeline.stage import content_hash
from pipeline.tracking_repros import Repro
from pipeline.tracking_store import digest, ui_address, uploading
from pipeline.tracking_tables import Shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

FORMAT = b"1"  # raise it when the same weights are to be logged in another way
SCRIPT = Path(__file__).with_name("served_model.py")
PACKAGES = (
    *("mlflow", "torch", "transformers", "tokenizers", "safetensors", "sentencepiece", "numpy", "scipy", "pandas"),
    *("pyarrow", "pillow", "tqdm"),
)


def show_model(client: MlflowClient, world: World, repro: Repro) -> Shown | None:
    """Register the model of a repro; None where it has none, or where the files have changed since."""
    served, hashes = repro.record["served"], repro.record["models"]
    folders = {name: world.model(name) for name in served["models"]}
    if set(hashes) != set(folders) or not all(folder.is_dir() for folder in folders.values()):
        return None
    if any(content_hash(folder)[:DIGEST] != hashes[name] for name, folder in folders.items()):
        print(f"MLflow: {served['name']} of {world.name} has changed since the last finished repro, none registered")
        return None
    config = {"opens": served["opens"], "settings": repro.record["params"][served["section"]]}
    content = digest(FORMAT, json.dumps([hashes, config], sort_keys=True).encode())
    name = served["name"]
    known = _version_of(client, name, content)
    version = known or _register(client, name, content, config, folders, repro)
    if world.name not in client.get_model_version(name, version).aliases:
        client.set_registered_model_alias(name, world.name, version)
    address = f"{ui_address()}/#/models/{name}/versions/{version}"
    return Shown(f"models:/{name}@{world.name}", name, address, known is None)


def _version_of(client: MlflowClient, name: str, content: str) -> str | None:
    """The version with this content; the registered model is made where it is missing."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    found = [one for one in client.search_model_versions(f"name = '{name}'") if one.tags.get("content") == content]
    return str(found[0].version) if found else None


def _register(
    client: MlflowClient, name: str, content: str, config: Mapping[str, Any], folders: Mapping[str, Path], repro: Repro
) -> str:
    tags = {"content": content, "world": repro.record["world"], "git_commit": repro.record["commit"] or "none"}
    tags |= {f"hash.{model}": value for model, value in repro.record["models"].items()}
    logged = client.create_logged_model(repro.experiment, name=name, source_run_id=repro.run, tags=tags)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_served(folder, config, folders, run=repro.run, model=logged.model_id)
        with uploading():
            client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    place = logged.artifact_location  # `models:/<id>` would be looked up in the store that is global to the process
    made = client.create_model_version(name, place, run_id=repro.run, tags=tags, model_id=logged.model_id)
    return str(made.version)


def save_served(
    folder: Path, config: Mapping[str, Any], folders: Mapping[str, Path], run: str | None = None,
    model: str | None = None,
) -> None:  # fmt: skip
    """Write an MLflow model folder.

    Args:
        folder: must not be there.
        config: `opens` ("module:function") and `settings`, see served_model.py. The module says in INPUTS and OUTPUTS
            which columns there are.
        folders: name -> folder of weights.
        run: id of the run that it belongs to; `model`: of the logged model.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    module = import_module(config["opens"].partition(":")[0])
    package = import_module(module.__name__.partition(".")[0]).__file__
    assert package is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")
        save_model(
            folder, python_model=str(SCRIPT), model_config=dict(config), signature=_signature(module),
            artifacts={name: str(path.resolve()) for name, path in folders.items()},
            code_paths=[str(Path(package).parent)], pip_requirements=list(_requirements()),
            mlflow_model=Model(run_id=run, model_id=model),
        )  # fmt: skip


def _signature(module: Any) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = [ColSpec(kind, name, required=required) for name, (kind, required) in module.INPUTS.items()]
    return ModelSignature(Schema(inputs), Schema([ColSpec(kind, name) for name, kind in module.OUTPUTS.items()]))


def _requirements() -> Iterator[str]:
    """`package==version`; what follows a `+` (torch's build) is left to the one who installs it."""
    for package in PACKAGES:
        yield f"{package}=={metadata.version(package).partition('+')[0]}"
