"""A model folder → one file for other programs, with proof that it answers as the model does."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accel_flowers import __version__
from accel_flowers.config.field_types import TransformSpec
from accel_flowers.core.allocator import freed_memory_is_kept
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import check_writable, writing
from accel_flowers.core.plural import number_of
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.export.files import SUFFIXES, Exported, Format, write
from accel_flowers.export.graph import preparation_of
from accel_flowers.export.parity import Parity, compare, pixels_of, reference
from accel_flowers.export.pictures import Picture, find_pictures
from accel_flowers.export.timing import Speed, measure
from accel_flowers.metrics.intervals import Paired, compare_paired
from accel_flowers.models.ecosystem import crop_of
from accel_flowers.models.find import takes_size
from accel_flowers.models.onnx_graph import METADATA, is_onnx, metadata_of
from accel_flowers.models.saved import WEIGHTS, SavedModel, load_model, model_folder
from accel_flowers.models.spec import ModelSpec

_MOST_SCORED = 2000
"""Pictures that the accuracy of an int8 network is measured on: the interval of a difference is then below a point."""


@dataclass(frozen=True)
class Quantised:
    """What int8 costs, on pictures that it was not calibrated with where there are such.

    Attributes:
        before, after: accuracy; None where the pictures have no classes.
        same: pictures of which both say the same class.
        paired: the difference of the accuracies, with its interval.
        num_pictures: of it.
        largest: difference of a probability.
    """

    num_pictures: int
    same: int
    largest: float
    before: float | None
    after: float | None
    paired: Paired | None

    @property
    def loss(self) -> float:
        """Points of accuracy lost; where no classes are known, of a hundred pictures those that got another one."""
        if self.paired is not None:
            return -100 * self.paired.difference.value
        return 100 * (1 - self.same / self.num_pictures)


@dataclass(frozen=True)
class ExportResult:
    """What was written, and what was found of it.

    Attributes:
        paths: files.
        format: of them.
        picture_in: whether the file prepares pictures itself.
        parity: the comparison; None for int8, which has `quantised`.
        quantised: what int8 costs.
        bytes_before, bytes_after: of weights, of the files.
        before, after: speed of the model in torch, of the file.
        threads: of both.
    """

    paths: tuple[Path, ...]
    format: Format
    picture_in: bool
    parity: Parity | None
    quantised: Quantised | None
    bytes_before: int
    bytes_after: int
    before: Speed
    after: Speed
    threads: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "paths": [str(path) for path in self.paths]}


@freed_memory_is_kept()
def export(
    model_dir: Path,
    out: Path,
    how: Format | None = None,
    *,
    picture_in: bool = False,
    size: int | None = None,
    data: str | None = None,
    num_pictures: int = 100,
    num_calibration: int = 200,
    accept_loss: float = 1.0,
    seed: int = 0,
) -> ExportResult:
    """Write a model as one file, once it has answered as the model does.

    Args:
        model_dir: RUN_DIR/model.
        out: the file.
        how: None = by the file's suffix; "onnx", "int8" (an ONNX file of 8-bit integers), "torch" (`torch.export`) or "openvino".
        picture_in: put the preparation of pictures into the graph (ONNX).
        size: side of the network's input in pixels, where that shall be another than the model's; pictures are resized accordingly.
        data: pictures to compare on; None = the validation pictures of the run.
        num_pictures: so many of them.
        num_calibration: pictures that an int8 network's ranges are taken from.
        accept_loss: points of accuracy that int8 may cost.
        seed: what the pictures are drawn from.

    Raises:
        UserError: a mistake in the words, no pictures, a network that cannot be exported, or a file that does not answer as the
            model does; nothing is written then.
    """
    how = how or _format_of(out)
    _check_words(
        out, how, picture_in=picture_in, numbers={"--pictures": num_pictures, "--calibration-pictures": num_calibration}
    )
    if is_onnx(model_dir):
        raise UserError(f"'{model_dir}' is an exported file already: give the model folder that it was made from.")
    saved = load_model(model_dir)
    if size is not None:
        saved = at_size(saved, size)
    folder = model_folder(model_dir)
    pictures = find_pictures(folder, saved.spec, data)
    proof = pictures.read(pictures.proof, _MOST_SCORED if how == "int8" else num_pictures, seed)
    calibration = pictures.read(pictures.calibration, num_calibration, seed + 1) if how == "int8" else []
    for found in (proof, *([calibration] if how == "int8" else [])):
        if len(found) < 2:
            raise UserError(
                f"There are {number_of(len(found), 'picture')} to compare on in '{pictures.source}': give more with --data DIR."
            )
    with tempfile.TemporaryDirectory(prefix="export-", dir=out.absolute().parent) as aside:
        exported = write(
            saved,
            Path(aside) / out.name,
            how,
            picture_in=picture_in,
            told=_told(folder, saved.spec, picture_in=picture_in),
            calibration=calibration,
        )
        parity = quantised = None
        if how == "int8":
            quantised = _judge(saved, proof, exported, accept_loss)
        else:
            parity = compare(saved, proof, exported.answer, made=exported.made)
        sides = tuple(pixels_of(saved, proof[:1]).shape[2:])
        before = measure(lambda pixels: reference(saved, pixels), sides)
        after = (
            measure(exported.network, sides)
            if exported.network
            else measure(_one_by_one(exported, proof), sides, batches=False)
        )
        bytes_after = sum(path.stat().st_size for path in exported.paths)
        with writing(f"'{out}'", "Make room, or give another file with --out FILE."):
            paths = tuple(out.with_suffix(path.suffix) for path in exported.paths)
            for made, path in zip(exported.paths, paths, strict=True):
                os.replace(made, path)
    weights = (folder / WEIGHTS).stat().st_size
    return ExportResult(
        paths, how, picture_in, parity, quantised, weights, bytes_after, before, after, torch.get_num_threads()
    )


def at_size(saved: SavedModel, side: int) -> SavedModel:
    """The same model for pictures of another size.

    Raises:
        UserError: the network takes no such size, or its preparation of pictures is no resize and crop.
    """
    spec, crop = saved.spec, crop_of(saved.spec.transforms)
    if crop is None:
        raise UserError(
            f"--size: the model's transforms {list(spec.transforms)} are no resize and crop that could have another size."
        )
    if side < 1 or spec.backbones or not takes_size(spec.architecture, (side, side)):
        height, width = crop.size
        raise UserError(
            f"--size {side}: {spec.architecture} does not take it; the model was made for {height} x {width} pixels."
        )
    options = {} if crop.interpolation == "bilinear" else {"interpolation": crop.interpolation}
    transforms: tuple[TransformSpec, ...] = ({"Resize": {"size": [side, side], **options}},)
    if not crop.squash:
        shorter = round(crop.resize * side / min(crop.size))
        transforms = ({"Resize": {"size": shorter, **options}}, {"CenterCrop": {"size": side}})
    transform, _ = build_transform(transforms, field="--size")
    return replace(saved, spec=spec.model_copy(update={"transforms": transforms}), transform=transform)


_BY_SUFFIX: tuple[Format, ...] = ("onnx", "torch", "openvino")


def _format_of(out: Path) -> Format:
    by_suffix: dict[str, Format] = {SUFFIXES[how]: how for how in _BY_SUFFIX}
    found = by_suffix.get(out.suffix.lower())
    if found is None:
        told = ", ".join(f"{suffix} ({how})" for suffix, how in by_suffix.items())
        raise UserError(f"--out '{out}' has a suffix that tells no format: {told}.")
    return found


def _check_words(out: Path, how: Format, *, picture_in: bool, numbers: dict[str, int]) -> None:
    suffix = SUFFIXES[how]
    if out.suffix.lower() != suffix:
        raise UserError(f"--out '{out}': a file of --format {how} ends in {suffix}.")
    if picture_in and how not in ("onnx", "int8"):
        raise UserError(f"--picture-in is for ONNX files (--format onnx or int8), not for {how}.")
    for name, number in numbers.items():
        if number < 2:
            raise UserError(f"{name} {number} is not allowed: it is 2 or more.")
    check_writable(out, "--out")


def _told(folder: Path, spec: ModelSpec, *, picture_in: bool) -> dict[str, str]:
    """Metadata: what a program needs that knows nothing of this one, and what this one needs."""
    with open(folder / WEIGHTS, "rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    spec = spec.model_copy(update={"precision": "no", "eval_batch_size": min(spec.eval_batch_size, 64)})
    return {
        METADATA: metadata_of(spec),
        "classes": json.dumps(list(spec.class_names), ensure_ascii=False),
        "preparation": "null" if picture_in else preparation_of(crop_of(spec.transforms)),
        "weights_sha256": digest,
        "version": __version__,
    }


def _judge(saved: SavedModel, proof: Sequence[Picture], exported: Exported, accept_loss: float) -> Quantised:
    """What int8 costs.

    Raises:
        UserError: more than is accepted.
    """
    ours = reference(saved, pixels_of(saved, proof))
    theirs = exported.answer([picture.data for picture in proof])
    said, other = ours.argmax(axis=1), theirs.argmax(axis=1)
    labels = [picture.label for picture in proof]
    before = after = paired = None
    if None not in labels:
        right = [said == np.array(labels), other == np.array(labels)]
        paired = compare_paired(right[0], right[1])
        before, after = (float(each.mean()) for each in right)
    found = Quantised(len(proof), int((said == other).sum()), float(np.abs(ours - theirs).max()), before, after, paired)
    if found.loss > accept_loss:
        what = (
            f"accuracy falls from {before:.1%} to {after:.1%}, by {found.loss:.1f} points (95 % interval {-100 * paired.difference.high:.1f} to "
            f"{-100 * paired.difference.low:.1f}),"
            if paired
            else f"{len(proof) - found.same} of {number_of(len(proof), 'picture')} get another class,"
        )
        raise UserError(
            f"With int8 {what} where {accept_loss:g} is accepted. Nothing was written. To take it all the same: --accept-loss "
            f"{np.ceil(10 * found.loss) / 10:g}. More calibration pictures may help (--calibration-pictures), or another network."
        )
    return found


def _one_by_one(exported: Exported, proof: Sequence[Picture]) -> Any:
    """The file asked of a real picture, for its time: it takes one at once, from the encoded image on."""
    return lambda _: exported.answer([proof[0].data])
