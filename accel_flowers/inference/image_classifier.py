"""A saved model that is asked what is on images: from files, bytes, Pillow, NumPy or torch. Needs `model/` alone.

Images are read and decoded in threads while the network works on those before, and answers go out as they come: memory
holds a few batches, whatever the number of images. What cannot be read gets an answer with the cause.

What an answer says does not depend on the size of the batches or the number of threads, but for the last digits: a device
may sum in another order for another number of images at once (probabilities agree to about 1e-6 in float32 on CPU).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from accel_flowers.core.errors import UserError
from accel_flowers.core.machine import available_cores
from accel_flowers.core.reading import read_file
from accel_flowers.data.decoding.pillow import MAX_BYTES, BadImageError, upright_rgb
from accel_flowers.inference.prediction import Prediction as Prediction
from accel_flowers.inference.prediction import answer_of, check_numbers
from accel_flowers.models import saved as saved_models
from accel_flowers.models.classifier import Classifier
from accel_flowers.models.onnx_file import OnnxClassifier
from accel_flowers.models.saved import SPEC_FILE, SavedModel
from accel_flowers.models.spec import ModelSpec
from accel_flowers.tracking.run_dir import MODEL_DIR

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
"""A file; the bytes of one; an image of Pillow's of any mode; uint8 [H, W, 3] of NumPy; uint8 [3, H, W] of torch."""

_AHEAD = 3
"""Batches that are decoded while one is in the network; bounds the memory."""


_LARGEST_BATCH = 4096
"""Images in one forward pass, whatever a model's file asks for."""


class ImageClassifier:
    """A saved model on a device.

    Args:
        saved: the model.
        device: where it computes.
    """

    def __init__(self, saved: SavedModel, device: torch.device) -> None:
        self.device = device
        self._saved = saved
        self._classifier = saved.classifier.to(device)

    def __repr__(self) -> str:
        return f"ImageClassifier({self.spec.architecture}, {len(self.class_names)} classes, on {self.device})"

    @property
    def saved(self) -> SavedModel:
        """What answers: the transform of its images and the classifier, which is on the device."""
        return self._saved

    @property
    def spec(self) -> ModelSpec:
        """All that the model folder says of it."""
        return self._saved.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        """What an image can be taken for."""
        return self.spec.class_names

    @property
    def scores(self) -> Mapping[str, Any]:
        """Part ("val", "test") → the scores that its run found there."""
        return self.spec.scores

    @property
    def calibrated(self) -> bool:
        """Whether the probabilities are calibrated: the run has fitted a temperature on validation."""
        return self.spec.temperature is not None

    def read(self, data: bytes, name: str) -> Tensor:
        """An image file as the network takes it, uint8 [3, H, W], on the CPU; from any thread.

        Raises:
            BadImageError: it cannot be read.
        """
        return self._saved.transform.of_file(data, name)

    def probabilities(self, images: Sequence[Tensor]) -> Tensor:
        """Of each class, float32 [B, C], of images as `read` gives them."""
        return self._probabilities(images, False)

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int | None = None,
        *,
        batch_size: int | None = None,
        tta: bool = False,
    ) -> list[Prediction]:
        """Say what is on images.

        Args:
            images: one or several: paths of files, bytes of files, Pillow images, NumPy arrays uint8 [H, W, 3] or
                [N, H, W, 3], tensors uint8 [3, H, W] or [N, 3, H, W].
            top_k: classes to tell of each, at most as many as the model has; None = the most probable one, or, where an image may
                have several labels, all that reach their thresholds.
            batch_size: images in one forward pass; None = what the model was scored with.
            tta: average the scores of each image and its mirror image (left and right exchanged), also where the model was scored
                without; a model that was scored with more views is asked with these anyway.

        Returns:
            An answer for each image, in their order.

        Raises:
            UserError: a number out of range, or an array of another kind.
        """
        return list(self.predict_each(images, top_k, batch_size=batch_size, tta=tta))

    def predict_each(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int | None = None,
        *,
        batch_size: int | None = None,
        tta: bool = False,
        num_workers: int | None = None,
    ) -> Iterator[Prediction]:
        """The same one by one, as they come: for more images than the memory holds.

        Args:
            images, top_k, batch_size, tta: as of `predict`; an iterator of images is drawn from a few batches ahead.
            num_workers: threads that decode; None = the cores of this machine.

        Raises:
            UserError: as `predict`, once the first answer is asked for.
        """
        check_numbers(self.class_names, top_k=top_k, batch_size=batch_size, num_workers=num_workers)
        size = min(batch_size or self.spec.eval_batch_size, _LARGEST_BATCH)
        named = ((_name_of(image, number), image) for number, image in enumerate(_each_of(images)))
        waiting: deque[list[tuple[str, Future[Tensor | str]]]] = deque()
        pool = ThreadPoolExecutor(num_workers or available_cores())
        try:
            while chunk := list(islice(named, size)):
                waiting.append([(name, pool.submit(_read, image, name, self._saved)) for name, image in chunk])
                if len(waiting) > _AHEAD:
                    yield from self._answers(waiting.popleft(), top_k, tta)
            while waiting:
                yield from self._answers(waiting.popleft(), top_k, tta)
        finally:
            pool.shutdown(cancel_futures=True)  # whoever wanted only the first answers waits for no others

    def _answers(
        self, batch: Sequence[tuple[str, Future[Tensor | str]]], top_k: int | None, tta: bool
    ) -> Iterator[Prediction]:
        inputs = [(name, future.result()) for name, future in batch]
        readable = [pixels for _, pixels in inputs if isinstance(pixels, Tensor)]
        found: Iterator[tuple[list[float], list[int]]] = iter(())
        if readable:
            most = len(self.class_names) if self.spec.several_labels else top_k or 1
            values, places = self._probabilities(readable, tta).topk(most, dim=1)
            found = iter(zip(values.tolist(), places.tolist(), strict=True))
        for name, pixels in inputs:
            if isinstance(pixels, str):
                yield Prediction(name, error=pixels)
            else:
                probabilities, labels = next(found)
                yield self.answer(name, list(zip(labels, probabilities, strict=True)), top_k)

    def answer(self, name: str, told: Sequence[tuple[int, float]], top_k: int | None) -> Prediction:
        """What is said of one image.

        Args:
            name: what it is called.
            told: classes (numbers) with probabilities, most probable first: of one label at least `top_k`, of several all.
            top_k: as of `predict`.
        """
        return answer_of(self.spec, name, told, top_k)

    @torch.inference_mode()
    def _probabilities(self, images: Sequence[Tensor], tta: bool) -> Tensor:
        """uint8 [3, H, W], B of them → float32 [B, C]."""
        classifier = self._with_mirror if tta else self._classifier
        # Of different sizes they are where a graph resizes them itself; it takes them one by one anyway.
        alike = len({image.shape for image in images}) == 1
        batches = [torch.stack(list(images))] if alike else [image[None] for image in images]
        return torch.cat([classifier(batch.to(self.device)) for batch in batches])

    @cached_property
    def _with_mirror(self) -> Classifier | OnnxClassifier:
        return self._saved.with_views(self.spec.views(tta=True))


def load_model(path: str | os.PathLike[str], *, device: str | torch.device | None = None) -> ImageClassifier:
    """Read a model folder.

    Args:
        path: RUN_DIR/model, or RUN_DIR.
        device: where it computes; None = an accelerator where there is one, else the CPU.

    Raises:
        UserError: no model folder, a damaged one, or one that needs a part of somebody's own that is not registered.
    """
    folder = Path(path)
    inside = folder / MODEL_DIR
    saved = saved_models.load_model(
        inside if os.path.exists(inside / SPEC_FILE) and not os.path.exists(folder / SPEC_FILE) else folder
    )
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ImageClassifier(saved, torch.device(device or "cpu"))


def _each_of(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """One image, or a stack of them, as several."""
    if isinstance(images, (str, os.PathLike, bytes, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return images if images.ndim == 4 else [images]
    return images


def _name_of(image: ImageLike, number: int) -> str:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"


def _read(image: ImageLike, name: str, saved: SavedModel) -> Tensor | str:
    """The image as the network's input size, uint8 [3, H, W]; or the cause why not."""
    try:
        if isinstance(image, (str, os.PathLike)):
            return saved.transform.of_file(read_file(Path(image), max_bytes=MAX_BYTES), name)
        if isinstance(image, bytes):
            return saved.transform.of_file(image, name)
        return saved.transform.of_pixels(_pixels_of(image, name), name)
    except BadImageError as error:
        return error.cause
    except OSError as error:
        return error.strerror or str(error)


def _pixels_of(image: ImageLike, name: str) -> Tensor:
    """Upright RGB, uint8 [H, W, 3], on the CPU.

    Raises:
        BadImageError: an image of Pillow's that cannot be decoded.
        UserError: no image, or an array of another kind.
    """
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(upright_rgb(image, name)))
    if isinstance(image, np.ndarray):
        wanted = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
        pixels = torch.tensor(np.ascontiguousarray(image)) if wanted else None
    elif isinstance(image, Tensor):
        wanted = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.numel()
        pixels = image.cpu().permute(1, 2, 0).contiguous() if wanted else None
    else:
        raise UserError(
            f"{name}: a {type(image).__name__} is no image. Give paths, bytes of image files, Pillow images, NumPy arrays or "
            "tensors."
        )
    if pixels is None:
        kind = "NumPy array" if isinstance(image, np.ndarray) else "tensor"
        layout = "[height, width, 3]" if isinstance(image, np.ndarray) else "[3, height, width]"
        raise UserError(
            f"{name}: a {kind} of {image.dtype} {list(image.shape)} is no RGB image; what is needed is uint8 {layout}, "
            "values from 0 to 255."
        )
    return pixels
