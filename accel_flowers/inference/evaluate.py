"""A saved model and a folder → scores, the same on any number of processes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.backends import fast_arithmetic
from accel_flowers.core.errors import UserError, printable
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.loader import build_loader
from accel_flowers.data.sampler import SequentialBatchSampler
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import PARTS, Split, load_split
from accel_flowers.data.table import ImageTable
from accel_flowers.data.validate import check_readable
from accel_flowers.data.workers import fit_shared_memory, local_cores, plan_workers, workers_as_user_error
from accel_flowers.distributed.collectives import (
    broadcast_from_main,
    log_on_main,
    main_process_first,
    num_local_processes,
)
from accel_flowers.distributed.launch import computes_on_cpu, launched_precision
from accel_flowers.distributed.session import process_session
from accel_flowers.inference.loop import predict_loader
from accel_flowers.metrics.classification import Scores
from accel_flowers.models.saved import load_model, load_spec
from accel_flowers.tracking.run_dir import versions


def evaluate(
    model_dir: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split_file: str | os.PathLike[str] | None = None,
    part: str | None = None,
    num_workers: int | None = None,
    owns_process: bool = False,
) -> Scores:
    """Score a saved model on a folder, in the precision and batches that its own scores were made with; collective.

    Args:
        model_dir: a run's `model/`.
        data: folder with one sub-folder per class (of the model's classes), zip or hub dataset.
        split_file: a run's split.json; only its files of `part` are scored.
        part: "train", "val" or "test"; None = test, or all images where the folder has no parts.
        num_workers: loader processes; None = choose.
        owns_process: whether SIGTERM, SIGUSR1, SIGINT and SIGHUP are answered here, as on the command line.

    Returns:
        The scores, the same on every process; their part is "all" where there are no parts.

    Raises:
        UserError: a mistake in the model folder, the images or the launch.
        Interrupted: a signal.
        RankLost: another process failed, fell silent or is gone.
    """
    model_dir, source = Path(model_dir), os.fspath(data)
    split_file = Path(split_file) if split_file is not None else None
    spec = load_spec(model_dir)
    facts = {**versions(), "model": spec.model_dump(mode="json", exclude={"scores"})}
    with process_session(facts, owns_process=owns_process) as together, workers_as_user_error():
        accelerator = together.build_accelerator(mixed_precision=_available_precision(spec.precision))
        saved = main_process_first(accelerator, lambda: load_model(model_dir))
        table = main_process_first(accelerator, lambda: _with_labels_of_model(load_images(source), spec.class_names))
        wanted, split = broadcast_from_main(accelerator, lambda: _choose_part(table, split_file, part))
        images = ImageDataset(table, wanted, split, saved.transform, seed=0)
        local = num_local_processes(accelerator)
        if num_workers is None:
            num_workers = plan_workers(local_cores(local), on_cpu=accelerator.device.type == "cpu")
        batch_bytes = spec.eval_batch_size * images.bytes_of_one() if num_workers else 0
        num_workers, told = fit_shared_memory(num_workers, [batch_bytes], local)
        if told:
            log_on_main(accelerator, told)
        loader = build_loader(
            images,
            SequentialBatchSampler(len(images), spec.eval_batch_size),
            num_workers=num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        accelerator.prepare_model(saved.network, evaluation_mode=True)
        # The same arithmetic as in training.
        with fast_arithmetic(accelerator.device), together.preemption(accelerator, CheckpointConfig()) as preemption:
            predictions = predict_loader(
                saved.network,
                accelerator.prepare(loader),
                lambda batch: saved.normalizer(batch["pixels"]),
                accelerator,
                num_images=len(images),
                after_round=preemption.while_scoring(None),
            )
    whole = split_file is None and table.given_parts is None
    return Scores.of("all" if whole else wanted, predictions, spec.class_names)


def describe_scores(scores: Scores) -> str:
    """A line for the part and a table of its classes, for a terminal."""
    width = max(len(printable(name)) for name in scores.per_class)
    own = "".join(f", {name} {value:.4f}" for name, value in scores.own.items())
    lines = [
        f"{scores.num_images} pictures ({scores.part}): accuracy {scores.accuracy:.4f}, loss {scores.loss:.4f}, "
        f"macro F1 {scores.macro_f1:.4f}{own}",
        f"{'':<{width}}  precision  recall      F1  pictures",
    ]
    lines += [
        f"{printable(name):<{width}}  {row.precision:9.4f}  {row.recall:6.4f}  {row.f1:6.4f}  {row.count:8d}"
        for name, row in scores.per_class.items()
    ]
    return "\n".join(lines)


def _available_precision(recorded: str) -> str | None:
    """The launcher's precision where there is a launcher; else the recorded one where this device has it.

    On a CPU the launcher's bf16 means, as in training, bf16 or float32, whichever suits the network: the recorded one.
    """
    on_cpu = computes_on_cpu()
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return "no" if on_cpu and (launched_precision(), recorded) == ("bf16", "no") else None
    return "no" if recorded == "fp16" and on_cpu else recorded


def _with_labels_of_model(table: ImageTable, class_names: tuple[str, ...]) -> ImageTable:
    """Classes are matched by name: a folder that lacks one, or sorts them differently, is scored rightly."""
    unknown = sorted(set(table.class_names) - set(class_names))
    if unknown:
        raise UserError(
            f"'{table.source}' has classes that the model does not know: {', '.join(unknown)}. "
            f"The model knows {', '.join(class_names)}; folders must be named so."
        )
    to_model = np.array([class_names.index(name) for name in table.class_names], dtype=np.int64)
    return replace(table, labels=to_model[table.labels], class_names=class_names)


def _choose_part(table: ImageTable, split_file: Path | None, part: str | None) -> tuple[str, Split]:
    if part not in (None, *PARTS):
        raise UserError(f"--part '{part}' is not allowed; take one of {', '.join(PARTS)}.")
    if split_file is not None:
        split = load_split(split_file)
        wanted = part or ("test" if split.files_of("test") else "val")
        missing = sorted(set(split.files_of(wanted)) - set(table.files))
        if missing:
            raise UserError(
                f"{len(missing)} files that {split_file} puts into {wanted} are not in '{table.source}', "
                f"for example '{missing[0]}'. Give the folder that the split was made from."
            )
    else:
        if part is not None and table.given_parts is None:
            raise UserError(
                f"'{table.source}' has no parts, so there is no '{part}' to score: give the run's split with "
                "--split RUN_DIR/split.json, or leave --part out to score all pictures."
            )
        given = table.given_parts or ("test",) * len(table.files)
        split = Split(table.class_names, dict(zip(table.files, given, strict=True)))
        wanted = part or ("test" if "test" in given else "val")
    files = split.files_of(wanted)
    if not files:
        raise UserError(f"There is no picture in the part '{wanted}' of '{split_file or table.source}'.")
    check_readable(table, files)
    return wanted, split
