"""Pages that stand alone: in a real browser hostile names are text, and nothing is asked for from anywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel_flowers.cli.main import main
from accel_flowers.core.errors import UserError
from accel_flowers.data.sampler import random_key
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.sources.source import ImageSource
from accel_flowers.data.table import ImageTable
from accel_flowers.html import pages
from accel_flowers.inference.gallery import Gallery
from accel_flowers.inference.image_classifier import Prediction
from accel_flowers.inspection.analysis import Seen
from accel_flowers.inspection.findings import ImageFacts, find
from accel_flowers.inspection.page import write_inspection_page
from tests.conftest import draw_image, make_folder

BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="there is no chromium or google-chrome, and CHROMIUM names none"
)
# A name in a folder holds no slash, so no closing tag; names of classes in a model may.
HOSTILE_NAMES = [
    "<script>alert(1)<",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload='alert(2)'>",
    "{{ 7 * 7 }}{% raw %}",
    "a\nb\x1b[2J&amp;",
    "</script><script>alert(3)</script><style>*{display:none}",
]
MEGABYTE = 1 << 20


class Reader(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def check_stands_alone(text: str) -> Reader:
    """No script, no request: every address is inside the page, and its policy forbids all else."""
    page = Reader(text)
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "svg", "base"}
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "srcset", "href", "action", "data", "poster"):
            assert value.startswith(("data:image/jpeg;base64,", "#")) or value == "data:,", value[:80]
    assert [value for name, value in page.attributes if name == "rel"] == ["icon"], "else a browser asks for one"
    assert re.findall(r"url\(|@import|https?://", text) == []
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert len(text.encode("utf-8", "surrogatepass")) < 5 * MEGABYTE
    return page


def in_browser(page: Path, tmp_path: Path) -> str:
    """The page as a browser understood it."""
    assert BROWSER is not None
    profile = tmp_path / "profile"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", f"--user-data-dir={profile}"]
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", page.absolute().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<body" in done.stdout
    return done.stdout


def shown(name: str) -> str:
    return name.replace("\n", "\\n").replace("\x1b", "\\x1b")


@pytest.fixture
def hostile_inspection(tmp_path: Path) -> Path:
    """A page on a folder whose classes and files have hostile names, with every kind of finding."""
    plain = load_images(str(make_folder(tmp_path / "plain", per_class=2)))  # whose images are shown
    images = []
    for place, name in enumerate(HOSTILE_NAMES):
        good = Seen(
            digest="same",
            width=20,
            height=200,
            mode=name,
            format=name,
            orientation=6,
            sketch=np.ones(256, np.uint8),
            features=np.ones(27, np.float16),
        )
        for seen in (good, good, Seen(cause=f"broken by {name}")):
            images.append(ImageFacts(f"{name}/{len(images)}{name}", name, f"part {place % 2} {name}", seen))
    findings = find("<b>photos&", HOSTILE_NAMES, images, ignored=HOSTILE_NAMES)
    page = tmp_path / "page.html"
    write_inspection_page(page, findings, renamed(plain, [image.file for image in images]))
    return page


class Again:
    """Rows of a source, under other names; an `ImageSource` as somebody else may write one."""

    given_parts = digests = None

    def __init__(self, images: ImageSource, rows: list[int], names: list[str]) -> None:
        self._images, self._rows, self.names = images, rows, names
        self.labels, self.class_names = images.labels[rows], images.class_names

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, row: int) -> bytes:
        return self._images.read(self._rows[row])


def renamed(table: ImageTable, names: list[str]) -> ImageTable:
    """The same few images again and again, under these names."""
    rows = [number % len(table.files) for number in range(len(names))]
    return ImageTable(table.source, Again(table.images, rows, names), table.labels[rows], table.class_names)


@pytest.fixture
def hostile_gallery(tmp_path: Path) -> Path:
    gallery = Gallery(tmp_path / "page.html")
    draw_image("rose", 1).save(tmp_path / "rose.png")
    for name in HOSTILE_NAMES:
        link = tmp_path / name.replace("/", "")
        link.symlink_to("rose.png")
        gallery.add(Prediction(str(link), ((name, 0.75), (name[::-1], 0.25))))
        gallery.add(Prediction(name, error=f"broken by {name}"))
    gallery.write(model=HOSTILE_NAMES[0], about=HOSTILE_NAMES[1])
    return tmp_path / "page.html"


@pytest.mark.parametrize("kind", ["inspection", "gallery"])
def test_hostile_names_are_text(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(f"hostile_{kind}")
    page = check_stands_alone(file.read_text())
    for name in HOSTILE_NAMES:
        assert shown(name) in page.text, name
        assert f"broken by {shown(name)}" in page.text


@needs_browser
@pytest.mark.parametrize("kind", ["inspection", "gallery"])
def test_a_browser_shows_hostile_names_as_text(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(f"hostile_{kind}")
    page = check_stands_alone(in_browser(file, tmp_path))
    for name in HOSTILE_NAMES:
        assert shown(name) in page.text, name


def test_the_command_writes_a_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / "rose/00.png", folder / "tulip/rose.png")
    file = tmp_path / "page.html"
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(folder), "--html", str(file)])
    assert caught.value.code == 1
    page = check_stands_alone(file.read_text())
    assert "1 group of identical files across classes" in page.text
    assert "under rose and tulip" in page.text
    assert sum(name == "src" for name, _ in page.attributes) >= 2
    assert str(file) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "photos"]


def test_a_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is what JPEG packs worst; thousands of findings of several kinds share the page, and none is crowded out."""
    noise = np.random.Generator(np.random.Philox(1)).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    folder = make_folder(tmp_path / "photos", per_class=1)
    for file in folder.rglob("*.png"):
        Image.fromarray(noise).save(file)
    table = load_images(str(folder))
    images = []
    for number in range(4000):
        digest = str(number // 2 if number < 2000 else number)
        images.append(
            ImageFacts(
                f"c/{number:04d}.png", "rose" if number % 2 else "tulip", None,
                Seen(digest=digest, width=50, height=500, mode="CMYK", format="TIFF", orientation=3, phash=random_key(digest), sketch=np.ones(256, np.uint8)),
            )
        )  # fmt: skip
    monkeypatch.setattr("accel_flowers.inspection.findings._far", lambda images: ())
    findings = find("photos", ("rose", "tulip"), images)
    every = renamed(table, [image.file for image in images])
    write_inspection_page(tmp_path / "page.html", findings, every)
    page = check_stands_alone((tmp_path / "page.html").read_text())
    assert 100 < sum(name == "src" for name, _ in page.attributes) <= pages.MAX_THUMBNAILS
    for words in (
        "identical files across classes",
        "smaller than 64 pixels",
        "turned by EXIF",
        "more, which --json lists",
    ):
        assert words in page.text


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "page.html")
    gallery.add(Prediction("1.png", (("rose", 1.0),)))
    (tmp_path / "page.html").mkdir()
    (tmp_path / "page.html" / "in").touch()
    with pytest.raises(UserError, match=r"page.html' cannot be written: .* Give another file with --html FILE"):
        gallery.write(model="m", about="a")
