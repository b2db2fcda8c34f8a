"""The order in which people look for a name in a table."""

from __future__ import annotations

import re


def natural_key(name: str) -> tuple[tuple[bool, int, str], ...]:
    """To sort by: numbers inside of names by their value, so that class 2 stands before class 10.

    Names of digits alone, of digits of any script, and of any length are sorted, too.
    """
    pieces = re.split(r"([0-9]+)", name)
    # A number of a thousand digits is compared by its digits: as an int it could be slow, or refused.
    return tuple(
        (False, len(piece.lstrip("0")), piece.lstrip("0")) if place % 2 else (True, 0, piece)
        for place, piece in enumerate(pieces)
        if piece
    )
