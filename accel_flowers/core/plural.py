"""Numbers of things, and names among words, in messages."""

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


_WORDS = frozenset(("all", "another", "both", "each", "no", "none", "nothing", "one", "other", "others", "the", "two"))
"""Of sentences, and names of classes, too."""


def in_sentence(name: str) -> str:
    """The name of a class inside a sentence: in quotes where it could be read as a number of things, or as a word: "always '1' would get"."""
    is_plain = name[:1].isalpha() and all(letter.isalpha() or letter in " _-" for letter in name)
    return name if is_plain and name.lower() not in _WORDS else f"'{name}'"
