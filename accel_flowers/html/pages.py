"""Pages that stand alone: one HTML file with its style and its images inside, which asks no host for anything.

Whatever a name of a file or a class holds is shown as text. There is no script, and the page's own policy forbids any.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from accel_flowers import __version__
from accel_flowers.core.errors import printable
from accel_flowers.core.files import write_durably, writing
from accel_flowers.data.decoding.pillow import BadImageError, decode_thumbnail

MAX_THUMBNAILS = 240
"""On one page; at 5 to 8 KB each the page stays below 3 MB."""
_SIDE = 176
"""Longest side of a thumbnail in pixels: sharp on screens of double density at the size it is shown."""


class Thumbnails:
    """Small versions of images as data URIs; after `MAX_THUMBNAILS` there are no more.

    Args:
        read: name → the encoded image; may raise OSError or BadImageError.
    """

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._made: dict[str, str | None] = {}

    def __call__(self, name: str) -> str | None:
        """The thumbnail; None where the image cannot be read, or there are enough."""
        if name not in self._made:
            if len(self._made) >= MAX_THUMBNAILS:
                return None
            self._made[name] = _thumbnail(self._read, name)
        return self._made[name]


def _thumbnail(read: Callable[[str], bytes], name: str) -> str | None:
    try:
        image = decode_thumbnail(read(name), name, side=_SIDE).small
    except (BadImageError, OSError):
        return None
    return data_uri(image, longest=_SIDE, quality=74)


def data_uri(image: Image.Image, *, longest: int = 200, quality: int = 80) -> str:
    """A small JPEG as a `data:` address.

    Args:
        image: it is left as it is.
        longest: side in pixels.
        quality: JPEG's, 1 to 95.
    """
    small = image.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


@cache
def environment_of(package: str) -> Environment:
    """What fills the templates of a package, `package/templates`: whatever is no markup is escaped."""
    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["version"] = __version__
    environment.filters["shown"] = printable
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["below"] = lambda name, folder: name.removeprefix(f"{folder}/") if folder else name
    environment.filters["percent"] = lambda number: f"{number:.1%}"
    return environment


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill a template of this package and write the page.

    Raises:
        UserError: the file cannot be written.
    """
    text = environment_of("accel_flowers.html").get_template(template).render(**values)
    write_html(path, text, advice="Give another file with --html FILE.")


def write_html(path: Path, text: str, *, advice: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        UserError: the file cannot be written; ends with the advice.
    """
    with writing(f"The page '{path}'", advice):
        # Names that are no text in any encoding are shown with their bytes written out.
        write_durably(path, text.encode(errors="backslashreplace"))
