"""Findings → one HTML page with the images to look at."""

from __future__ import annotations

from pathlib import Path

from accel_flowers.data.table import ImageTable
from accel_flowers.html.pages import MAX_THUMBNAILS, Thumbnails, write_page
from accel_flowers.inspection.findings import Findings
from accel_flowers.inspection.text import counts_in_words, labels_in_words, parts_of, sizes_in_words, topics

_GROUP = 12
"""Copies of one group that are shown."""


def write_inspection_page(path: Path, findings: Findings, table: ImageTable) -> None:
    """Write the page, of bounded size whatever was found.

    Raises:
        UserError: the file cannot be written.
    """
    told = topics(findings)
    # Each topic with images gets its share of the page, so that a thousand small ones do not displace two leaks.
    share = MAX_THUMBNAILS // max(1, sum(bool(topic.items) for topic in told))
    num_shown = {}
    for topic in told:
        thumbnails = 0
        num_shown[topic.kind] = 0
        for item in topic.items:
            thumbnails += min(_GROUP, len(item.files))
            if thumbnails > max(share, _GROUP):
                break
            num_shown[topic.kind] += 1
    write_page(
        path,
        "inspection.html",
        findings=findings,
        topics=told,
        parts=parts_of(findings),
        sizes=sizes_in_words(findings),
        labels=labels_in_words(findings),
        modes=counts_in_words(dict(findings.modes)),
        formats=counts_in_words(dict(findings.formats)),
        num_shown=num_shown,
        thumbnail=Thumbnails(lambda name: table.read(table.row_of(name))),
    )
