"""All that `accel-flowers predict` does, in its order: find the images, ask the model, hand the rows on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from accel_flowers.core.allocator import freed_memory_is_kept
from accel_flowers.core.console import counted
from accel_flowers.core.errors import printable
from accel_flowers.core.out_of_memory import oom_as_user_error
from accel_flowers.core.plural import number_of
from accel_flowers.inference.gallery import Gallery
from accel_flowers.inference.outputs import Format, RowOutput, choose_format, describe_probabilities
from accel_flowers.inference.predict import check_words, find_images, predict_files

_log = logging.getLogger(__name__)


@freed_memory_is_kept()
def predict_to_outputs(
    model_dir: Path,
    paths: Sequence[Path],
    *,
    top_k: int | None,
    tta: bool,
    batch_size: int | None,
    num_workers: int | None,
    how: Format | None,
    out: Path | None,
    html: Path | None,
) -> int:
    """Predict, and write the rows as they come.

    Args:
        model_dir: a run's `model/`.
        paths: files, folders and patterns.
        top_k, tta, batch_size, num_workers: as `predict_files` takes them.
        how: the format; None = by the suffix of `out`.
        out: file for the rows; None = standard output.
        html: file for the gallery; None = none.

    Returns:
        Number of files that could not be read.

    Raises:
        UserError: a mistake in the words, the model folder or the files to write.
    """
    how = choose_format(how, out)
    spec = check_words(model_dir, top_k=top_k, batch_size=batch_size, num_workers=num_workers)
    files = find_images(paths)
    gallery = Gallery(html) if html else None
    about = describe_probabilities(spec, tta=tta)
    calibrated = spec.temperature is not None
    width = max(len(printable(str(file))) for file in files)
    num_bad = 0
    lacks_memory = oom_as_user_error(
        "Leave more memory free, or ask for smaller batches: --batch-size 1.", of_workers="(--num-workers 1)"
    )
    with lacks_memory, RowOutput(out, how, calibrated=calibrated, several=spec.several_labels, width=width) as output:
        rows = predict_files(model_dir, files, top_k=top_k, tta=tta, batch_size=batch_size, num_workers=num_workers)
        # On a terminal the rows themselves show how far it is; a bar would stand between them.
        for row in counted(rows, len(files), unit="picture", bar=out is not None or not sys.stdout.isatty()):
            num_bad += row.error is not None
            output.write(row)
            if gallery:
                gallery.add(row)
    _log.info(about)
    if out:
        _log.info(f"{number_of(len(files), 'file')} in {out}")
    if gallery:
        gallery.write(model=str(model_dir), about=about)
        _log.info(f"gallery in {html}")
    if num_bad:
        _log.info(f"{num_bad:,} of {number_of(len(files), 'file')} could not be read")
    return num_bad
