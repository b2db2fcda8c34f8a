"""What several tests share: a small folder of images with three classes, and the environment of the libraries."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: one thread per process, as two processes share two cores in the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import hypothesis
import numpy as np
import pytest
from PIL import Image

from accel_flowers.core import registry
from accel_flowers.core.console import attach_console

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

# As jobs of a script (&) and of nohup ignore them, and programs inherit it.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

_USUAL = {number: signal.getsignal(number) for number in _SIGNALS}

gc.set_threshold(100_000)  # as the program does, which imports its libraries in less time

# A busy machine is no failure, and no run tries other inputs than the one before it.
hypothesis.settings.register_profile("accel_flowers", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("accel_flowers")

CLASSES = ("daisy", "rose", "tulip")
COLOURS = {"daisy": (230, 230, 210), "rose": (200, 30, 60), "tulip": (240, 160, 30)}


def draw_image(name: str, number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A noisy patch in the colour of its class: learnable, and never twice the same."""
    noise = np.random.Generator(np.random.Philox(key=hash_of(name, number))).integers(-25, 26, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))


def hash_of(name: str, number: int) -> int:
    """A seed that is the same in every process."""
    return sum(name.encode()) * 100_003 + number


def make_folder(root: Path, *, per_class: int = 10, classes: tuple[str, ...] = CLASSES) -> Path:
    """`root/CLASS/NN.png` for each class."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            draw_image(name, number).save(root / name / f"{number:02d}.png")
    return root


LONGEST_FIRST = (
    "test_interrupted", "test_faults", "test_numbers", "test_processes", "test_pixel_source", "test_two_machines",
    "test_restarts", "test_peers", "test_dashboards", "test_cache", "test_trial", "test_benchmark_command",
)  # fmt: skip
"""Files that take long; one that came last would leave the other core without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Their order; all others stay as they are."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches of `datasets` and W&B go to a temporary folder."""
    import datasets

    cache = tmp_path_factory.mktemp("cache")
    os.environ["HF_HOME"] = str(cache)
    os.environ["XDG_CACHE_HOME"] = str(cache / "user")
    os.environ["HF_DATASETS_CACHE"] = str(cache / "datasets")
    datasets.config.HF_DATASETS_CACHE = cache / "datasets"


@pytest.fixture(autouse=True)
def _own_parts_of_a_test_go_with_it() -> Iterator[None]:
    """What a test registers is its own: a metric of it would be computed in all later ones. A module's own parts stay."""
    before = dict(registry._parts)
    yield
    registry._parts.clear()
    registry._parts.update(before)


@pytest.fixture(autouse=True)
def _log_as_on_the_command_line() -> None:
    """Runs that a test starts in its own process say what they say on the command line."""
    attach_console()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with ten images each."""
    return make_folder(tmp_path / "photos")


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps its state in the class: a run must not see the one before."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def _path_of_this_process() -> Iterator[None]:
    """The command line sets up where its process looks for modules, and answers signals; here it is called within ours."""
    places, safe = list(sys.path), os.environ.get("PYTHONSAFEPATH")
    yield
    sys.path[:] = places
    os.environ.pop("PYTHONSAFEPATH", None)
    if safe is not None:
        os.environ["PYTHONSAFEPATH"] = safe
    for number, usual in _USUAL.items():
        signal.signal(number, usual)


@pytest.fixture
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings wait for each checkpoint: a slow disk leaves none out."""
    from accel_flowers.training.snapshot_writer import SnapshotWriter
    from tests.every_checkpoint import submit_and_wait

    monkeypatch.setattr(SnapshotWriter, "submit", submit_and_wait)
