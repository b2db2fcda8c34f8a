"""The pictures of a request: from a form with files, or from a body that is one.

The form is taken apart as it comes, in memory: nothing is written to a disk, so nothing is left there, and a form with more
files or headers than allowed ends as soon as that is seen.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from accel_flowers.core.plural import number_of
from accel_flowers.serving.refusals import Refused

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
"""Name of the form's field."""
_LONGEST_NAME = 255
_MOST_FIELDS = 8
"""Parts of a form that are no files; we ask for none."""
_MOST_HEADER_BYTES = 8192
"""Of one part of a form."""

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would tell of each form that is damaged


@dataclass(frozen=True)
class Upload:
    """A picture as it came."""

    name: str
    """As the client calls it, or "picture"."""
    data: bytes


async def read_uploads(content_type: str, body: AsyncIterator[bytes], *, max_files: int) -> list[Upload]:
    """The pictures of a request; there is at least one.

    Args:
        content_type: what the request says that its body is.
        body: its bytes, piece by piece.
        max_files: pictures that it may have.

    Raises:
        Refused: it has none, too many, or is no such request.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return await _of_form(options.get(b"boundary", b""), body, max_files)
    if kind.startswith(b"image/") or kind == b"application/octet-stream":
        data = b"".join([piece async for piece in body])
        if not data:
            raise Refused(400, "no_picture", "The body is empty: send the bytes of one picture.")
        return [Upload("picture", data)]
    shown = content_type[:100] or "none"
    raise Refused(
        415,
        "content_type",
        f"Content-Type {shown}: send a form (multipart/form-data) with pictures in its field '{FIELD}', or one picture as "
        "the body with its own type, such as image/jpeg.",
    )


async def _of_form(boundary: bytes, body: AsyncIterator[bytes], max_files: int) -> list[Upload]:
    parts = _Parts(max_files)
    try:
        if not boundary:
            raise FormParserError("it names no boundary")
        parser = MultipartParser(boundary, parts.callbacks())
        async for piece in body:
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, "form", f"The form cannot be read: {error}.") from None
    if not parts.ended:
        raise Refused(400, "form", "The form is cut short: its last boundary is missing.")
    if not parts.uploads:
        raise Refused(400, "no_picture", f"The form has no picture: send it as the file of a field '{FIELD}'.")
    return parts.uploads


@dataclass
class _Parts:
    """What the parser finds, piece by piece."""

    max_files: int
    uploads: list[Upload] = field(default_factory=list)
    ended: bool = False
    _num_fields: int = 0
    _name: str | None = None
    """Of the picture whose bytes come now; None = this part is none."""
    _pieces: list[bytes] = field(default_factory=list)
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header: tuple[bytes, bytes] = (b"", b"")
    _header_bytes: int = 0

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header_name,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._on_end,
            "on_end": self._on_last,
        }

    def _begin(self) -> None:
        self._name, self._pieces, self._headers, self._header_bytes = None, [], {}, 0

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._header = (self._header[0] + data[start:end], self._header[1])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._header = (self._header[0], self._header[1] + data[start:end])

    def _count(self, num_bytes: int) -> None:
        self._header_bytes += num_bytes + 1
        if self._header_bytes > _MOST_HEADER_BYTES:
            raise FormParserError("the head of a part is too long")

    def _on_header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = (b"", b"")

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"filename" not in options or options.get(b"name") != FIELD.encode():
            self._num_fields += 1
            if self._num_fields > _MOST_FIELDS:
                raise FormParserError(f"it has more than {_MOST_FIELDS} fields that are no pictures")
            return
        if len(self.uploads) == self.max_files:
            raise Refused(
                413,
                "too_many_files",
                f"A request may have up to {number_of(self.max_files, 'picture')}: send the others in another one.",
            )
        self._name = options[b"filename"].decode(errors="replace")[-_LONGEST_NAME:] or "picture"

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._pieces.append(data[start:end])

    def _on_end(self) -> None:
        if self._name is not None:
            self.uploads.append(Upload(self._name, b"".join(self._pieces)))
        self._pieces = []

    def _on_last(self) -> None:
        self.ended = True
