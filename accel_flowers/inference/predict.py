"""Images → labels with a saved model: files, folders and patterns in, a row for each file out. Needs `model/` alone.

Files are read and decoded in threads while the network works on those before, and rows go out as they come: memory holds
a few batches, whatever the number of files. A file that cannot be read gets a row with the cause.

What a row says does not depend on the size of the batches or the number of threads, but for the last digits: a device
may sum in another order for another number of images at once (probabilities agree to about 1e-6 in float32 on CPU).
"""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from accel_flowers.core.errors import UserError
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import IMAGE_EXTENSIONS, MAX_BYTES, BadImageError
from accel_flowers.models.backbone import wants_channels_last
from accel_flowers.models.saved import ModelSpec, SavedModel, load_model, load_spec

_AHEAD = 3
"""Batches that are decoded while one is in the network; bounds the memory."""


@dataclass(frozen=True)
class Row:
    """What the model says of one file, or why it says nothing."""

    file: str
    top: tuple[tuple[str, float], ...] = ()
    """(class, probability), most probable first."""
    error: str | None = None


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
    names = spec.class_names
    if not 1 <= top_k <= len(names):
        raise UserError(
            f"--top-k {top_k} is not allowed: it is 1 or more, and at most {len(names)}, for the model knows {len(names)} "
            f"classes ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})."
        )
    for flag, value in (("--batch-size", batch_size), ("--num-workers", num_workers)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value} is not allowed: it is 1 or more.")
    return spec


def predict_files(
    model_dir: Path,
    files: Sequence[Path],
    *,
    top_k: int,
    tta: bool = False,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> Iterator[Row]:
    """One row a file, in the files' order; a file that cannot be read gets a row with the error.

    Probabilities are calibrated where the model's spec holds a temperature.

    Args:
        model_dir: a run's `model/`.
        files: images.
        top_k: classes in a row, at most as many as the model has.
        tta: average the probabilities of each image and its mirror image (left and right exchanged).
        batch_size: images in one forward pass; None = what the model was scored with.
        num_workers: threads that decode; None = the cores of this machine.

    Raises:
        UserError: a damaged model folder, or a number that is out of range.
    """
    check_words(model_dir, top_k=top_k, batch_size=batch_size, num_workers=num_workers)
    saved = load_model(model_dir)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    saved.network.to(device)
    if wants_channels_last(saved.network):
        saved.network.to(memory_format=torch.channels_last)
    size = batch_size or saved.spec.eval_batch_size
    chunks = (files[first : first + size] for first in range(0, len(files), size))
    pool = ThreadPoolExecutor(num_workers or len(os.sched_getaffinity(0)))
    waiting: deque[tuple[Sequence[Path], list[Future[Tensor | str]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, [pool.submit(_read, file, saved) for file in chunk]))
            if len(waiting) > _AHEAD:
                yield from _rows_of(saved, *waiting.popleft(), device, top_k, tta)
        while waiting:
            yield from _rows_of(saved, *waiting.popleft(), device, top_k, tta)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever wanted only the first rows waits for no others


def _read(file: Path, saved: SavedModel) -> Tensor | str:
    """The image as the network's input size, uint8 [3, H, W]; or the cause why not."""
    try:
        return saved.transform.of_file(read_file(file, max_bytes=MAX_BYTES), str(file))
    except BadImageError as error:
        return error.cause
    except OSError as error:
        return error.strerror or str(error)


def _rows_of(
    saved: SavedModel,
    files: Sequence[Path],
    futures: Sequence[Future[Tensor | str]],
    device: torch.device,
    top_k: int,
    tta: bool,
) -> Iterator[Row]:
    inputs = [future.result() for future in futures]
    readable = [pixels for pixels in inputs if isinstance(pixels, Tensor)]
    names = saved.spec.class_names
    rows: Iterator[tuple[list[float], list[int]]] = iter(())
    if readable:
        values, places = _probabilities(saved, torch.stack(readable).to(device), tta).topk(top_k, dim=1)
        rows = iter(zip(values.tolist(), places.tolist(), strict=True))
    for file, pixels in zip(files, inputs, strict=True):
        if isinstance(pixels, str):
            yield Row(str(file), error=pixels)
        else:
            probabilities, labels = next(rows)
            yield Row(str(file), tuple((names[k], p) for k, p in zip(labels, probabilities, strict=True)))


@torch.inference_mode()
def _probabilities(saved: SavedModel, pixels: Tensor, tta: bool) -> Tensor:
    """uint8 [B, 3, H, W] → float32 [B, classes]."""
    views = [pixels, pixels.flip(-1)] if tta else [pixels]
    # softmax(log p / T) is softmax(logits / T): the two differ by a constant that softmax takes away.
    temperature = saved.spec.temperature or 1.0
    parts = [(saved.network(saved.normalizer(view)).float() / temperature).softmax(dim=1) for view in views]
    return torch.stack(parts).mean(dim=0)
