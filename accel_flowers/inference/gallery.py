"""Rows of predictions → one HTML page with the images: what the model says, where it is least sure, what went wrong."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from accel_flowers.core.files import check_writable
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import MAX_BYTES
from accel_flowers.html.pages import MAX_THUMBNAILS, Thumbnails, write_page
from accel_flowers.inference.image_classifier import Prediction
from accel_flowers.metrics.multilabel import NO_LABEL

_UNSURE = 12
"""Images of the least sure answers."""
_ERRORS = 500
"""Files with an error that are listed."""


class Gallery:
    """Takes rows one by one and keeps a bounded number of them.

    Args:
        path: where the page goes.
        max_errors: files with an error that are listed.

    Raises:
        UserError: nothing can be written there.
    """

    def __init__(self, path: Path, *, max_errors: int = _ERRORS) -> None:
        check_writable(path, "--html")
        self._path, self._max_errors = path, max_errors
        self._first: list[Prediction] = []
        self._errors: list[Prediction] = []
        self._unsure: list[tuple[float, int, Prediction]] = []  # a heap: the surest of them first
        self._counts: Counter[str] = Counter()
        self._num_rows = self._num_errors = 0

    def add(self, row: Prediction) -> None:
        """Count a row, and keep it where there is room."""
        self._num_rows += 1
        if row.error:
            self._num_errors += 1
            if len(self._errors) < self._max_errors:
                self._errors.append(row)
            return
        if row.labels is None:
            (name, sureness), *_ = row.top
            self._counts[name] += 1
        else:
            # Several labels: the least sure answer is that whose lowest probability of a class that is said is the lowest.
            sureness = min((probability for name, probability in row.top if name in row.labels), default=1.0)
            self._counts.update(row.labels or [NO_LABEL])
        if len(self._first) < MAX_THUMBNAILS - _UNSURE:
            self._first.append(row)
        heapq.heappush(self._unsure, (-sureness, -self._num_rows, row))
        if len(self._unsure) > _UNSURE:
            heapq.heappop(self._unsure)

    def write(self, *, model: str, about: str) -> None:
        """Write the page.

        Args:
            model: the model folder, for the reader.
            about: a sentence on the probabilities.

        Raises:
            UserError: it cannot be written.
        """
        readable = self._num_rows - self._num_errors
        write_page(
            self._path,
            "gallery.html",
            model=model,
            about=about,
            num_rows=self._num_rows,
            folder=_common_folder([row.file for row in [*self._first, *self._errors]]),
            counts=self._counts.most_common(),
            # All of few images are shown anyway.
            unsure=[row for *_, row in sorted(self._unsure, key=lambda item: (-item[0], -item[1]))]
            if readable > 2 * _UNSURE
            else [],
            rows=self._first,
            left_out=readable - len(self._first),
            errors=self._errors,
            num_errors=self._num_errors,
            thumbnail=Thumbnails(partial(read_file, max_bytes=MAX_BYTES)),
        )


def _common_folder(files: Sequence[str]) -> str:
    """The folder of all of them, so that the page need not repeat it; empty where they have none in common."""
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    except ValueError:  # some from the root, some from here
        return ""
