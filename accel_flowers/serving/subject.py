"""The model that is served, its name and its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from accel_flowers.core.errors import UserError, printable
from accel_flowers.inference.image_classifier import ImageClassifier, load_model
from accel_flowers.models.saved import SPEC_FILE, WEIGHTS, model_folder
from accel_flowers.models.spec import ModelSpec
from accel_flowers.serving.heat import has_gradients
from accel_flowers.tracking.run_dir import MODEL_DIR

_DIGEST_LENGTH = 16


@dataclass(frozen=True)
class Subject:
    """A model that is served."""

    model: ImageClassifier
    name: str
    """The run, or the file."""
    digest: str
    """The same digest, the same answers."""
    heatmap: bool
    """Whether it can show where it looked."""

    @property
    def spec(self) -> ModelSpec:
        """All that its folder or file says of it."""
        return self.model.spec


def load_subject(path: Path) -> Subject:
    """Read a model.

    Args:
        path: RUN_DIR/model, RUN_DIR, or an exported file.

    Raises:
        UserError: it cannot be read.
    """
    model = load_model(path)
    files = [path] if path.is_file() else [model_folder(path) / name for name in (WEIGHTS, SPEC_FILE)]
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise UserError(f"'{file}' cannot be read: {error.strerror}.") from None
    return Subject(model, _name_of(path), digest.hexdigest()[:_DIGEST_LENGTH], has_gradients(model))


def _name_of(path: Path) -> str:
    """What people call it: a run's folder rather than the `model` in it."""
    place = path.absolute()
    if path.is_file():
        return printable(place.stem)
    return printable(place.parent.name if place.name == MODEL_DIR and place.parent.name else place.name)
