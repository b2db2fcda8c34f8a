"""What `accel-flowers predict` asks a saved model: files, folders and patterns in, an answer for each file out."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from accel_flowers.core.errors import UserError
from accel_flowers.data.decoding.pillow import IMAGE_EXTENSIONS
from accel_flowers.inference.image_classifier import Prediction, check_numbers, load_model
from accel_flowers.models.saved import ModelSpec, load_spec


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as given, what is named like an image below folders, and what patterns match, each sorted; no hidden ones.

    A pattern (`*`, `?`, `[a-z]`, `**` for folders of any depth) is one that names no file; of what it matches, files named
    like images are taken, and folders are looked into. What is not there or no file at all (a broken link, an empty
    folder called 1.jpg) is among them: it gets its row, as any image that cannot be read.

    Raises:
        UserError: a pattern that matches no image, nothing to predict, or folders nested too deeply to look into.
    """
    found: list[Path] = []
    for path in paths:
        if os.path.isdir(path):  # unlike Path's methods, it answers for any name
            found += _below(path)
        elif glob.has_magic(str(path)) and not os.path.lexists(path):
            found += _matches(str(path))
        else:
            found.append(path)
    if not found:
        raise UserError(f"No pictures in {', '.join(map(repr, map(str, paths)))}.")
    return found


def _below(folder: Path) -> list[Path]:
    try:
        named = sorted(file for file in folder.rglob("*") if _is_image(file.relative_to(folder)))
    except RecursionError:
        raise UserError(f"'{folder}' holds folders nested hundreds of levels deep. Give the files.") from None
    holders = {holder for file in named for holder in file.parents}
    return [file for file in named if file not in holders]


def _matches(pattern: str) -> list[Path]:
    matched = [Path(name) for name in glob.iglob(os.path.expanduser(pattern), recursive=True)]
    images = {path for path in matched if _is_image(Path(path.name)) and not path.is_dir()}
    for folder in matched:
        if folder.is_dir():
            images.update(_below(folder))
    if not images:
        others = (
            f"{len(matched)} files, but none with the name of a picture (.jpg, .png, ...)" if matched else "nothing"
        )
        raise UserError(
            f"The pattern '{pattern}' matches {others}. '**' stands for folders of any depth: 'new/**/*.jpg'."
        )
    return sorted(images)


def _is_image(file: Path) -> bool:
    """By its name, and not hidden, as in a folder for training."""
    return file.suffix.lower() in IMAGE_EXTENSIONS and not any(part.startswith((".", "__")) for part in file.parts)


def check_words(model_dir: Path, *, top_k: int, batch_size: int | None, num_workers: int | None) -> ModelSpec:
    """The spec of the model that is to be asked, where it can be asked so.

    Raises:
        UserError: no model folder, or a number that is out of range.
    """
    spec = load_spec(model_dir)
    names = {"top_k": "--top-k", "batch_size": "--batch-size", "num_workers": "--num-workers"}
    check_numbers(spec.class_names, top_k=top_k, batch_size=batch_size, num_workers=num_workers, names=names)
    return spec


def predict_files(
    model_dir: Path,
    files: Sequence[Path],
    *,
    top_k: int,
    tta: bool = False,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> Iterator[Prediction]:
    """An answer for each file, in the files' order, as they come; see `ImageClassifier.predict_each`.

    Raises:
        UserError: a damaged model folder, or a number that is out of range.
    """
    check_words(model_dir, top_k=top_k, batch_size=batch_size, num_workers=num_workers)
    model = load_model(model_dir)
    yield from model.predict_each(files, top_k=top_k, tta=tta, batch_size=batch_size, num_workers=num_workers)
