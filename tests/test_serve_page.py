"""The page of `accel-flowers serve` in a real browser: a photo is chosen, its class appears, on a desk and on a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from accel_flowers.inference.predict import predict_files
from accel_flowers.serving.limits import Limits
from accel_flowers.serving.page import build_login_page, build_page
from accel_flowers.serving.subject import load_subject
from tests.browser import Browser, needs_browser
from tests.conftest import draw_image
from tests.served import Served, serve
from tests.test_serve import HOSTILE, write_model

TOKEN = "the-token-of-this-page"
NAME = '<img src=x onerror=alert(1)> "1".jpg'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("flowers") / "model")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(
        model, tmp_path_factory.mktemp("server"), "--max-mb", "1", environment={"ACCEL_FLOWERS_TOKEN": TOKEN}
    ) as served:
        yield served


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A photo with a hostile name, another one, and no photo."""
    folder = tmp_path_factory.mktemp("photos")
    draw_image("rose", 1, (300, 200)).save(folder / NAME)
    draw_image("tulip", 2, (200, 340)).save(folder / "2.png")
    (folder / "3.jpg").write_text("no photo")
    (folder / "4.jpg").write_bytes(bytes(2 << 20))
    return [folder / name for name in (NAME, "2.png", "3.jpg", "4.jpg")]


def percent_of(text: str) -> float:
    found = re.search(r"([\d.]+)\s%", text)
    assert found, text
    return float(found[1])


@pytest.mark.holds("The page of a server can be used on a desk and on a phone")
@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_photo_is_chosen_and_its_class_appears(
    server: Served, model: Path, photos: list[Path], width: int, dark: bool
) -> None:
    expected = list(predict_files(model, photos[:2], top_k=4))
    with Browser() as browser:
        browser.open(f"{server.url}/?token={TOKEN}", width=width, height=844, dark=dark)
        assert browser.evaluate("location.href") == f"{server.url}/", "the token is no longer in the address"
        assert browser.evaluate("document.querySelectorAll('input[type=file]').length") == 2
        assert browser.evaluate("document.getElementById('camera').getAttribute('capture')") == "environment"
        browser.choose_files("#files", *photos[:2])
        browser.wait_for("document.querySelectorAll('.answer:not([hidden])').length == 2")
        cards = browser.evaluate(
            "[...document.querySelectorAll('.result')].map(card => ({"
            "answer: card.querySelector('.answer').innerText, file: card.querySelector('.file').innerText,"
            "bars: [...card.querySelectorAll('.bars li')].map(bar => [bar.querySelector('.name').textContent, "
            "bar.querySelector('.number').textContent, bar.querySelector('.fill').style.width]),"
            "photo: card.querySelector('.photo-itself').naturalWidth}))"
        )
        assert [card["photo"] for card in cards] == [300, 200]
        assert cards[0]["file"] == NAME
        for card, row in zip(cards, expected, strict=True):
            assert card["answer"].split("\n")[0] == row.label
            assert [name for name, _, _ in card["bars"]] == [name for name, _ in row.top]
            for (_, words, bar), (_, probability) in zip(card["bars"], row.top, strict=True):
                assert percent_of(words) == pytest.approx(100 * probability, abs=0.06)
                assert float(bar.rstrip("%")) == pytest.approx(100 * probability, abs=0.01)
        assert str(expected[1].label) in browser.evaluate("document.getElementById('status').textContent") or str(
            expected[0].label
        ) in browser.evaluate("document.getElementById('status').textContent")
        # Where it looked, and back.
        browser.evaluate("document.querySelector('.look').click()")
        browser.wait_for("document.querySelector('.heat').naturalWidth == 64")
        shown = "[...document.querySelectorAll('.result:first-child img')].map(image => image.checkVisibility())"
        assert browser.evaluate(shown) == [False, True]
        assert browser.evaluate("document.querySelector('.look').getAttribute('aria-pressed')") == "true"
        browser.evaluate("document.querySelector('.look').click()")
        assert browser.evaluate(shown) == [True, False]
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        beyond = (
            f"[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > {width + 1})"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert browser.evaluate(beyond) == []
        assert HOSTILE in browser.evaluate("document.querySelector('.chips').innerText")
        assert browser.complaints == []
        assert browser.dialogs == []
        hosts = {address.split("/")[2] for address in browser.requests if address.startswith("http")}
        assert hosts == {server.url.split("/")[2]}
        # What goes wrong is told in words; the browser itself notes the answer 422.
        browser.choose_files("#camera", photos[2])
        browser.wait_for("document.querySelector('.result:first-child .error').checkVisibility()")
        assert "cannot be read: not a JPEG" in browser.evaluate("document.querySelector('.error').innerText")
        browser.choose_files("#files", photos[3])
        browser.wait_for("document.querySelector('.result:first-child .error').checkVisibility()")
        assert "2.0 MiB; 1 are allowed" in browser.evaluate("document.querySelector('.error').innerText")


@pytest.mark.holds("The page of a server can be used on a desk and on a phone")
@needs_browser
def test_it_can_be_used_without_a_mouse_and_read_aloud(server: Served, photos: list[Path]) -> None:
    with Browser() as browser:
        browser.open(f"{server.url}/?token={TOKEN}", width=1280)
        browser.choose_files("#files", photos[0])
        browser.wait_for("document.querySelector('.look').checkVisibility()")
        named = (
            "[...document.querySelectorAll('input, button, section')].filter(e => e.checkVisibility()).map(e => e.innerText || "
            "e.ariaLabel || (e.labels && e.labels[0]?.innerText) || (e.getAttribute('aria-labelledby') && 'x'))"
        )
        names = browser.evaluate(named)
        assert len(names) > 3
        assert all(names), names
        assert browser.evaluate("[...document.images].every(image => image.alt || image.hidden)")
        assert browser.evaluate("document.querySelectorAll('[aria-live=polite]').length") == 1
        reached = set()
        for _ in range(8):
            for kind in ("keyDown", "keyUp"):
                browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            reached.add(browser.evaluate("document.activeElement.id || document.activeElement.className"))
        assert reached >= {"camera", "files", "button look"}
        tall = "[...document.querySelectorAll('.button')].filter(e => e.checkVisibility()).map(e => e.clientHeight)"
        assert min(browser.evaluate(tall)) >= 44


@needs_browser
def test_who_has_no_token_is_asked_for_it(server: Served) -> None:
    with Browser() as browser:
        browser.open(f"{server.url}/", width=390, height=844)
        assert "asks for a token" in browser.evaluate("document.body.innerText")
        browser.evaluate(f"document.getElementById('token').value = {json.dumps(TOKEN)}; document.forms[0].submit()")
        browser.wait_for("document.querySelector('#drop') !== null")
        assert browser.evaluate("location.search") == ""


def test_the_page_is_whole_without_another_file(server: Served, model: Path) -> None:
    page = httpx.get(f"{server.url}/", headers={"authorization": f"Bearer {TOKEN}"})
    assert re.findall(r"""(?:src|href)=["']?(?!data:|/openapi.json)[^"'\s>]+""", page.text) == []
    policy = page.headers["content-security-policy"]
    for text in ("default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "connect-src 'self'", "frame-ancestors 'none'"):  # fmt: skip
        assert text in policy
    again = build_page(load_subject(model), Limits(max_bytes=1 << 20), input_size=(64, 64))
    assert again.html == page.text
    assert "script-src 'none'" in build_login_page().policy


def test_it_says_how_good_the_model_is(model: Path) -> None:
    subject = load_subject(model)
    text = build_page(subject, Limits(), input_size=(48, 64)).html
    assert "75.0\N{NO-BREAK SPACE}% of 40 photos right (test, evaluated once)" in text
    assert "calibrated: of photos that get 80" in text
    assert "It sees 64 x 48 pixels" in text
