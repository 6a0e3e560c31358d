"""The page of a reader study in Chromium: rated by keys, left and resumed, exported, read back and counted."""

import base64
import io
import json
from contextlib import contextmanager

import numpy as np
import pytest
from browser import chromium_path, profile_page
from PIL import Image

from medim.metrics.reader_questions import AGREEMENT, ERRORS, ORIGIN, REAL, finding_questions
from medim.metrics.reader_sheet import read_key, read_ratings
from medim.metrics.reader_study import agreement, compare_systems, detection, numbers_of, system_scores
from medim.reader_page import StudyPair, StudySettings, build_study, write_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZE = 48
EFFUSION = finding_questions("chest", ["left effusion"])[0]
SETTINGS = StudySettings(
    title="Reader study", introduction="Rate what you see.\nThere is no hurry.",
    questions=(AGREEMENT, ORIGIN, ERRORS[2], EFFUSION), datasets={"chest": "chest x-ray", "slides": "histology"},
    systems=(REAL, "MeDiM"), pairs=20, repeats=0.2, seed=11,
)  # fmt: skip
ALL = 24  # 20 pairs, 4 of them twice
READ_COLOURS = """() => {
  const seen = [];
  for (const one of document.body.querySelectorAll("*")) {
    const text = [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!text || !one.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    if (one.disabled || one.closest("button:disabled, .skip")) continue;
    let under = one;
    while (under && getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") under = under.parentElement;
    const ground = getComputedStyle(under || document.documentElement).backgroundColor;
    seen.push([one.tagName + " " + one.textContent.trim().slice(0, 30), getComputedStyle(one).color, ground]);
  }
  return seen;
}"""


def make_pairs():
    rng = np.random.default_rng(0)
    return [
        StudyPair(system, dataset, rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
                  f'{dataset} report {i}, "quoted" </script><b>bold</b>', "", {"seed": i})
        for system in SETTINGS.systems for dataset in SETTINGS.datasets for i in range(6)
    ]  # fmt: skip


@pytest.fixture
def study(tmp_path):
    page, key = tmp_path / "send/study.html", tmp_path / "keep/key.json"
    write_study(build_study(make_pairs(), SETTINGS), page, key)
    return page, read_key(key)


@pytest.fixture
def visit(study, tmp_path):
    """Open the page in Chromium; the same profile each time."""
    chromium = chromium_path()
    if chromium is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")

    @contextmanager
    def opened(before=None):
        asked, complaints = [], []
        with profile_page(chromium, tmp_path / "profile") as page:
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
            if before is not None:
                page.add_init_script(before)
            page.goto(study[0].as_uri())
            yield page
        assert asked and not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
        assert not complaints

    return opened


@pytest.fixture
def page(visit):
    with visit() as one:
        yield one


def begin(page, name):
    page.locator("#reader").fill(name)
    page.locator("#years").fill("12")
    page.keyboard.press("Enter")
    page.locator("#work").wait_for()


def shown(page):
    """(case, pass) on the page."""
    work = page.locator("#work")
    return work.get_attribute("data-case"), int(work.get_attribute("data-pass"))


def points(case, number):
    """What the test's reader says: a made-up rule of the id, one point more at a second showing."""
    return min(5, 1 + int(case, 16) % 4 + (number == 2))


def rate(page, key, showings):
    """Rate so many pairs by keys alone; returns what was said of each."""
    said = {}
    for _ in range(showings):
        case, number = shown(page)
        truth = key.cases[case].system
        page.keyboard.press(str(points(case, number)))
        page.keyboard.press("1" if truth == REAL else "2")
        said[case, number] = points(case, number)
        page.keyboard.press("ArrowRight")
    return said


def export(page, path):
    with page.expect_download() as waiting:
        page.keyboard.press("e")
    waiting.value.save_as(path)
    return waiting.value.suggested_filename


def test_a_study_is_rated_resumed_exported_and_read_back(visit, study, tmp_path):
    key = study[1]
    with visit() as page:
        said, remarked = first_sitting(page, key, tmp_path / "early.csv")
    with visit() as page:  # another day: the browser was closed
        said |= second_sitting(page, key, said, remarked)
        page.keyboard.press("o")  # an optional error, by keys
        page.locator("#optional").wait_for()
        for key_pressed in ["ArrowUp"] * 4 + ["ArrowDown"] * 2 + ["3"]:
            page.keyboard.press(key_pressed)
        wrong = shown(page)
        export(page, tmp_path / "anna.csv")
        assert "Send it back" in page.locator("#status").inner_text()
    read_back(tmp_path / "anna.csv", key, said, remarked, wrong)


def first_sitting(page, key, sheet):
    """Nine pairs, a remark on the tenth, an early export, a reload."""
    begin(page, "anna")
    assert page.locator("#place").inner_text() == f"Pair 1 of {ALL}"
    said = rate(page, key, 9)
    assert page.locator("#count").inner_text() == f"9 of {ALL} rated"
    page.keyboard.press("c")
    page.keyboard.type('a "remark",\nwith 5 and arrows ')
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    remarked = shown(page)
    page.wait_for_timeout(1200)

    name = export(page, sheet)
    assert name == f"{key.study}-anna.csv"
    assert page.locator("#status").inner_text() == f"Exported, but 15 of {ALL} pairs are still without an answer."
    with pytest.raises(ValueError, match=r"15 of 24 showings have no answer to 'agreement'"):
        read_ratings([sheet], key)

    page.reload()
    page.locator("#work").wait_for()
    assert shown(page) == remarked
    return said, remarked


def second_sitting(page, key, said, remarked):
    """All that is left; nothing is asked before, the same pair stands there."""
    page.locator("#work").wait_for()
    assert shown(page) == remarked
    assert page.locator("#comment").input_value().startswith('a "remark",')
    assert page.locator("#count").inner_text() == f"9 of {ALL} rated"
    page.keyboard.press("ArrowLeft")
    assert page.locator('[data-question="agreement"] [aria-pressed="true"]').inner_text().startswith(
        str(points(*shown(page)))
    )  # fmt: skip
    page.keyboard.press("n")  # the next one without an answer
    assert shown(page) == remarked
    rest = rate(page, key, ALL - 9)
    assert page.locator("#count").inner_text() == f"{ALL} of {ALL} rated"
    assert len(said | rest) == ALL
    return rest


def read_back(sheet, key, said, remarked, wrong):
    """The sheet holds what was said, and the statistics are those of it."""
    ratings = read_ratings([sheet], key)
    agreed = numbers_of(AGREEMENT, ratings)
    for row, case in enumerate(ratings.cases):
        assert agreed[row, 0] == said[case, 1]
        again = ratings.again[AGREEMENT.id][row, 0]
        assert np.isnan(again) if (case, 2) not in said else again == said[case, 2] - 1
    assert (~np.isnan(ratings.again[AGREEMENT.id])).sum() == 4
    errors = ratings.first[ERRORS[2].id][:, 0] if wrong[1] == 1 else ratings.again[ERRORS[2].id][:, 0]
    assert errors[ratings.cases.index(wrong[0])] == 2 and np.nansum(errors) == 2
    if remarked[1] == 1:
        assert ratings.seconds[ratings.cases.index(remarked[0]), 0] > 1
    text = sheet.read_text(encoding="utf-8-sig")
    assert '"a ""remark"",\nwith 5 and arrows "' in text
    everyone = detection(ratings, 0, 100)
    assert everyone[0].accuracy.value == 1 and everyone[0].d_prime.value > 2
    scores = system_scores(ratings, "joint", 0, 100)
    own = [case for case, made in key.cases.items() if (made.system, made.dataset) == ("MeDiM", "chest")]
    mean = np.mean([said[case, 1] for case in own])
    assert scores["MeDiM"]["chest/joint/human agreement"].value == pytest.approx(mean)
    assert compare_systems(ratings, 0, 50) and agreement(ratings, 0, 50)["agreement/own_kappa"].n == 4


def test_each_reader_has_an_order_of_his_own_and_comes_back_to_it(page):
    orders = {}
    for name in ("anna", "bert", "anna"):
        begin(page, name)
        while page.locator("#back").is_enabled():
            page.keyboard.press("ArrowLeft")
        order = []
        for _ in range(ALL):
            order.append(shown(page))
            page.keyboard.press("ArrowRight")
        assert orders.setdefault(name, order) == order
        page.get_by_role("button", name="Change reader").click()
    assert orders["anna"] != orders["bert"] and sorted(orders["anna"][:3]) != sorted(orders["bert"][:3])
    for order in orders.values():
        assert len(set(order)) == ALL and sum(number == 1 for _, number in order) == 20
        for case, number in order:
            if number == 2:
                assert order.index((case, 2)) - order.index((case, 1)) >= 6  # a third of the study lies between


def test_pictures_are_enlarged_to_the_pixel(page):
    begin(page, "anna")
    picture = page.locator("#picture")
    page.wait_for_function("document.getElementById('picture').style.width !== ''")
    assert picture.evaluate("one => getComputedStyle(one).imageRendering") == "pixelated"
    box = {side: round(value) for side, value in picture.bounding_box().items()}
    factor = box["width"] // SIZE
    assert factor >= 8 and box["width"] == box["height"] == factor * SIZE
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB"))
    items = json.loads(page.locator("#content").text_content())["items"]
    item = next(one for one in items if one["id"] == shown(page)[0])
    true = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["image"]))))
    np.testing.assert_array_equal(pixels, true.repeat(factor, 0).repeat(factor, 1))
    assert page.locator("#report").inner_text() == item["report"]  # markup of a report is text


def luminance(colour):
    parts = np.array([float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast_and_every_control_a_focus_ring_and_a_name(page, scheme):
    page.emulate_media(color_scheme=scheme)
    for step in ("start", "work", "answered", "help"):
        if step == "work":
            begin(page, "anna")
            page.keyboard.press("o")
        elif step == "answered":
            page.keyboard.press("4")
        elif step == "help":
            page.keyboard.press("?")
        for what, ink, ground in page.evaluate(READ_COLOURS):
            light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (step, what, ink, ground)
    page.keyboard.press("Escape")
    names = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        tag, name, ring = page.evaluate(
            """() => { const one = document.activeElement, style = getComputedStyle(one);
            return [one.tagName, (one.innerText || one.getAttribute("aria-label") || one.labels?.[0]?.innerText || ""),
                    style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2]; }"""
        )
        if tag != "BODY":
            assert ring and name.strip(), (tag, name)
            names.add((tag, name))
    assert {tag for tag, _ in names} >= {"BUTTON", "TEXTAREA", "SUMMARY"}


def test_a_browser_that_keeps_nothing_says_so(visit):
    with visit("Storage.prototype.setItem = () => { throw new DOMException('full'); }") as page:
        assert not page.locator("#unkept").is_visible()
        begin(page, "anna")
        assert "export the CSV before you close it" in page.locator("#unkept").inner_text()
