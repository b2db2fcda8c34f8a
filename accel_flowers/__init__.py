"""accel_flowers: fine-tune image classifiers on a folder of photos with Hugging Face Accelerate.

    import accel_flowers as af

    config = af.load_recipe("flagship", {"data.path": "photos", "run_dir": "runs/first"})
    result = af.train(config)
    print(result.best_epoch, result.scores["val"].accuracy)
    for answer in result.model.predict(["new/1.jpg", "new/2.jpg"], top_k=3):
        print(answer.file, answer.top)

Importing this package is quick: torch and the other large libraries are imported by the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel_flowers.config.loading import load_recipe as load_recipe
    from accel_flowers.config.schema import Config as Config
    from accel_flowers.core.errors import UserError as UserError
    from accel_flowers.core.registry import register as register
    from accel_flowers.inference.evaluate import evaluate as evaluate
    from accel_flowers.inference.image_classifier import ImageClassifier as ImageClassifier
    from accel_flowers.inference.image_classifier import Prediction as Prediction
    from accel_flowers.inference.image_classifier import load_model as load_model
    from accel_flowers.inspection.command import inspect_source as inspect  # noqa: F401 - a public name
    from accel_flowers.metrics.classification import Predictions as Predictions
    from accel_flowers.metrics.classification import Scores as Scores
    from accel_flowers.metrics.multilabel import MultilabelPredictions as MultilabelPredictions
    from accel_flowers.metrics.multilabel import MultilabelScores as MultilabelScores
    from accel_flowers.probe.probe import probe as probe_photos  # noqa: F401 - a public name
    from accel_flowers.report.compare import compare_runs as compare  # noqa: F401 - a public name
    from accel_flowers.study.run import train_study as train_study
    from accel_flowers.training.lr_finder import find_lr as find_lr
    from accel_flowers.training.train import TrainResult as TrainResult
    from accel_flowers.training.train import train as train

__version__ = "0.1.0"

_PLACES = {
    "Config": ("config.schema", "Config"),
    "ImageClassifier": ("inference.image_classifier", "ImageClassifier"),
    "MultilabelPredictions": ("metrics.multilabel", "MultilabelPredictions"),
    "MultilabelScores": ("metrics.multilabel", "MultilabelScores"),
    "Prediction": ("inference.image_classifier", "Prediction"),
    "Predictions": ("metrics.classification", "Predictions"),
    "Scores": ("metrics.classification", "Scores"),
    "TrainResult": ("training.train", "TrainResult"),
    "UserError": ("core.errors", "UserError"),
    "compare": ("report.compare", "compare_runs"),
    "find_lr": ("training.lr_finder", "find_lr"),
    "evaluate": ("inference.evaluate", "evaluate"),
    "inspect": ("inspection.command", "inspect_source"),
    "load_model": ("inference.image_classifier", "load_model"),
    "load_recipe": ("config.loading", "load_recipe"),
    "probe_photos": ("probe.probe", "probe"),
    "register": ("core.registry", "register"),
    "train": ("training.train", "train"),
    "train_study": ("study.run", "train_study"),
}
"""Public name → module and name there: imported when it is first asked for."""

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'accel_flowers' has no attribute {name!r}; its names are {', '.join(__all__)}")
    module, attribute = _PLACES[name]
    value = globals()[name] = getattr(importlib.import_module(f"accel_flowers.{module}"), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
