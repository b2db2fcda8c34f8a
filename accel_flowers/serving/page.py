"""The page for people, filled once: it holds its style and its script, and its policy forbids all others."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from accel_flowers.core.plural import number_of
from accel_flowers.html.pages import percent, render
from accel_flowers.serving.limits import Limits
from accel_flowers.serving.security import page_policy
from accel_flowers.serving.subject import Subject

_MOST_BARS = 8
"""Classes that are shown of a photo."""
_PARTS = {
    "test": "test, evaluated once",
    "val": "validation: optimistically biased, for it chose the model",
}


@dataclass(frozen=True)
class Page:
    """A page and its Content-Security-Policy."""

    html: str
    policy: str


def build_page(subject: Subject, limits: Limits, *, input_size: tuple[int, int] | None) -> Page:
    """The page that sends photos and shows what is said of them.

    Args:
        subject: the model.
        limits: what the page itself sees to before it sends anything.
        input_size: height and width of what the network sees, in pixels; None = it is not known.
    """
    spec = subject.spec
    settings = {
        "maxBytes": limits.max_bytes,
        "bars": min(_MOST_BARS, len(spec.class_names)),
        "calibrated": subject.calibrated,
        "several": spec.several_labels,
        "thresholds": dict(zip(spec.class_names, spec.cuts, strict=True)) if spec.several_labels else {},
        "heatmap": subject.heatmap,
    }
    return _page(
        "serve.html",
        subject=subject,
        spec=spec,
        calibrated=subject.calibrated,
        score=_score_in_words(spec.scores, several=spec.several_labels),
        input_size=input_size,
        max_mb=f"{limits.max_bytes / (1 << 20):.3g}",
        settings=json.dumps(settings),
    )


def build_login_page() -> Page:
    """The page of those who have not shown the token."""
    return _page("serve_login.html")


def _page(template: str, **values: Any) -> Page:
    html = render(template, **values)
    found = {tag: re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL) for tag in ("script", "style")}
    return Page(html, page_policy(scripts=found["script"], styles=found["style"]))


def _score_in_words(scores: dict[str, Any], *, several: bool) -> str | None:
    """ "86.9 % of 285 photos (test, evaluated once)"; None where the model has no score."""
    name = "map" if several else "accuracy"
    for part, words in _PARTS.items():
        found = scores.get(part)
        if not isinstance(found, dict) or not isinstance(found.get(name), (int, float)):
            continue
        count = found.get("num_images")
        of = number_of(count, "photo") if isinstance(count, int) else "photos"
        if several:
            return f"mean average precision {percent(found[name])} on {of} ({words})"
        return f"{percent(found[name])} of {of} right ({words})"
    return None
