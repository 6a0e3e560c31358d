"""The commands of docs/dvc.md on a finished run of the small graph: settings, numbers, curves, experiments, remotes."""

import json
import shutil

import pytest
from worlds import Clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SHORT = "pretrain_towers.optim.lr"


@pytest.fixture
def committed(fresh):
    """The finished clone with everything in Git."""
    fresh.call("git", "config", "user.name", "A")
    fresh.call("git", "config", "user.email", "a@example.org")
    fresh.call("git", "add", "-A")
    fresh.call("git", "commit", "-qm", "Results")
    return fresh


def learning_rate(clone):
    return clone.params()["pretrain_towers"]["optim"]["lr"]


def test_differences_of_settings_and_numbers_are_shown(committed):
    assert json.loads(committed.call("dvc", "params", "diff", "--json")) == {}
    committed.edit("params.yaml", "seed: 0", "seed: 1")
    assert json.loads(committed.call("dvc", "params", "diff", "--json"))["params.yaml"]["seed"] == {
        "old": 0, "new": 1, "diff": 1,
    }  # fmt: skip
    file = "runs/small/summary/chest.json"
    shown = json.loads(committed.call("dvc", "metrics", "show", "--json"))
    numbers = shown[""]["data"][file]["data"]
    assert "image_to_report/finding_f1" in numbers
    assert max(map(len, committed.call("dvc", "metrics", "show").splitlines())) < 2000, "a table that people can read"
    summary = committed.folder / file
    name = next(iter(numbers))
    summary.unlink()  # it may be a link into the cache
    summary.write_text(json.dumps(numbers | {name: 7.5}))
    (changed,) = json.loads(committed.call("dvc", "metrics", "diff", "--json"))[file].values()
    assert changed == {"old": numbers[name], "new": 7.5, "diff": 7.5 - numbers[name]}


def test_curves_and_sheets_are_plotted(committed):
    committed.call("dvc", "plots", "show")
    page = (committed.folder / "dvc_plots/index.html").read_text()
    for name in ("MeDiM, training", "VQGAN, training", "finding reader, training", "medim/loss", "nelbo_text"):
        assert name in page
    assert "vqgan.png" in page
    committed.call("dvc", "plots", "diff", "HEAD")
    assert list((committed.folder / "dvc_plots/static").glob("*samples_medim*"))


def test_an_experiment_changes_settings_in_place_and_leaves_without_a_trace(committed):
    before, rate = committed.lock(), learning_rate(committed)
    said = committed.call("dvc", "exp", "run", "-n", "slower", "-S", f"{SHORT}=0.00025", "pretrain_towers")
    assert "Running stage 'pretrain_towers'" in said and "Running stage 'train_vqgan'" not in said
    assert learning_rate(committed) == 0.00025
    committed.call("git", "checkout", "-q", ".")
    committed.call("dvc", "checkout")
    assert (committed.lock(), learning_rate(committed)) == (before, rate)
    assert committed.call("dvc", "status").strip() == "Data and pipelines are up to date."
    committed.call("dvc", "exp", "apply", "slower")
    assert learning_rate(committed) == 0.00025
    assert committed.call("dvc", "status", "pretrain_towers").strip() == "Data and pipelines are up to date."
    assert "slower" in committed.call("dvc", "exp", "show", "--only-changed", "--no-pager")
    cached = len(cache_files(committed))
    committed.call("dvc", "gc", "--workspace", "--force")
    assert 0 < len(cache_files(committed)) < cached, "the towers of before are gone"
    assert committed.call("dvc", "status", "pretrain_towers").strip() == "Data and pipelines are up to date."


def cache_files(clone):
    return [path for path in (clone.folder / ".dvc/cache/files").rglob("*") if path.is_file()]


def test_the_graph_is_shown_and_what_was_made_by_hand_is_committed(committed):
    assert "train_medim@medim" in committed.call("dvc", "dag")
    before = committed.lock()
    committed.call("dvc", "commit", "-f", "train_medim@medim")
    assert committed.lock() == before, "nothing differs"


def test_a_moved_cache_is_used_where_it_lies(committed, tmp_path):
    committed.call("git", "clone", "-q", str(committed.folder), str(tmp_path / "other"))
    clone = Clone(tmp_path / "other")
    clone.loaded.mkdir()
    clone.call("dvc", "cache", "dir", "--local", str(committed.folder / ".dvc/cache"))
    clone.call("dvc", "checkout")
    assert clone.repro() == ({"record_tables"}, set()), "its MLflow has no tables yet"


def test_queued_experiments_run_in_folders_of_their_own(committed):
    rate = learning_rate(committed)
    for name, value in (("a", "0.0003"), ("b", "0.0004")):
        committed.call("dvc", "exp", "run", "--queue", "-n", name, "-S", f"{SHORT}={value}", "pretrain_towers")
    committed.call("dvc", "queue", "start")  # PATH holds .venv/bin, as docs/dvc.md says
    committed.call("dvc", "queue", "logs", "--follow", "a")
    committed.call("dvc", "queue", "logs", "--follow", "b")
    said = committed.call("dvc", "queue", "status")
    assert said.count("Success") == 2, said
    assert learning_rate(committed) == rate
    committed.call("dvc", "exp", "apply", "b")
    assert learning_rate(committed) == 0.0004


def pulled(committed, tmp_path, **env):
    """A clone without a cache takes everything from the remote `store`; which stages it then runs and finds cached."""
    other = tmp_path / "other"
    committed.call("git", "clone", "-q", str(committed.folder), str(other))
    clone = Clone(other)
    clone.loaded.mkdir()
    shutil.copy2(committed.folder / ".dvc/config.local", other / ".dvc/config.local")
    clone.call("dvc", "pull", **env)
    assert (other / "runs/small/models/medim/model.safetensors").read_bytes() == (
        committed.folder / "runs/small/models/medim/model.safetensors"
    ).read_bytes()
    return clone.repro()


def test_a_folder_as_remote_gives_a_fresh_clone_everything_and_another_project_a_model(committed, tmp_path):
    committed.call("dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    committed.call("dvc", "push")
    assert pulled(committed, tmp_path) == ({"record_tables"}, set()), "its MLflow has no tables yet"
    committed.call("git", "tag", "-a", "medim@v1.0.0", "-m", "first")
    source = str(committed.folder)
    committed.call("dvc", "artifacts", "get", source, "medim", "--rev", "v1.0.0", "-o", str(tmp_path / "taken"))
    assert (tmp_path / "taken/model.safetensors").is_file() and (tmp_path / "taken/curves.csv").is_file()


def test_an_s3_server_as_remote_gives_a_fresh_clone_everything(committed, tmp_path):
    pytest.importorskip("dvc_s3", reason="MEDIM_EXTRAS=dev,medical,s3 ./setup")
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y"
        )
        client.create_bucket(Bucket="bucket")
        committed.call("dvc", "remote", "add", "--local", "-d", "store", "s3://bucket/medim")
        committed.call("dvc", "remote", "modify", "--local", "store", "endpointurl", address)
        committed.call("dvc", "push", **keys)
        assert client.list_objects_v2(Bucket="bucket")["KeyCount"] > 20
        assert pulled(committed, tmp_path, **keys) == ({"record_tables"}, set())
    finally:
        server.stop()
