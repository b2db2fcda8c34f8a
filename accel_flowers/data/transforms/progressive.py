"""Pictures that grow while a run goes on: small ones at first, which take less time, whole ones at the end.

Progressive resizing (fast.ai's entry to DAWNBench, 2018; EfficientNetV2: Tan and Le 2021, arXiv 2104.00298). The size is a function
of the optimizer step alone, so all micro-batches of a step have one size, on any number of processes and after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import functional as images_of

from accel_flowers.core.errors import UserError
from accel_flowers.data.transforms.batch import BatchContext


def size_at(progress: float, whole: tuple[int, int], *, start: float, until: float, multiple: int) -> tuple[int, int]:
    """Height and width of the pictures at a place of the run, in pixels.

    Their share of the whole grows evenly from `start` to 1. Each side is rounded down to a multiple, so that few shapes occur, and is
    the whole side, whatever it is, once the share is 1.

    Args:
        progress: share of the run that lies behind, 0..1.
        whole: height and width of the pictures that the transforms make.
        start: share of the sides at the first step.
        until: share of the run from which on pictures are whole.
        multiple: in pixels.
    """
    share = min(1.0, start + (1 - start) * progress / until)
    return _sides(share, whole, multiple)


def _sides(share: float, whole: tuple[int, int], multiple: int) -> tuple[int, int]:
    if share >= 1:
        return whole
    # A side that is just reached is not missed by the rounding of its share.
    height, width = (min(side, max(multiple, int(share * side + 1e-6) // multiple * multiple)) for side in whole)
    return height, width


@dataclass(frozen=True)
class ProgressiveSize:
    """Resizes a micro-batch; see the module.

    Args:
        context: the run.
        start: share of the sides at the first step.
        until: share of the run from which on pictures are whole.
        multiple: of which sides are, in pixels.

    Raises:
        UserError: numbers that are not allowed.
    """

    context: BatchContext
    start: float = 0.6
    until: float = 0.75
    multiple: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.start < 1:
            raise UserError(f"data.batch_transform: from is a share between 0 and 1, not {self.start}.")
        if not 0 < self.until <= 1:
            raise UserError(f"data.batch_transform: until is a share of the run above 0, up to 1, not {self.until}.")
        if isinstance(self.multiple, bool) or not isinstance(self.multiple, int) or self.multiple < 1:
            raise UserError(f"data.batch_transform: multiple is a number of pixels, 1 or more, not {self.multiple}.")

    def __call__(self, inputs: Tensor, targets: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`; inputs become float32 [B, 3, h, w] of no more pixels."""
        context = self.context
        if not context.num_images:
            return inputs, targets  # a trial before the run measures with whole pictures, which need the most
        step = first // context.global_batch
        progress = step * context.global_batch / (context.num_images * context.epochs)
        whole = (inputs.shape[2], inputs.shape[3])
        size = size_at(progress, whole, start=self.start, until=self.until, multiple=self.multiple)
        if size == whole:
            return inputs, targets
        return images_of.resize(inputs, list(size), antialias=True), targets

    def smaller_sizes(self, whole: tuple[int, int]) -> list[tuple[int, int]]:
        """All sizes but the whole that occur in a run, rising.

        Args:
            whole: height and width of the pictures that the transforms make.

        Raises:
            UserError: there are none.
        """
        steps = {number * self.multiple / side for side in whole for number in range(1, side // self.multiple + 1)}
        shares = sorted({self.start, *(share for share in steps if self.start < share < 1)})
        sizes = (_sides(share, whole, self.multiple) for share in shares)
        found = list(dict.fromkeys(size for size in sizes if size != whole))
        if not found:
            raise UserError(
                f"data.batch_transform: progressive_size changes nothing, because {self.start:g} of pictures of {whole[0]} x {whole[1]} pixels "
                f"is no smaller in steps of {self.multiple} pixels: give a smaller multiple, as '{{progressive_size: {{multiple: 8}}}}', a "
                "smaller from, or leave it out."
            )
        return found


def progressive_size(context: BatchContext, **options: float) -> ProgressiveSize:
    """With the words of a recipe: `from`, which Python keeps for itself, `until` and `multiple`.

    Raises:
        TypeError: another word.
    """
    if unknown := sorted(options.keys() - {"from", "until", "multiple"}):
        raise TypeError(f"unexpected argument '{unknown[0]}': from, until and multiple are known")
    named = {("start" if name == "from" else name): value for name, value in options.items()}
    return ProgressiveSize(context, **named)  # type: ignore[arg-type] # it says itself what is allowed
