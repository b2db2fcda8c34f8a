"""An export in words."""

from __future__ import annotations

from accel_flowers.core.errors import printable
from accel_flowers.core.plural import number_of
from accel_flowers.export.export import ExportResult, Quantised
from accel_flowers.export.parity import Parity


def describe_export(result: ExportResult) -> str:
    """What was written, what it was compared on, and a table of before and after."""
    lines = [" and ".join(printable(str(path)) for path in result.paths)]
    if result.parity:
        lines += _of_parity(result.parity)
    if result.quantised:
        lines += _of_int8(result.quantised)
    rate = "pictures/s, one by one" if result.picture_in else "pictures/s, 32 at once"
    lines += [
        "",
        f"{'':<12}{'MB':>8}{'ms, one picture':>18}{rate:>26}",
        *(
            f"{name:<12}{size / 1e6:>8.1f}{speed.latency_ms:>18.1f}{speed.images_per_second:>26.0f}"
            for name, size, speed in (
                ("model", result.bytes_before, result.before),
                (result.format, result.bytes_after, result.after),
            )
        ),
        f"({number_of(result.threads, 'thread')}; the model in torch, float32"
        + ("; the file's time has the decoding and the preparation in it)" if result.picture_in else ")"),
    ]
    return "\n".join(lines)


def _of_parity(parity: Parity) -> list[str]:
    found = [
        f"answers as the model does: probabilities of {number_of(parity.num_pictures, 'picture')} differ by at most {parity.difference:.2g} "
        f"({parity.tolerance:.2g} is allowed), {parity.same} of {parity.num_pictures} get the same class"
    ]
    if parity.level_effect is not None:
        found.append(
            f"it prepares pictures as Pillow does, but for {number_of(parity.levels or 0, 'grey level')} in some values, which changes "
            f"probabilities by up to {parity.level_effect:.2g}"
        )
    return found


def _of_int8(found: Quantised) -> list[str]:
    lines = [
        f"int8, on {number_of(found.num_pictures, 'picture')}: {found.same} get the same class, probabilities differ by up to {found.largest:.2g}"
    ]
    if found.paired is not None and found.before is not None and found.after is not None:
        low, high = (100 * end for end in (found.paired.difference.low, found.paired.difference.high))
        lines.append(
            f"accuracy {found.before:.1%} before, {found.after:.1%} after: {100 * found.paired.difference.value:+.1f} points, "
            f"95 % interval {low:+.1f} to {high:+.1f}"
        )
    return lines
