#!/usr/bin/env python3
"""The picture in the README: the top of the report of a run on drawn flowers, as a small PNG.

  python scripts/screenshot.py                   draws flowers, trains `quickstart` on them, opens the report (some minutes)
  python scripts/screenshot.py --run RUN_DIR     the report of a run that is there already

It needs Chromium or Chrome (the environment variable CHROMIUM may name it).
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.browser import Browser, find_browser  # noqa: E402 - from the line above

WIDTH, HEIGHT = 1000, 880
"""CSS pixels of the page that are shown."""
MAX_BYTES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="directory of a finished run; without it one is trained")
    parser.add_argument("--out", type=Path, default=PROJECT / "docs/images/report.png")
    parser.add_argument("--dark", action="store_true", help="as it looks where the system prefers dark pages")
    asked = parser.parse_args()
    if find_browser() is None:
        sys.exit("There is no Chromium or Chrome here: install one, or name it with the environment variable CHROMIUM.")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = asked.run or train(Path(folder))
        image = shoot(run_dir / "report.html", dark=asked.dark)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    # A palette is enough for flat colours and text, and a third of the size.
    image.quantize(128, dither=Image.Dither.NONE).save(asked.out, optimize=True)
    size = asked.out.stat().st_size
    print(f"{asked.out}: {image.width} x {image.height} pixels, {size:,} bytes")
    if size > MAX_BYTES:
        sys.exit(f"That is more than the {MAX_BYTES:,} bytes that a README should ask of its readers.")


def train(folder: Path) -> Path:
    """A short run on drawn flowers; gives its directory."""
    program = [sys.executable, "-m", "accel_flowers"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    photos, run_dir = folder / "flowers", folder / "first"
    for words in (
        ["sample", str(photos)],
        ["train", "quickstart", "--data.path", str(photos), "--run-dir", str(run_dir), "--train.epochs", "6"],
    ):
        subprocess.run([*program, *words], check=True, env=environment, cwd=folder)
    return run_dir


def shoot(page: Path, *, dark: bool) -> Image.Image:
    """The top of a page."""
    with Browser() as browser:
        browser.open(page, width=WIDTH, height=HEIGHT, dark=dark)
        return Image.open(io.BytesIO(browser.screenshot({"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT}))).convert(
            "RGB"
        )


if __name__ == "__main__":
    main()
