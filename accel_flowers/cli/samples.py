"""`sample` and `download`: flowers to try the program on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from accel_flowers.cli.common import parse_words
from accel_flowers.core.console import write_result
from accel_flowers.core.plural import number_of


@dataclass(frozen=True)
class _SampleWords:
    """Draw five kinds of flowers to try the program on; the same images for the same seed."""

    directory: tyro.conf.Positional[Path]
    """New folder for the images."""
    images_per_class: int = 200
    """Images of each kind."""
    image_size: int = 96
    """Width and height in pixels."""
    seed: int = 0
    """Another seed draws other images."""


def sample_command(words: Sequence[str]) -> int:
    asked = parse_words(_SampleWords, words, "sample")
    from accel_flowers.samples.draw import draw_sample

    drawn = draw_sample(
        asked.directory, images_per_class=asked.images_per_class, image_size=asked.image_size, seed=asked.seed
    )
    write_result(f"{number_of(asked.images_per_class, 'picture')} of each of five kinds of flowers in {drawn}")
    return 0


@dataclass(frozen=True)
class _DownloadWords:
    """Fetch 3,670 flower photos (218 MiB, CC-BY); an interrupted download goes on where it stopped."""

    directory: tyro.conf.Positional[Path]
    """New folder for the photos."""


def download_command(words: Sequence[str]) -> int:
    asked = parse_words(_DownloadWords, words, "download")
    from accel_flowers.samples.download import download

    write_result(f"photos in {download(asked.directory)}, one folder per class; their licence is in LICENSE.txt there")
    return 0
