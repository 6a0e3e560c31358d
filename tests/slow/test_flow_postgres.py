"""Prefect and MLflow keep what they know in PostgreSQL where one variable each says so: a real server, a real flow."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from benchmarks.small_flow import STAGES, SmallFlow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def programs():
    """Folder of PostgreSQL's programs, which Debian keeps off PATH."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders = [Path(found).resolve().parent] if found else debian
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


class Postgres:
    """A server of its own, at a free port of this machine. Root may not run one: then its user is postgres."""

    def __init__(self, folder):
        self.bin, self.data = programs(), folder / "data"
        self.user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if self.user:
            shutil.chown(folder, "postgres")
        self.call("initdb", "-D", self.data, "-A", "trust", "-U", "medim", "--no-sync")
        options = f"-p {self.port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.call("pg_ctl", "-D", self.data, "-w", "-t", "120", "-l", folder / "log", "-o", options, "start")

    def call(self, program, *arguments):
        """Run one of PostgreSQL's programs; returns what it printed."""
        command = [*self.user, str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def database(self, name):
        """Make a database; returns the part of its address after the driver."""
        self.call("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "medim", name)
        return f"medim@127.0.0.1:{self.port}/{name}"

    def count(self, database, table):
        """Rows of a table."""
        query = ["-h", "127.0.0.1", "-p", self.port, "-U", "medim", "-Atc", f"select count(*) from {table}", database]
        return int(self.call("psql", *query))

    def stop(self):
        """End the server."""
        self.call("pg_ctl", "-D", self.data, "-m", "immediate", "stop")


@pytest.fixture
def postgres():
    if programs() is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    folder = Path(tempfile.mkdtemp(prefix="medim-postgres-"))  # pytest's own folders are closed to other users
    server = Postgres(folder)
    yield server
    server.stop()
    shutil.rmtree(folder)


def test_one_variable_each_moves_both_databases(postgres, tmp_path):
    small = SmallFlow(
        tmp_path / "small",
        PREFECT_SERVER_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://{postgres.database('prefect')}",
        MLFLOW_TRACKING_URI=f"postgresql+psycopg://{postgres.database('mlflow')}",
    )
    try:
        small.start()
        run = small.run("--watch")
        assert small.state(run)[0] == "Completed" and small.started() == sorted(STAGES)
        assert "/#/experiments/" in small.artifacts(run)["downstream-augmentation-figure5b"]
        assert postgres.count("prefect", "flow_run") == 1 and postgres.count("prefect", "task_run") == len(STAGES)
        assert postgres.count("mlflow", "runs") == 2, "the table's row and the table itself"
        assert not list(small.folder.glob(".prefect/*.db")) and not (small.folder / "mlflow/mlflow.db").exists()
    finally:
        small.start("--stop")
