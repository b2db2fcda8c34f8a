"""One run a directory: whoever comes second is refused, however close behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.tracking.run_dir import RunDirLock, check_run_dir, open_run_dir, write_config
from tests.runs import tiny_config


@pytest.mark.holds("Nothing is overwritten unasked")
@pytest.mark.parametrize("ended", [True, False])
def test_of_two_runs_begun_at_once_one_is_refused(ended: bool, tmp_path: Path) -> None:
    """Both find the directory empty; while the second one still reads its images, the first begins, or even ends."""
    run_dir = tmp_path / "run"
    config, other = (tiny_config(tmp_path, run_dir, optim={"lr": lr}) for lr in (0.1, 0.2))
    with RunDirLock(0.2) as second:
        check_run_dir(run_dir, other, second)
        with RunDirLock(0.2) as first:
            check_run_dir(run_dir, config, first)
            write_config(run_dir, config, open_run_dir(run_dir, first))
            begun = (run_dir / "config.yaml").read_bytes()
            if not ended:
                with pytest.raises(UserError, match="is being trained by process"):
                    open_run_dir(run_dir, second)
        if ended:
            with pytest.raises(UserError, match="Another run began in"):
                open_run_dir(run_dir, second)
    assert (run_dir / "config.yaml").read_bytes() == begun


def test_a_run_that_ended_before_it_began_leaves_the_directory_to_the_next(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = tiny_config(tmp_path, run_dir)
    with RunDirLock(0.2) as second:
        check_run_dir(run_dir, config, second)
        with RunDirLock(0.2) as first:
            check_run_dir(run_dir, config, first)
            open_run_dir(run_dir, first)
        assert open_run_dir(run_dir, second)["run_id"]
