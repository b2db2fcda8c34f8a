"""Numbers of things in messages."""

from __future__ import annotations


def number_of(count: int, thing: str, *, many: str | None = None) -> str:
    """ "1 picture", "2 pictures", "1,000 pictures".

    Args:
        count: how many.
        thing: one of them.
        many: several of them, where that is not `thing` and an s; the rest of the sentence may stand in both.
    """
    return f"{count:,} {thing if count == 1 else many or f'{thing}s'}"
