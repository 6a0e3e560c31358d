"""Draws MLflow's pages of the active world for the README: python -m benchmarks.mlflow_screenshots

Needs a world with tables (`dvc repro`) and Chromium on PATH (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.paths import world_from_params
from pipeline.tracking import sync
from pipeline.tracking_store import StoreError

sys.path.append(str(Path(__file__).parents[1] / "tests/slow"))  # where the browser of the tests is

from browser import browser_page, chromium_path, mlflow_pages, table_in, wait_for_curve, wait_for_picture

OUT = Path("docs/images")
LARGEST = 400_000  # bytes of a picture
TABLES = ("table1", "table3", "table4")
LOSSES = "nelbo|medim/loss"  # charts that are shown; MLflow takes a regular expression
HIDE_PATHS = """() => [...document.querySelectorAll('*')]
    .filter(one => !one.children.length && one.textContent.startsWith('Path: file:'))
    .forEach(one => { one.textContent = 'Path: mlflow/artifacts/…'; })"""
SHEETS = ("figure4.png", "samples_medim.png", "vqgan.png")  # the first that there is


def main() -> int:
    """Write the pictures; their names are printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, help="these tables, and no other page")
    only = parser.parse_args().only
    chromium = chromium_path()
    if chromium is None:
        print("no Chromium on PATH; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    world = world_from_params()
    try:
        links = {one.name.partition("/")[2]: one.address for one in sync([world])}
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    missing = (set(only) if only else {*TABLES, "trainings", "figures"}) - set(links)
    if missing:
        print(f"{world.root} has no {', '.join(sorted(missing))} yet; run `dvc repro`", file=sys.stderr)
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    with mlflow_pages(Path()) as pages, browser_page(chromium) as page:
        for table in only or TABLES:
            shoot(page, f"mlflow_{table}", pages.here(links[table]), lambda: wait_for_rows(page))
        if not only:
            shoot_the_rest(page, pages, links, world.name)
    return 0


def shoot_the_rest(page: Any, pages: Any, links: Mapping[str, str], world: str) -> None:
    """Curves, a table as its artifact, and a sheet of pictures."""
    shoot(page, "mlflow_curves", pages.here(links["trainings"]), lambda: open_losses(page))
    whole = pages.run(f"{world}/table1", "(the table)", "artifacts/table.html")
    frame = page.frame_locator("iframe.mlflow-html-iframe")
    shoot(page, "mlflow_table_html", whole, lambda: frame.locator("table").first.wait_for())
    shoot(page, "mlflow_pictures", pages.here(links["figures"]), lambda: open_sheet(page))


def shoot(page: Any, name: str, address: str, wait: Callable[[], object]) -> None:
    """Save what a page shows once `wait` returns and its animations have ended."""
    page.goto(address)
    wait()
    page.wait_for_timeout(2500)
    page.evaluate(HIDE_PATHS)  # where this folder lies says nothing to others
    path = OUT / f"{name}.png"
    page.screenshot(path=path)
    if path.stat().st_size > LARGEST:
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB", flush=True)


def open_losses(page: Any) -> None:
    """Show MeDiM's curves alone."""
    wait_for_curve(page)
    page.get_by_placeholder("Search metric charts").fill(LOSSES)
    wait_for_curve(page, "nelbo_text")


def wait_for_rows(page: Any) -> None:
    """Wait until the table of a page has rows and headings."""
    for _ in range(300):
        headings, rows = table_in(page)
        if headings and len(rows) > 1:
            return
        page.wait_for_timeout(200)
    raise RuntimeError(f"{page.url} shows no table within 60 s; is the view of pipeline.tracking_store in it?")


def open_sheet(page: Any) -> None:
    """Choose the first of SHEETS that the page of pictures lists."""
    page.get_by_text(".png").first.wait_for()
    listed = [name for name in SHEETS if page.get_by_text(name, exact=True).count()]
    if not listed:
        raise RuntimeError(f"{page.url} lists none of {', '.join(SHEETS)}; run `dvc repro`")
    page.get_by_text(listed[0], exact=True).first.click()
    wait_for_picture(page, listed[0])


if __name__ == "__main__":
    sys.exit(main())
