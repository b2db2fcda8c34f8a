"""Pages that stand alone: one HTML file with its style and its images inside, which asks no host for anything.

All pages (report, comparison, inspection, predictions) are filled here, from the templates beside this module: one base, one
style sheet. Whatever a name of a file or a class holds is shown as text. There is no script, and the page's own policy
forbids any, but for the page of `accel-flowers serve`, which has one of its own and whose server sends the policy.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from accel_flowers import __version__
from accel_flowers.core.errors import printable
from accel_flowers.core.files import write_durably, writing
from accel_flowers.core.order import natural_key
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
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> str | None:
        try:
            return data_uri(decode_thumbnail(self._read(name), name, side=_SIDE).small)
        except (BadImageError, OSError):
            return None


def data_uri(image: Image.Image) -> str:
    """A thumbnail of an image as a `data:` address; the image is left as it is."""
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=74, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def percent(share: float) -> str:
    """`0.8456` → "84.6 %", with a space that does not break."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def shown(text: str) -> str:
    """As on a terminal, but for the spaces that hold a number and its unit together."""
    return "\N{NO-BREAK SPACE}".join(printable(piece) for piece in text.split("\N{NO-BREAK SPACE}"))


def breakable(text: str, after: str = "/") -> Markup:
    """A path as text that a line may break behind a slash, rather than within a name; copied, it is the path.

    Args:
        text: a path, or a name that has other joints.
        after: the characters behind which a line may break.
    """
    joints = [f"{character}\0" if character in after else character for character in shown(text)]
    return Markup("<wbr>").join("".join(joints).split("\0"))


@cache
def _environment() -> Environment:
    """What fills the templates: whatever is no markup is escaped, and a value that is lacking is an error."""
    environment = Environment(
        loader=PackageLoader("accel_flowers.html", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["version"] = __version__
    environment.filters["shown"] = shown
    environment.filters["breakable"] = breakable
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["below"] = lambda name, folder: name.removeprefix(f"{folder}/") if folder else name
    environment.filters["percent"] = percent
    # Of pairs (name, anything), such as a mapping's items.
    environment.filters["by_name"] = lambda pairs: sorted(pairs, key=lambda pair: natural_key(pair[0]))
    environment.filters["svg"] = Markup  # Matplotlib's, which escapes what it is given
    return environment


def render(template: str, **values: Any) -> str:
    """Fill a template.

    Args:
        template: file name, such as "report.html".
        values: what the page shows; strings are text, never markup.
    """
    return _environment().get_template(template).render(**values)


def write_page(
    path: Path, template: str, *, advice: str = "Give another file with --html FILE.", **values: Any
) -> None:
    """Fill a template and write the page, whole or not at all.

    Args:
        path: the page.
        template: file name, such as "report.html".
        advice: what to do where it cannot be written.
        values: what the page shows; strings are text, never markup.

    Raises:
        UserError: the file cannot be written.
    """
    text = render(template, **values)
    with writing(f"The page '{path}'", advice):
        # Names that are no text in any encoding are shown with their bytes written out.
        write_durably(path, text.encode(errors="backslashreplace"))
