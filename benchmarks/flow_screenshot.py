"""Draws the page of a flow run for docs/flows.md: python -m benchmarks.flow_screenshot [ID]     (default: the newest)

Needs this folder's Prefect server (`python -m flows.start`), a flow run that has ended, and Chromium on PATH.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.append(str(Path(__file__).parents[1] / "tests/slow"))  # where the browser of the tests is

from browser import browser_page, chromium_path

from flows.server_address import page as page_of

OUT = Path("docs/images/prefect_flow_run.png")
SETTLE = 4000  # milliseconds until the graph of the run has been laid out


def server() -> str:
    """Address of this folder's server, as prefect.toml or PREFECT_API_URL has it."""
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url)


def ended_run(chosen: str | None) -> str:
    """Id of the chosen flow run, else of the one that was started last.

    Raises:
        SystemExit: the server has none, or it has not ended Completed.
    """
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.sorting import FlowRunSort

    with SyncPrefectClient(server()) as client:
        newest = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        if not newest:
            sys.exit("this server has no flow run yet: prefect deployment run downstream-augmentation --watch")
        run = client.read_flow_run(UUID(chosen)) if chosen else newest[0]
    if run.state_name != "Completed":
        sys.exit(f"flow run {run.id} is {run.state_name}, not Completed")
    return str(run.id)


def main() -> None:
    """Write the picture; its name is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="id of a flow run")
    chosen = parser.parse_args().run
    chromium = chromium_path()
    if chromium is None:
        sys.exit("no Chromium on PATH; on Debian: apt-get install chromium")
    run = ended_run(chosen)
    with browser_page(chromium) as page:
        shoot(page, f"{page_of(server())}/runs/flow-run/{run}")
    print(OUT, f"{OUT.stat().st_size / 1000:.0f} kB")


def shoot(page: Any, address: str) -> None:
    """Save the page of a flow run once its state stands in it."""
    page.goto(address)
    page.get_by_text("Completed").first.wait_for()
    page.wait_for_timeout(SETTLE)
    page.screenshot(path=OUT)


if __name__ == "__main__":
    main()
