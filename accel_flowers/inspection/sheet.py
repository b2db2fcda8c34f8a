"""A sheet of a recipe's augmentations: the very images that the network gets, before they are normalised.

It asks the loader of the training for them, with the recipe's seed and split; so cell (image, epoch) is what that
image becomes in that epoch of a run of the recipe on this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from accel_flowers.config.schema import Config, DataConfig
from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.files import replace_file, writing
from accel_flowers.data.dataset import ImageDataset
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.label_sets import strata
from accel_flowers.data.sampler import SampleKey
from accel_flowers.data.split import Split
from accel_flowers.data.table import ImageTable
from accel_flowers.data.transforms.build import build_transform, check_repeatable
from accel_flowers.models.preprocessing import settle_preprocessing

NUM_PICTURES, NUM_EPOCHS = 6, 6
_CELL, _GAP, _HEAD, _LABEL = 200, 12, 44, 26
_GROUND, _INK, _QUIET = (250, 250, 248), (29, 33, 31), (98, 106, 102)


def augmented(
    table: ImageTable, split: Split, data: DataConfig, *, seed: int, samples: Sequence[int], num_epochs: int
) -> tuple[list[Tensor], list[Tensor]]:
    """What the network gets of some training images.

    Args:
        table: the images.
        split: who is in train.
        data: the recipe's section, its preprocessing settled.
        seed: the recipe's `train.seed`.
        samples: places in the training part.
        num_epochs: from the first on.

    Returns:
        For each sample uint8 [3, h, w] as in evaluation, and uint8 [num_epochs, 3, H, W] as in training.

    Raises:
        UserError: a mistake in the recipe's lists, or an image that cannot be read.
    """
    preprocessing = data.preprocessing()
    for_training, _ = build_transform(preprocessing.train_transforms, field="data.train_transforms")
    for_evaluation, _ = build_transform(preprocessing.eval_transforms, field="data.eval_transforms")
    check_repeatable(for_evaluation, field="data.eval_transforms")
    plain, changed = (ImageDataset(table, "train", split, t, seed=seed) for t in (for_evaluation, for_training))

    def pixels_of(images: ImageDataset, keys: list[SampleKey]) -> Tensor:
        batch = images.__getitems__(keys)
        if isinstance(batch, BadImageError):
            raise batch
        return batch["pixels"]

    with torch.random.fork_rng(devices=[]):
        originals = [pixels_of(plain, [SampleKey(sample, 0, 0)])[0] for sample in samples]
        versions = [
            pixels_of(changed, [SampleKey(sample, epoch, 0) for epoch in range(num_epochs)]) for sample in samples
        ]
    return originals, versions


def choose_samples(table: ImageTable, split: Split, num_images: int = NUM_PICTURES) -> list[int]:
    """Training images to show: one class after the other, the first of each, then the second."""
    class_of = dict(zip(table.files, strata(table.labels).tolist(), strict=True))
    seen: dict[int, int] = {}
    ranked = []
    for place, name in enumerate(split.files_of("train")):
        rank = seen.get(class_of[name], 0)
        seen[class_of[name]] = rank + 1
        ranked.append((rank, class_of[name], place))
    return [place for _, _, place in sorted(ranked)[:num_images]]


def write_sheet(path: Path, table: ImageTable, split: Split, config: Config, *, recipe: str) -> None:
    """Write the sheet as a PNG: a row an image; first as in evaluation, then as in epoch 0, 1, ...

    Raises:
        UserError: a mistake in the recipe's lists, or the file cannot be written.
    """
    (settled, _), seed = settle_preprocessing(config), config.train.seed
    samples = choose_samples(table, split)
    if not samples:
        raise UserError("There is no training picture to show.")
    originals, versions = augmented(table, split, settled.data, seed=seed, samples=samples, num_epochs=NUM_EPOCHS)
    files = [split.files_of("train")[sample] for sample in samples]
    sheet = _draw(files, originals, versions, f"{recipe}, seed {seed}: what the network gets, before it is normalised")
    with (
        writing(f"The sheet '{path}'", "Give another file with --transforms-out FILE.png."),
        replace_file(path) as partial,
    ):
        sheet.save(partial, "PNG")


def _draw(files: Sequence[str], originals: Sequence[Tensor], versions: Sequence[Tensor], title: str) -> Image.Image:
    columns = 1 + len(versions[0])
    extra = _GAP  # sets the original apart
    width = _GAP + extra + columns * (_CELL + _GAP)
    height = _HEAD + _LABEL + len(files) * (_CELL + _LABEL + _GAP)
    sheet = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(17), ImageFont.load_default(13)
    draw.text((_GAP, 14), title, fill=_INK, font=large)
    for column in range(columns):
        left = _GAP + column * (_CELL + _GAP) + (extra if column else 0)
        told = f"epoch {column - 1}" if column else "evaluation"
        draw.text((left, _HEAD + 4), told, fill=_INK, font=small)
        for row, (file, original, changed) in enumerate(zip(files, originals, versions, strict=True)):
            top = _HEAD + _LABEL + row * (_CELL + _LABEL + _GAP)
            sheet.paste(_fitted(changed[column - 1] if column else original), (left, top))
            if column == 0:
                name = _shortened(printable(file), width - 2 * _GAP, draw, small)
                draw.text((left, top + _CELL + 5), name, fill=_QUIET, font=small)
    return sheet


def _fitted(pixels: Tensor) -> Image.Image:
    """The image in a square cell; enlarged ones keep their pixels sharp, for that is what the network sees."""
    image = to_pil_image(pixels)
    factor = _CELL / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    how = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (_CELL, _CELL), _GROUND)
    cell.paste(image.resize(size, how), ((_CELL - size[0]) // 2, (_CELL - size[1]) // 2))
    return cell


def _shortened(
    text: str, width: float, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    # The font that comes with Pillow has Latin letters only.
    text = "".join(sign if ord(sign) < 0x250 else "?" for sign in text)
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
