"""Numbers of things in messages."""

from __future__ import annotations


def number_of(count: float, thing: str, *, many: str | None = None) -> str:
    """ "1 picture", "2 pictures", "1,000 pictures", "1.5 epochs".

    Args:
        count: how many.
        thing: one of them.
        many: several of them, where that is not `thing` and an s; the rest of the sentence may stand in both.
    """
    shown = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{shown} {thing if count == 1 else many or f'{thing}s'}"
