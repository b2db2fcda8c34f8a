"""What a model folder's `config.json` says of the model, for tests that look at it or spoil it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accel_flowers.models.saved import SPEC_FILE


def read_spec(model: Path) -> dict[str, Any]:
    """The spec's own fields."""
    own: dict[str, Any] = json.loads((model / SPEC_FILE).read_text("utf-8"))["accel_flowers"]
    return own


def change_spec(model: Path, **values: Any) -> None:
    """Set fields, whatever they are."""
    path = model / SPEC_FILE
    content = json.loads(path.read_text("utf-8"))
    content["accel_flowers"] |= values
    path.write_text(json.dumps(content), "utf-8")
