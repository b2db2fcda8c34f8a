"""Doubtful labels → one HTML page with the pictures, their near-duplicates and those that are like no other."""

from __future__ import annotations

from pathlib import Path

from accel_flowers.html.pages import Thumbnails, write_page
from accel_flowers.labels.judged import Judged
from accel_flowers.labels.neighbours import Neighbours
from accel_flowers.labels.output import SHOWN, explained, headline

_GROUPS, _OF_GROUP, _FAR = 24, 6, 24
"""Groups of near-duplicates, pictures of each, and far pictures that the page shows: all together `MAX_THUMBNAILS` at most suffice."""


def write_labels_page(path: Path, judged: Judged, neighbours: Neighbours) -> None:
    """Write the page, of bounded size whatever was found.

    Raises:
        UserError: the file cannot be written.
    """
    write_page(
        path,
        "labels.html",
        judged=judged,
        headline=headline(judged),
        explained=explained(judged),
        candidates=judged.candidates[:SHOWN],
        neighbours=neighbours,
        num_torn=sum(group.torn for group in neighbours.groups),
        NUM_GROUPS=_GROUPS,
        NUM_OF_GROUP=_OF_GROUP,
        NUM_FAR=_FAR,
        thumbnail=Thumbnails(judged.photos.read),
    )
