"""accel_flowers: fine-tune image classifiers on a folder of photos with Hugging Face Accelerate.

    import accel_flowers as af

    config = af.load_recipe("resnet18-finetune", data="photos", run_dir="runs/first")
    result = af.train(config)
    model = af.load_model(result.run_dir)
    model.predict("new.jpg", top_k=3)

Importing this package is quick: torch and the other large libraries are imported by the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel_flowers.core.registry import register as register

__version__ = "0.1.0"

_PLACES = {
    "register": "accel_flowers.core.registry",
}
"""Public name → the module that it is imported from when it is first asked for."""

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'accel_flowers' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
