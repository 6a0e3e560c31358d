"""MLflow's pages in a real browser: `mlflow ui` over one folder's store, and Debian's Chromium without a window.

Nothing is downloaded and nothing outside this machine is asked: Chromium resolves no other name than 127.0.0.1.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
FOLD_ASSISTANT = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
READ_GRID = """() => {
  const rows = new Map(), headings = [];
  for (const head of document.querySelectorAll(".ag-header-cell[col-id^='metrics.']"))
    headings.push([head.getBoundingClientRect().left, head.innerText.trim()]);
  for (const row of document.querySelectorAll(".ag-row[row-index]")) {
    const index = Number(row.getAttribute("row-index"));
    if (!rows.has(index)) rows.set(index, {});
    for (const cell of row.querySelectorAll(".ag-cell[col-id]")) {
      const id = cell.getAttribute("col-id"), link = cell.querySelector("a");
      rows.get(index)[id] = (id === "attributes.`Run Name`" && link ? link : cell).innerText.trim();
    }
  }
  return {headings: headings.sort((a, b) => a[0] - b[0]).map(one => one[1]),
          rows: [...rows.keys()].sort((a, b) => a - b).map(index => rows.get(index))};
}"""
START = 180  # seconds until the server answers; 25 on an idle machine
PATIENCE = 60_000  # milliseconds until something stands in a page


def chromium_path():
    """The browser on PATH, or None."""
    return next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)


class Pages:
    """A running server. `address` is `http://127.0.0.1:<port>`."""

    def __init__(self, address, group):
        self.address, self.group = address, group

    def ask(self, path, **body):
        """MLflow's REST answer: by POST with a body, else by GET."""
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{self.address}/api/2.0/mlflow/{path}", data)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def run(self, experiment, name, tab):
        """A page of a current run: `model-metrics` (curves) or `artifacts/<path>`."""
        found = self.ask("experiments/search", max_results=1000)["experiments"]
        identity = next(one["experiment_id"] for one in found if one["name"] == experiment)
        wanted = f"tags.current = 'yes' AND attributes.run_name = '{name}'"
        (run,) = self.ask("runs/search", experiment_ids=[identity], filter=wanted, max_results=2)["runs"]
        path = f"#/experiments/{identity}/runs/{run['info']['run_id']}/{tab}"
        return f"{self.address}/{path}?workflowType=machine_learning"

    def here(self, link):
        """A link that `pipeline.tracking` printed, at this server's port."""
        return link.replace("http://127.0.0.1:5000", self.address)


@contextlib.contextmanager
def mlflow_pages(folder):
    """`mlflow ui` over folder/mlflow/mlflow.db on a free port; at the end no process of it is left."""
    port = _free_port()
    command = [
        sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///mlflow/mlflow.db",
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    env |= {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = Path(folder, "mlflow", "ui.log")
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        pages = Pages(f"http://127.0.0.1:{port}", server.pid)
        _wait_for(server, f"{pages.address}/health", log)
        yield pages
    finally:
        end_group(server)


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait_for(server, address, log):
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"mlflow ui ended with {server.returncode}:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise RuntimeError(f"mlflow ui did not answer within {START} s:\n{log.read_text()[-3000:]}")


def end_group(server, patience=10.0):
    """TERM, then KILL, to the server and all it started; returns when the group is empty."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        while time.monotonic() < deadline:
            server.poll()
            if not group_lives(server.pid):
                return
            time.sleep(0.1)
    raise RuntimeError(f"processes of group {server.pid} survive SIGKILL")


def group_lives(group):
    """Whether any process of a process group is left, zombies that nobody waited for aside."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = re.match(r".*\) (\S) (\d+) (\d+)", stat.read_text(), re.DOTALL).groups()
            if int(of) == group and state != "Z":
                return True
    return False


@contextlib.contextmanager
def browser_page(executable, width=1400, height=900):
    """A page of a fresh Chromium (playwright gives it a new user-data-dir and removes it at the end).

    MLflow opens its assistant on the first visit, over a quarter of the page; here it stays folded.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS), timeout=120_000)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(PATIENCE)
            page.add_init_script(FOLD_ASSISTANT)
            yield page
        finally:
            browser.close()


@contextlib.contextmanager
def profile_page(executable, profile, width=1400, height=900):
    """A page of a Chromium whose profile stays in a folder, as a user's does, so that what a page keeps outlives it.

    Pages of `browser_page` are private: their storage lies in memory, and a busy machine was seen to lose it on reload.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, args=list(FLAGS), timeout=120_000,
            viewport={"width": width, "height": height},
        )  # fmt: skip
        try:
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            yield page
        finally:
            context.close()


def table_in(page):
    """What the page's table shows: (headings of the metrics from left to right, {row: texts of its metrics})."""
    grid = page.evaluate(READ_GRID)
    shown = {}
    for row in grid["rows"]:
        values = [row.get(f"metrics.`{heading}`") for heading in grid["headings"]]
        shown[row.get("attributes.`Run Name`")] = values
    return grid["headings"], shown


def eventually(page, look, expected):
    """`look(page)` as soon as it is `expected`; what it was at last when the patience is over."""
    deadline = time.monotonic() + PATIENCE / 1000
    while (seen := look(page)) != expected and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    return seen


def wait_for_curve(page, metric=None):
    """Wait until the card of a metric (of any, without one) has a drawn line; returns the line's path."""
    title = f':has(h4[title="{metric}"])' if metric else ""
    line = page.locator(f'[data-testid="experiment-view-compare-runs-card"]{title} path.js-line').first
    line.wait_for(state="attached")
    return line.get_attribute("d")


def wait_for_picture(page, name):
    """Wait until an artifact's picture is decoded; returns its width and height in pixels."""
    picture = page.locator(f'img[alt="{name}"]')
    picture.wait_for(state="attached")
    page.wait_for_function("one => one.complete && one.naturalWidth > 0", arg=picture.element_handle())
    return picture.evaluate("one => [one.naturalWidth, one.naturalHeight]")
