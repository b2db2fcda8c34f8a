"""The pages in a real browser: drawn, readable on a phone and in print, silent, and deaf to hostile names."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel_flowers.report.compare import compare_runs
from accel_flowers.report.draw import draw_report
from tests.browser import Browser, needs_browser
from tests.made_runs import make_run

NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    r"$\frac{1}{ & style=\"font: 10px\"",
    "薔薇 'n' é",
)
FILES = ('it\'s "quoted".png', "<b onclick='alert(3)'>&amp;.png", "{{ 7 * 7 }} {% raw %}.png")
PLOTS = ("loss", "accuracy", "lr", "classes", "confusion", "reliability", "sizes")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report and a comparison of runs whose classes and files have hostile names."""
    root = tmp_path_factory.mktemp("hostile")
    one = make_run(root / "<i>one", root / "photos", NAMES, names=FILES, per_part=6)
    two = make_run(root / "two", root / "photos", NAMES, names=FILES, per_part=6, seed=3, draw=False)
    compare_runs([one, two], out=root / "compare.html")
    return {"report": draw_report(one), "compare": root / "compare.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


def luminance(colour: str) -> float:
    """Of #rrggbb, relative, as WCAG defines it."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.holds("It can be read on a phone, in the dark and in print")
def test_colours_can_be_read_in_both_themes() -> None:
    style = (Path(__file__).parent.parent / "accel_flowers/html/templates/style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        assert {"page", "card", "ink", "muted", "blue", "orange", "green", "purple"} <= colours.keys()
        for text in ("ink", "muted", "blue", "orange", "green", "error"):
            for ground in ("page", "card", "warning-ground", "error-ground", "good-ground"):
                high, low = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
                read = ground in ("page", "card") or text in ("ink", "muted")
                assert (high + 0.05) / (low + 0.05) >= (4.5 if read else 3), (text, ground)


@pytest.mark.holds("Names of classes and files are text")
@needs_browser
@pytest.mark.parametrize("page", ["report", "compare"])
def test_hostile_names_are_text(browser: Browser, pages: dict[str, Path], page: str) -> None:
    browser.open(pages[page], width=1280)
    text = re.sub(r"\s+", " ", browser.evaluate("document.body.innerText"))
    for name in NAMES:
        assert name in text
    assert "<i>one" in text
    assert page == "compare" or any(name in text for name in FILES)
    assert (
        browser.evaluate(
            "document.querySelectorAll('script, b[onclick], i > i, [onerror], iframe, link[rel=stylesheet]').length"
        )
        == 0
    )
    assert browser.evaluate(
        "[...document.images].every(i => i.src.startsWith('data:image/jpeg') && i.complete && i.naturalWidth > 9)"
    )
    assert browser.evaluate("document.images.length") > 8
    assert browser.dialogs == []
    assert browser.complaints == []


@pytest.mark.holds("The page asks nobody for anything")
@needs_browser
def test_nothing_leaves_the_page(browser: Browser, pages: dict[str, Path]) -> None:
    for path in pages.values():
        for dark in (False, True):
            browser.open(path, width=1280, dark=dark)
    allowed = {path.as_uri() for path in pages.values()}
    assert {address for address in browser.requests if not address.startswith("data:")} <= allowed
    assert allowed <= set(browser.requests)
    policy = browser.evaluate("document.querySelector('meta[http-equiv=Content-Security-Policy]').content")
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_all_plots_are_drawn(browser: Browser, pages: dict[str, Path], dark: bool) -> None:
    browser.open(pages["report"], width=1280, dark=dark)
    found = browser.evaluate("[...document.querySelectorAll('figure.card')].map(f => f.id)")
    assert sorted(found) == sorted(f"plot-{name}" for name in PLOTS)
    for name in PLOTS:
        box = browser.evaluate(
            f"(() => {{ const b = document.querySelector('#plot-{name} svg').getBoundingClientRect();"
            "return {x: b.x, y: b.y + scrollY, width: b.width, height: b.height} })()"
        )
        assert box["width"] > 250
        assert box["height"] > 150
        pixels = np.asarray(Image.open(io.BytesIO(browser.screenshot(box))).convert("RGB")).astype(int)
        ground = np.median(pixels.reshape(-1, 3), axis=0) if name != "confusion" else pixels[2, -2]
        drawn = np.abs(pixels - ground).sum(axis=2) > 60
        coloured = np.ptp(pixels, axis=2) > 60
        assert drawn.mean() > 0.005, name
        assert coloured.sum() > 100, name
        assert (ground.mean() < 80) == dark, name


@pytest.mark.holds("It can be read on a phone, in the dark and in print")
@needs_browser
@pytest.mark.parametrize("page", ["report", "compare"])
def test_a_phone_needs_no_sideways_scrolling(browser: Browser, pages: dict[str, Path], page: str) -> None:
    browser.open(pages[page], width=390, height=844)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    hidden = "[...document.querySelectorAll('th, td')].filter(e => getComputedStyle(e).display == 'none').length"
    assert browser.evaluate(hidden) == 0, "no column vanishes"
    beyond = browser.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg') &&"
        "e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => "
        "parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width))"
    )
    assert smallest > 7


@needs_browser
def test_words_are_whole_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    """Commands break between their words, settings have the width of the card, names and files break behind a slash."""
    names = ("chrysanthemum", "dandelion", "sunflower")
    files = tuple(f"chrysanthemum_00{number}.png" for number in range(4))
    run = make_run(tmp_path / "run", tmp_path / "photos", names, names=files, per_part=6, skill=0.9)
    others = [
        make_run(tmp_path / name, tmp_path / "photos", names, names=files, per_part=6, skill=0.9, seed=seed, draw=False)
        for name, seed in (("two", 2), ("three", 3))
    ]
    compare_runs([run, *others], out=tmp_path / "compare.html")
    browser.open(tmp_path / "compare.html", width=390, height=844)
    wide = (
        "[...document.querySelectorAll('.scroll:not(.of-classes)')].filter(e => e.scrollWidth > e.clientWidth).length"
    )
    assert browser.evaluate(wide) == 0, "three runs fit without scrolling"
    heights = "[...document.querySelectorAll('.of-classes td:first-child')].map(e => e.clientHeight)"
    assert max(browser.evaluate(heights)[1:]) < 45, "dandelion and sunflower on one line each"
    browser.open(draw_report(run), width=390, height=844)
    lines = "(e => { const r = document.createRange(); r.selectNodeContents(e); return new Set([...r.getClientRects()].map(b => Math.round(b.y))).size })"
    flags = f"[...document.querySelectorAll('.command span')].filter(e => e.textContent.startsWith('-') && {lines}(e) > 1).length"
    assert browser.evaluate("document.querySelectorAll('.command span').length") > 4
    assert browser.evaluate(flags) == 0
    narrow = "Math.min(...[...document.querySelectorAll('.typed dd')].map(e => e.getBoundingClientRect().width))"
    assert browser.evaluate(narrow) > 250
    assert browser.evaluate("[...document.querySelectorAll('.file')].every(e => e.querySelector('wbr'))")
    assert browser.evaluate("document.querySelector('.photo .file').innerText").startswith(names)


@pytest.mark.holds("It can be read on a phone, in the dark and in print")
@needs_browser
def test_it_prints(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"], width=1280, dark=True)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) <= 15
