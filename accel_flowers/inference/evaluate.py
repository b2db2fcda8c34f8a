"""A saved model and a folder → scores, the same on any number of processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from accel_flowers.config.schema import CheckpointConfig
from accel_flowers.core.backends import fast_arithmetic, fast_precision
from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.order import natural_key
from accel_flowers.core.out_of_memory import oom_as_user_error
from accel_flowers.core.plural import number_of
from accel_flowers.data.content import content_facts, table_facts
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.decide_split import describe_table
from accel_flowers.data.label_fixes import relabel
from accel_flowers.data.label_sets import classes_in, renumbered
from accel_flowers.data.loader import build_loader
from accel_flowers.data.sampler import SequentialBatchSampler
from accel_flowers.data.sources.layout import one_form
from accel_flowers.data.sources.load import load_images
from accel_flowers.data.split import PARTS, Split, load_split
from accel_flowers.data.table import SPLIT_FOLDERS, ImageTable, quoted
from accel_flowers.data.validate import check_readable
from accel_flowers.data.workers import fit_shared_memory, local_cores, plan_workers, workers_as_user_error
from accel_flowers.distributed.collectives import (
    broadcast_from_main,
    check_same_everywhere,
    log_on_main,
    main_process_first,
    num_local_processes,
)
from accel_flowers.distributed.session import process_session
from accel_flowers.inference.loop import predict_loader
from accel_flowers.metrics.classification import Predictions, Scores, Seen, in_short
from accel_flowers.models.saved import load_model, load_spec, model_folder
from accel_flowers.models.seen import load_seen, short_digests
from accel_flowers.models.spec import ModelSpec
from accel_flowers.tracking.run_dir import versions


def evaluate(
    model_dir: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    label_separator: str | None = None,
    label_columns: Sequence[str] = (),
    split_file: str | os.PathLike[str] | None = None,
    part: str | None = None,
    num_workers: int | None = None,
    owns_process: bool = False,
) -> Scores:
    """Score a saved model on a folder, in the precision and batches that its own scores were made with; collective.

    Args:
        model_dir: a run's `model/`.
        data: folder with one sub-folder per class, zip or dataset. Its classes are matched with the model's by name; it
            need not have all of them, and the log tells what it lacks and what is left out.
        label_column, label_separator, label_columns: where the labels stand in a dataset or a CSV, as of `load_images`.
        split_file: a run's split.json; only its files of `part` are scored, with the classes that it gives some of them (it does
            where the run had label fixes).
        part: "train", "val" or "test"; None = test, or all images where the folder has no parts.
        num_workers: loader processes; None = choose.
        owns_process: whether SIGTERM, SIGUSR1, SIGINT and SIGHUP are answered here, as on the command line.

    Returns:
        The scores, the same on every process; their part is "all" where there are no parts. `seen` says how many of the images
        the model knows from its training, and scores the others apart.

    Raises:
        UserError: a mistake in the model folder, the images or the launch.
        Interrupted: a signal.
        RankLost: another process failed, fell silent or is gone.
        OutOfMemory: of the device or of the machine.
    """
    model_dir, source = model_folder(Path(model_dir)), os.fspath(data)
    split_file = Path(split_file) if split_file is not None else None
    spec = load_spec(model_dir)
    facts = {**versions(), "model": spec.model_dump(mode="json", exclude={"scores"})}
    lacks_memory = oom_as_user_error(
        f"The model is scored as its own scores were made, in batches of {spec.eval_batch_size}: leave more memory free.",
        of_workers="(--num-workers 0)",
    )
    with process_session(facts, owns_process=owns_process) as together, lacks_memory, workers_as_user_error():
        precision = _available_precision(spec.precision, together.processes.device)
        accelerator = together.build_accelerator(mixed_precision=precision)
        if precision != spec.precision:
            log_on_main(accelerator, f"in float32, because {accelerator.device} has no {spec.precision}")
        saved = main_process_first(accelerator, lambda: load_model(model_dir))
        table = main_process_first(
            accelerator,
            lambda: _with_labels_of_model(
                load_images(
                    source,
                    label_column=label_column,
                    label_separator=label_separator,
                    label_columns=label_columns,
                    to_learn=False,
                ),
                spec,
            ),
        )
        wanted, split, known = broadcast_from_main(
            accelerator, lambda: _choose_part(table, split_file, part, model_dir)
        )
        table = relabel(table, split.relabelled)
        check_same_everywhere(accelerator, table_facts(table))
        if accelerator.num_processes > 1:
            check_same_everywhere(accelerator, content_facts(table, split.files_of(wanted), seed=0))
        log_on_main(accelerator, *describe_table(table), *_absent_classes(table, split.files_of(wanted)))
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
                saved.classifier.views,
                accelerator.prepare(loader),
                lambda batch: saved.normalizer(batch["pixels"]),
                accelerator,
                num_images=len(images),
                after_round=preemption.while_scoring(None),
            )
    predictions = predictions.with_thresholds(spec.thresholds)
    whole = split_file is None and table.given_parts is None
    name = "all" if whole else wanted
    scores = Scores.of(name, predictions, spec.class_names)
    return replace(scores, seen=_score_the_others(name, predictions, spec.class_names, known))


def _score_the_others(
    part: str, predictions: Predictions, class_names: tuple[str, ...], known: dict[str, npt.NDArray[np.bool_]] | None
) -> Seen | None:
    """What the model knows of the images, and the scores of those that it does not."""
    if known is None:
        return None
    new = ~(known["train"] | known["val"])
    apart = Scores.of(part, predictions.of_images(new), class_names) if new.any() and not new.all() else None
    return Seen(train=int(known["train"].sum()), val=int(known["val"].sum()), others=apart)


def _known(model_dir: Path, digests: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]] | None:
    """ "train" and "val" → whether the model knows each image from there, bool [N]; None where it does not say."""
    seen = load_seen(model_dir)
    if seen is None:
        return None
    images = short_digests(digests)
    trained = np.isin(images, seen["train"])
    return {"train": trained, "val": np.isin(images, seen["val"]) & ~trained}


def describe_scores(scores: Scores) -> str:
    """A line for the part and a table of its classes, for a terminal."""
    width = max(len(printable(name)) for name in scores.per_class)
    own = "".join(f", {name} {value:.4f}" for name, value in scores.own.items())
    lines = [
        f"{number_of(scores.num_images, 'picture')} ({scores.part}): {_in_short(scores)}{own}",
        printable(scores.baseline_in_words()),
        f"{'':<{width}}  {scores.columns()}",
    ]
    lines += [
        f"{printable(name):<{width}}  {row.as_columns()}"
        for name, row in sorted(scores.per_class.items(), key=lambda item: natural_key(item[0]))
    ]
    return "\n".join([*lines, *_describe_seen(scores)])


def _in_short(scores: Scores) -> str:
    return in_short(scores.as_json())


def _describe_seen(scores: Scores) -> list[str]:
    """What the model knows of the images: its score on them says little of its score on new ones."""
    seen = scores.seen
    if seen is None or not seen.train + seen.val:
        return []
    told = [f"{seen.train} of these {scores.num_images} trained this model"] if seen.train else []
    told += [f"{seen.val}{'' if told else f' of these {scores.num_images}'} chose its best epoch"] if seen.val else []
    lines = ["", f"{' and '.join(told)}: the score above says little of new pictures."]
    if seen.others:
        lines.append(f"{seen.others.num_images} that it has not seen: {_in_short(seen.others)}")
    else:
        lines.append("None is new to it: score others, or --split RUN_DIR/split.json --part test.")
    return lines


def _available_precision(recorded: str, device: torch.device) -> str:
    """The recorded one, whatever a launcher says, so that scores are the same from any launch; float32 where the device
    does not have it."""
    missing = recorded == ("fp16" if device.type == "cpu" else "bf16" if fast_precision(device) != "bf16" else None)
    return "no" if missing else recorded


def _with_labels_of_model(table: ImageTable, spec: ModelSpec) -> ImageTable:
    """Classes are matched by name: a folder that lacks one, or sorts them differently, is scored rightly."""
    class_names = spec.class_names
    known = {one_form(name): label for label, name in enumerate(class_names)}
    unknown = sorted(name for name in table.class_names if one_form(name) not in known)
    if unknown:
        raise UserError(
            f"'{table.source}' has classes that the model does not know: {', '.join(unknown)}. "
            f"The model knows {', '.join(class_names)}; folders must be named so."
        )
    if table.several_labels and not spec.several_labels:
        raise UserError(
            f"The pictures of '{table.source}' have several labels each, and the model was trained to name one class: give "
            "pictures of one label, or a model that was trained with --loss.task multilabel."
        )
    several, to_model = spec.several_labels, [known[one_form(name)] for name in table.class_names]
    labels = renumbered(table.labels, to_model, len(class_names), several=several)
    notes = table.notes
    if several and not table.several_labels:
        notes += ("each picture has one label here, and the model may say several: all others count as wrong",)
    return replace(table, labels=labels, class_names=class_names, notes=notes)


def _choose_part(
    table: ImageTable, split_file: Path | None, part: str | None, model_dir: Path
) -> tuple[str, Split, dict[str, npt.NDArray[np.bool_]] | None]:
    """The part to score, with which of its images the model knows.

    Raises:
        UserError: there is no such part, or an image of it cannot be read.
    """
    if part not in (None, *PARTS):
        raise UserError(f"--part '{part}' is not allowed; take one of {', '.join(PARTS)}.")
    if split_file is not None:
        split = load_split(split_file)
        wanted = part or ("test" if split.files_of("test") else "val")
        missing = sorted(set(split.files_of(wanted)) - set(table.files))
        if missing:
            raise UserError(
                f"{number_of(len(missing), 'file')} that {split_file} puts into {wanted} cannot be found in '{table.source}', "
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
        wanted = part or next(each for each in ("test", "val", "train") if each in given)
    files = split.files_of(wanted)
    if not files:
        raise UserError(f"There is no picture in the part '{wanted}' of '{split_file or table.source}'.")
    digests = check_readable(table, files, unreadable=_unreadable_of(table, wanted) if split_file is None else {})
    return wanted, split, _known(model_dir, digests)


def _unreadable_of(table: ImageTable, part: str) -> dict[str, str]:
    """What is named like an image of the part and is no file: it is missed as one that is damaged."""
    return {
        name: cause
        for name, cause in table.unreadable.items()
        if table.given_parts is None or SPLIT_FOLDERS.get(name.split("/")[0].lower()) == part
    }


def _absent_classes(table: ImageTable, files: Sequence[str]) -> list[str]:
    """A note where scores are of a part of the model's classes."""
    there = classes_in(table.labels[table.rows_of(files)])
    absent = [name for label, name in enumerate(table.class_names) if label not in there]
    if not absent:
        return []
    return [
        f"{len(absent)} of the model's {len(table.class_names)} classes have no picture here ({printable(quoted(absent))}): "
        "the scores are of the others"
    ]
