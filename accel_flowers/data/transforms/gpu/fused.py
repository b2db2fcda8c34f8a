"""Brightness, contrast, saturation and hue in two kernels instead of a hundred: `colour.jitter` for a GPU, written in Triton.

Not for: machines without Triton or a C compiler, which Triton needs; they take `colour.jitter` itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _grey(red, green, blue):
    return tl.floor(0.5 + red * (19595 / 65536) + green * (38470 / 65536) + blue * (7471 / 65536))


@triton.jit
def _level(base, level, amount):
    return tl.floor(tl.minimum(tl.maximum(base + (level - base) * amount, 0.0), 255.0))


@triton.jit
def _turned(value, drop, hue, shares, channel: tl.constexpr, mask):
    return tl.floor(value + 0.5 - drop * tl.load(shares + 256 * channel + hue, mask=mask, other=0.0))


@triton.jit
def _jitter(
    pixels,
    made,
    numbers,
    sums,
    hues,
    saturations,
    shares,
    num_pixels,
    row_stride,
    num_columns,
    num_blends: tl.constexpr,
    num_slots: tl.constexpr,
    with_hue: tl.constexpr,
    sums_up: tl.constexpr,
    block: tl.constexpr,
):
    """Blends and the turn of hue as in `colour.jitter`; first (`sums_up`) only as far as the change of contrast, whose mean grey it
    is for, then all of it."""
    image = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * block + tl.arange(0, block)
    mask = place < num_pixels
    first = image * 3 * num_pixels + place
    red = tl.load(pixels + first, mask=mask, other=0).to(tl.float32)
    green = tl.load(pixels + first + num_pixels, mask=mask, other=0).to(tl.float32)
    blue = tl.load(pixels + first + 2 * num_pixels, mask=mask, other=0).to(tl.float32)
    row = numbers + image * row_stride
    mean = 0.0
    if not sums_up:
        mean = ((2 * tl.load(sums + image) + num_pixels) // (2 * num_pixels)).to(tl.float32)
    total = tl.zeros([block], tl.float32)
    for slot in tl.static_range(num_slots):
        if with_hue and slot == num_blends:
            value = tl.maximum(tl.maximum(red, green), blue)
            chroma = (value - tl.minimum(tl.minimum(red, green), blue)).to(tl.int32)
            others = tl.where(
                red == value, green - blue, tl.where(green == value, blue - red + 511.0, red - green + 1022.0)
            )
            shift = tl.load(row + num_columns - 1).to(tl.int32)
            hue = tl.load(hues + chroma + 256 * (others.to(tl.int32) + 255), mask=mask, other=0).to(tl.int32)
            hue = (hue + shift) & 255
            drop = value * tl.load(saturations + chroma + 256 * value.to(tl.int32), mask=mask, other=0.0)
            red = _turned(value, drop, hue, shares, 0, mask)
            green = _turned(value, drop, hue, shares, 1, mask)
            blue = _turned(value, drop, hue, shares, 2, mask)
        else:
            column = 3 * (slot - 1 if with_hue and slot > num_blends else slot)
            amount = tl.load(row + column).to(tl.float32)
            contrast = tl.load(row + column + 1).to(tl.float32)
            saturation = tl.load(row + column + 2).to(tl.float32)
            grey = _grey(red, green, blue)
            if sums_up:
                total += grey * contrast
            base = mean * contrast + grey * saturation
            red, green, blue = _level(base, red, amount), _level(base, green, amount), _level(base, blue, amount)
    if sums_up:
        tl.atomic_add(sums + image, tl.sum(tl.where(mask, total, 0.0).to(tl.int64)))
    else:
        tl.store(made + first, red.to(tl.uint8), mask=mask)
        tl.store(made + first + num_pixels, green.to(tl.uint8), mask=mask)
        tl.store(made + first + 2 * num_pixels, blue.to(tl.uint8), mask=mask)


def jitter(
    pixels: Tensor,
    numbers: Tensor,
    tables: tuple[Tensor, Tensor, Tensor] | None,
    *,
    num_blends: int,
    kinds: tuple[bool, bool],
) -> Tensor:
    """`colour.jitter`, argument for argument; `numbers` may be float64 and a part of a wider table.

    Raises:
        Exception: of many kinds, where Triton cannot compile it here.
    """
    assert numbers.stride(1) == 1
    pixels = pixels.contiguous()
    batch, _, height, width = pixels.shape
    made = torch.empty_like(pixels)
    sums = torch.zeros(batch, dtype=torch.int64, device=pixels.device)
    grid = (batch, triton.cdiv(height * width, _BLOCK))
    hues, saturations, shares = tables or (pixels, numbers, numbers)  # not read without a change of hue
    num_slots = 2 * num_blends + 1 if tables else num_blends
    for sums_up in (True, False) if kinds[0] else (False,):
        _jitter[grid](
            pixels, made, numbers, sums, hues, saturations, shares, height * width, numbers.stride(0), numbers.shape[1],
            num_blends=num_blends, num_slots=num_slots, with_hue=tables is not None, sums_up=sums_up, block=_BLOCK,
            enable_fp_fusion=False,  # each product and sum is rounded, as Pillow's are
        )  # fmt: skip
    return made
