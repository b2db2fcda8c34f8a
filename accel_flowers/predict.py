"""Pictures → labels with a saved model: files and folders in, a table, CSV or JSON out. Needs `model/` alone."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from accel_flowers.data.decode import IMAGE_EXTENSIONS, MAX_BYTES, BadImageError, decode_image
from accel_flowers.errors import UserError, printable
from accel_flowers.models import wants_channels_last
from accel_flowers.reading import read_file
from accel_flowers.saved_model import SavedModel, load_model

FORMATS = ("table", "csv", "json")


@dataclass(frozen=True)
class Row:
    """What the model says of one file, or why it says nothing."""

    file: str
    top: tuple[tuple[str, float], ...] = ()
    """(class, probability), most probable first."""
    error: str | None = None


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Files as given, and what is named like a picture below folders, sorted; hidden ones are passed over.

    What is not there or no file at all (a broken link, an empty folder called 1.jpg) is among them: it gets its row,
    as any picture that cannot be read.

    Raises:
        UserError: nothing to predict, or folders nested too deeply to look into.
    """
    found: list[Path] = []
    for path in paths:
        if os.path.isdir(path):
            try:
                named = sorted(file for file in path.rglob("*") if _is_picture(file.relative_to(path)))
            except RecursionError:
                raise UserError(f"'{path}' holds folders nested hundreds of levels deep. Give the files.") from None
            holders = {folder for file in named for folder in file.parents}
            found += [file for file in named if file not in holders]
        else:
            found.append(path)
    if not found:
        raise UserError(f"No pictures in {', '.join(map(repr, map(str, paths)))}.")
    return found


def _is_picture(file: Path) -> bool:
    """By its name, and not hidden, as in a folder for training."""
    return file.suffix.lower() in IMAGE_EXTENSIONS and not any(part.startswith((".", "__")) for part in file.parts)


def predict_files(model_dir: Path, files: Sequence[Path], *, top_k: int) -> Iterator[Row]:
    """One row a file, in the files' order; a file that cannot be read gets a row with the error.

    Args:
        model_dir: a run's `model/`.
        files: pictures.
        top_k: classes in a row, at most as many as the model has.

    Raises:
        UserError: a damaged model folder, or `top_k` below 1.
    """
    if top_k < 1:
        raise UserError(f"--top-k {top_k} is not allowed: it is 1 or more.")
    saved = load_model(model_dir)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    saved.network.to(device)
    if wants_channels_last(saved.network):
        saved.network.to(memory_format=torch.channels_last)
    size = saved.card.eval_batch_size
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for first in range(0, len(files), size):
            chunk = files[first : first + size]
            yield from _predict_chunk(saved, chunk, list(pool.map(_read, chunk, [saved] * len(chunk))), device, top_k)


def _read(file: Path, saved: SavedModel) -> torch.Tensor | str:
    """The picture as the network's input size, uint8 [3, H, W]; or the cause why not."""
    try:
        picture = decode_image(read_file(file, max_bytes=MAX_BYTES), str(file))
    except BadImageError as error:
        return error.cause
    except OSError as error:
        return error.strerror or str(error)
    try:
        return saved.transform(picture)
    except (ValueError, RuntimeError, MemoryError) as error:  # a picture of 1 x 50,000 pixels, for example
        return f"its {picture.width} x {picture.height} pixels cannot be transformed: {error}"


@torch.inference_mode()
def _predict_chunk(
    saved: SavedModel, files: Sequence[Path], inputs: Sequence[torch.Tensor | str], device: torch.device, top_k: int
) -> Iterator[Row]:
    readable = [pixels for pixels in inputs if isinstance(pixels, torch.Tensor)]
    names = saved.card.class_names
    rows: Iterator[tuple[list[float], list[int]]] = iter(())
    if readable:
        logits = saved.network(saved.normalizer(torch.stack(readable).to(device)))
        values, places = logits.float().softmax(dim=1).topk(min(top_k, len(names)), dim=1)
        rows = iter(zip(values.tolist(), places.tolist(), strict=True))
    for file, pixels in zip(files, inputs, strict=True):
        if isinstance(pixels, str):
            yield Row(str(file), error=pixels)
        else:
            probabilities, labels = next(rows)
            yield Row(str(file), tuple((names[k], p) for k, p in zip(labels, probabilities, strict=True)))


def format_rows(rows: Sequence[Row], how: str) -> str:
    """Rows as a table for people, CSV (file, rank, class, probability, error) or JSON (a list of objects)."""
    if how == "json":
        return json.dumps([_as_json(row) for row in rows], indent=1, ensure_ascii=False)
    if how == "csv":
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "rank", "class", "probability", "error"])
        for row in rows:
            for rank, (name, probability) in enumerate(row.top, start=1):
                writer.writerow([row.file, rank, name, f"{probability:.6f}", ""])
            if row.error:
                writer.writerow([row.file, "", "", "", row.error])
        return stream.getvalue().rstrip("\n")
    names = [printable(row.file) for row in rows]
    width = max(map(len, names))
    return "\n".join(f"{name:<{width}}  {_in_words(row)}" for name, row in zip(names, rows, strict=True))


def _as_json(row: Row) -> dict[str, object]:
    if row.error:
        return {"file": row.file, "error": row.error}
    return {"file": row.file, "top": [{"class": name, "probability": round(p, 6)} for name, p in row.top]}


def _in_words(row: Row) -> str:
    return (
        f"error: {printable(row.error)}"
        if row.error
        else "  ".join(f"{printable(name)} {p:6.1%}" for name, p in row.top)
    )
