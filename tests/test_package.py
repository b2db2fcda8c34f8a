"""What pip gets: a wheel with the recipes in it that runs by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from accel_flowers.config.loading import recipe_names
from tests.runs import PROJECT


@pytest.mark.slow
def test_wheel_holds_the_recipes_and_runs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(PROJECT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("accel_flowers-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA"))
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: torch>=2.11" in metadata

    # From elsewhere and with the unpacked wheel first on the path, so that the checkout is not what runs.
    done = subprocess.run(
        [sys.executable, "-c", "import accel_flowers, sys; sys.argv[1:] = ['recipes']; print(accel_flowers.__file__);"
         "from accel_flowers.cli.main import main; main()"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert [name for name in recipe_names() if f"\n{name} " not in done.stdout] == []
