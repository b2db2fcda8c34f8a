"""Folders that a user may not enter are told as such by every command that looks into them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.made_runs import make_run
from tests.runs import PROJECT

pytestmark = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0,
    reason="only root can become somebody who is forbidden something",
)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that others may enter: pytest's own are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.holds("What may not be read or written is told as such")
@pytest.mark.slow
def test_what_is_forbidden_is_told_as_such(open_to_all: Path) -> None:
    """A model and a run in a forbidden folder, a class, a place for the page: none is called missing, none is a traceback."""
    run_dir = make_run(open_to_all / "run", open_to_all / "photos", ("daisy", "rose"), per_part=3)
    code = f"""
        import os
        from pathlib import Path
        os.chdir({str(open_to_all)!r})
        from accel_flowers.core.errors import UserError
        from accel_flowers.data.sources.load import load_images
        from accel_flowers.inference.image_classifier import load_model
        from accel_flowers.report.draw import draw_report
        from accel_flowers.report.read import read_run
        draw_report(Path("run"))  # imports all that it needs, which others may not read either
        os.setgid(65534)
        os.setuid(65534)
        for do, what in ((load_images, "photos"), (load_model, Path("run/model")), (read_run, Path("shut")), (draw_report, Path("run"))):
            try:
                do(what)
            except UserError as error:
                print(error)
            else:
                print("allowed:", what)
    """
    shutil.copytree(run_dir, open_to_all / "shut")
    (open_to_all / "photos/rose").chmod(0)
    (open_to_all / "run/model").chmod(0)
    (open_to_all / "shut").chmod(0)
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env, timeout=200, check=False
    )
    said = ended.stdout.splitlines()
    assert len(said) == 4, ended.stderr
    for line, what in zip(said, ("photos/rose", "run/model/config.json", "shut/config.yaml", "run/model"), strict=True):
        assert what in line
        assert "ermission" in line, line
        assert "is no " not in line
        assert "Make room" not in line
