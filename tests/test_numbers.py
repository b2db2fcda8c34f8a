"""Numbers that go wrong: losses that are none, steps that fp16 skips, memory that is short."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from accel_flowers.cli.main import main
from accel_flowers.config.schema import OptimConfig
from accel_flowers.core.errors import OutOfMemory, UserError
from accel_flowers.core.out_of_memory import oom_as_user_error
from accel_flowers.core.registry import register
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.data.split import load_split
from accel_flowers.distributed import launch as processes
from accel_flowers.distributed import session
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.models.views import MeanOfViews
from accel_flowers.tracking.run_dir import read_metrics
from accel_flowers.training import memory
from accel_flowers.training.checkpoint import Checkpoints
from accel_flowers.training.memory import fit_micro_batch, largest_micro_batch, smaller_micro_batches
from accel_flowers.training.meter import Meter
from accel_flowers.training.state import TrainState
from accel_flowers.training.step import LocalEngine, TrainStep, loaded_whole
from accel_flowers.training.tasks import Output, classification
from accel_flowers.training.train import train
from tests.conftest import make_folder
from tests.ranks import Ranks
from tests.runs import PROJECT, TWO_PROCESSES, metrics, tiny_config, write_recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


def lossy(*calls: int, value: float = math.nan) -> dict[str, Any]:
    """The section of a recipe whose loss has another value in these calls (from 0)."""

    @register("loss", "test/lossy")
    def make() -> Callable[[Tensor, Tensor], Tensor]:
        count = iter(range(10**6))
        return lambda logits, labels: cross_entropy(logits, labels) * (value if next(count) in calls else 1.0)

    return {"name": "test/lossy"}


@pytest.mark.holds("A loss that is nan or infinite stops the run")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run(photos: Path, tmp_path: Path, value: float) -> None:
    loss = lossy(11, value=value)  # the second micro-batch of step 6
    sections = {"train": {"log_every_steps": 5}, "checkpoint": {"every_steps": 1}}
    config = tiny_config(photos, tmp_path / "run", loss=loss, **sections)
    with pytest.raises(UserError, match=rf"In step 6, at learning rate 0\.0\d+, the loss is {value}") as error:
        train(config)
    training_files = load_split(tmp_path / "run/split.json").files_of("train")
    named = str(error.value).partition("held ")[2].partition(".")[0]
    assert sum(name.partition(".")[0] in named for name in training_files) >= 1
    assert sum(name in str(error.value) for name in training_files) == 3, "of one micro-batch"
    assert " and 1 more." in str(error.value)
    state = json.loads((tmp_path / "run/checkpoints/last/state.json").read_text())
    assert state["step"] == 5, "what was good is kept, what went wrong is not"


@pytest.mark.holds("Weights that are no numbers are never saved")
def test_weights_that_are_no_numbers_are_never_saved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is still fine in the step whose gradients are not."""
    step = torch.optim.SGD.step

    def poison(self: torch.optim.SGD, *args: Any) -> Any:
        done = step(self, *args)
        with torch.no_grad():
            self.param_groups[0]["params"][0][0] = math.inf
        return done

    monkeypatch.setattr(torch.optim.SGD, "step", poison)
    config = tiny_config(photos, tmp_path / "run", checkpoint={"every_steps": 1})
    with pytest.raises(UserError, match=r"In step 1, .* weights became nan or infinite"):
        train(config)
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


@pytest.mark.holds("`train.on_nan: rollback`")
def test_rollback_goes_on_with_half_the_rate(photos: Path, tmp_path: Path) -> None:
    schedule = {"name": "constant"}
    run_dir = tmp_path / "run"
    config = tiny_config(photos, run_dir, train={"on_nan": "rollback"}, schedule=schedule, loss=lossy(11))
    train(config)
    steps = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if "train/loss" in line]
    assert steps == list(range(1, 9)), "no line is lost or doubled"
    # The checkpoint is that of the first epoch's end, step 4.
    assert metrics(run_dir, "lr/all") == [0.01] * 4 + [0.005] * 4
    assert [(line["step"], line["diverged_at"]) for line in read_metrics(run_dir / "metrics.jsonl") if "rollbacks" in line] == [(4, 6)]  # fmt: skip
    assert all(math.isfinite(loss) for loss in metrics(run_dir, "train/loss"))
    state = json.loads((run_dir / "checkpoints/last/state.json").read_text())
    assert state["rollbacks"] == 1


def test_a_rollback_keeps_the_losses_that_were_not_logged_yet(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next line of the log would be a mean over fewer of them."""
    saved: list[tuple[int, list[list[float]]]] = []
    save = Checkpoints.save

    def noted(self: Checkpoints, network: Any, optimizer: Any, state: TrainState, *more: Any, **then: Any) -> None:
        saved.append((state.step, copy.deepcopy(state.pending_losses)))
        save(self, network, optimizer, state, *more, **then)

    monkeypatch.setattr(Checkpoints, "save", noted)
    config = tiny_config(
        photos,
        tmp_path / "run",
        train={"on_nan": "rollback", "log_every_steps": 100},
        checkpoint={"every_steps": 5},
        loss=lossy(11),
    )
    train(config)
    inside_an_epoch = [pending for step, pending in saved if step == 5]
    assert len(inside_an_epoch) == 2, "once on the way, once when the run went back to it"
    assert inside_an_epoch[0] == inside_an_epoch[1]
    assert len(inside_an_epoch[0][0]) == 2, "two micro-batches after the first epoch's end"


@pytest.mark.holds("`train.on_nan: rollback`")
def test_rollback_works_before_the_first_checkpoint_and_ends_after_three(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(photos, tmp_path / "run", train={"on_nan": "rollback"}, loss=lossy(*range(100)))
    with pytest.raises(UserError, match=r"In step 1, .* That was after 3 rollbacks"):
        train(config)
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [line["rollbacks"] for line in lines if "rollbacks" in line] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.holds("`train.on_nan: rollback`")
@pytest.mark.multiprocess
def test_several_processes_agree_on_what_went_wrong(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", optim={"lr": 1e30}, train={"on_nan": "rollback"})
    words = ["train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run"]
    with Ranks(tmp_path, words, words) as ranks:
        assert ranks.codes(60) == [2, 2], ranks.output()
        said = ranks.said(0)
    assert said.count("Going back to step 0") == 3
    assert "the loss is nan (process " in said
    assert "That was after 3 rollbacks" in said
    assert "Traceback" not in ranks.output()


# Steps that fp16 skips


@pytest.mark.holds("fp16's skipped steps move no schedule")
def test_a_skipped_step_moves_no_schedule(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale so large that the first gradients overflow; it is halved after each."""

    def build_accelerator(**words: Any) -> Accelerator:
        accelerator = processes.build_accelerator(**words)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
        return accelerator

    monkeypatch.setattr(session, "build_accelerator", build_accelerator)
    loss = lossy(*range(1000), value=8.0)
    run_dir = tmp_path / "run"
    train(
        tiny_config(
            photos,
            run_dir,
            schedule={"name": "cosine"},
            optim={"lr": 1e-4},
            ema={"decay": 0.9},
            train={"epochs": 4},
            loss=loss,
        )
    )
    state = json.loads((run_dir / "checkpoints/last/state.json").read_text())
    skipped = state["skipped_steps"]
    assert 1 <= skipped < 10
    rates = metrics(run_dir, "lr/all")
    assert rates == sorted(rates, reverse=True)
    assert rates[:2] == [1e-4, 1e-4], "the first step overflowed, so the second has its rate"
    assert len(set(rates)) == len(rates) - skipped, "each skipped step's rate comes once more"


# Memory


@given(micro_batch=st.integers(1, 64), accumulation=st.integers(1, 8), processes=st.sampled_from([1, 2, 3, 4, 8]))
def test_smaller_micro_batches_keep_the_global_batch(micro_batch: int, accumulation: int, processes: int) -> None:
    plan = BatchPlan(1, 1, micro_batch * accumulation * processes, processes, micro_batch)
    sizes = smaller_micro_batches(plan)
    assert sizes[0] == micro_batch
    assert sizes[-1] == 1
    for larger, smaller in itertools.pairwise(sizes):
        assert smaller <= larger / 2
        assert plan.global_batch_size % (smaller * processes) == 0
    if micro_batch & (micro_batch - 1) == 0:
        assert len(sizes) == micro_batch.bit_length(), "powers of two are halved"


LIMITED = """
import os, resource, sys
from accel_flowers.cli import main
from accel_flowers.training import build

resource.setrlimit(resource.RLIMIT_AS, (2**42, resource.RLIM_INFINITY))
fit = build.fit_micro_batch

def fit_in_little(*words, **more):
    used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
    if os.environ.get("RANK", "0") == sys.argv[1]:
        resource.setrlimit(resource.RLIMIT_AS, (used + 900 * 2**20, resource.RLIM_INFINITY))
    try:
        return fit(*words, **more)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (2**42, resource.RLIM_INFINITY))

build.fit_micro_batch = fit_in_little
build.shrunk_to = lambda plan, _: plan  # a batch of more pictures than there are: the trial's own are blank
main(sys.argv[2:])
"""
"""Process argv[1] finds 900 MiB left for its trials: under a limit, as `ulimit -v` sets it, a CPU's allocations fail."""


def step_of(network: nn.Module) -> TrainStep:
    """A training step of a network that was not prepared."""
    normalizer = Normalizer((0, 0, 0), (1, 1, 1), channels_last=False)
    task = classification(cross_entropy)
    return TrainStep(LocalEngine(), network, None, task, loaded_whole, normalizer)


@pytest.mark.holds("Short memory halves the micro-batch, and keeps the global batch")
@pytest.mark.slow
@pytest.mark.multiprocess
def test_short_memory_on_one_process_halves_the_micro_batch_of_all(photos: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        data={"train_transforms": [{"Resize": {"size": [160, 160]}}]},
        train={"epochs": 1, "global_batch_size": 256, "micro_batch_size": 128},
    )
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    words = ["train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run"]
    done = subprocess.run(
        [*TWO_PROCESSES, str(script), "1", *map(str, words)],
        capture_output=True, text=True, timeout=240, check=False, cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "run/checkpoints/last/state.json").read_text())
    fits = state["micro_batch_size"]
    assert fits in (64, 32, 16, 8, 4, 2)
    assert f"out of memory: {fits} pictures in a forward pass instead of 128" in done.stderr
    assert f"a step is 256 pictures: {128 // fits} x {fits} on each process" in done.stderr
    assert state["step"] == 1


@pytest.mark.parametrize(
    ("error", "is_that"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
    ids=lambda value: str(value)[:24],
)
def test_libraries_have_many_words_for_a_lack_of_memory(error: Exception, is_that: bool) -> None:
    with pytest.raises(OutOfMemory if is_that else RuntimeError) as found, oom_as_user_error():
        raise error
    assert ("Leave more " in str(found.value)) == is_that


def test_short_memory_of_the_machine_blames_no_micro_batch() -> None:
    with pytest.raises(OutOfMemory, match=r"--data\.num-workers 0.*--resume auto") as found, oom_as_user_error():
        raise MemoryError("Unable to allocate 30.0 GiB for an array")
    assert "micro-batch" not in str(found.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "MODEL", "--data", "PHOTOS"], "in batches of 8: leave more memory free."),
        (["predict", "MODEL", "PHOTOS"], "or ask for smaller batches: --batch-size 1."),
    ],
)
def test_short_memory_after_training_is_told_by_what_can_be_done(
    words: list[str],
    told: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(tiny_config(photos, tmp_path / "run", train={"epochs": 1, "eval_batch_size": 8}))

    def forward(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(MeanOfViews, "forward", forward)
    places = {"MODEL": str(tmp_path / "run/model"), "PHOTOS": str(photos)}
    with pytest.raises(SystemExit) as ended:
        main([places.get(word, word) for word in words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "Out of memory: CUDA out of memory. Tried to allocate 2 GiB. " in error
    assert told in error
    assert "--resume" not in error


@pytest.mark.parametrize("last_works", [1, 2, 3])
def test_a_trial_takes_the_largest_micro_batch_that_fits(last_works: int) -> None:
    """One of the right size, and with a sixteenth of the memory kept off; here the network says what is too large."""
    seen: list[int] = []

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(len(pixels))
            if len(pixels) > 2**last_works:
                raise RuntimeError("FIND was unable to find an engine to execute this computation\nmore")
            return self.fc(pixels.mean(dim=(2, 3)))

    network = Small()
    before = copy.deepcopy(network.state_dict())
    plan = BatchPlan(100, 1, 8, 1, 8)
    micro_batch, seconds = fit_micro_batch(step_of(network), OptimConfig(), plan, (4, 4), 2, Accelerator(cpu=True))
    assert micro_batch == 2**last_works
    assert seconds > 0
    in_a_step = 1 if micro_batch == 8 else 2  # where there are several, the second finds the first one's gradients
    assert seen == [size for size in (8, 4, 2) if size > micro_batch] + 3 * in_a_step * [micro_batch]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.holds("benchmark says the largest micro-batch that fits")
@pytest.mark.parametrize(("limit", "first"), [(0, 8), (1, 8), (3, 1), (37, 8), (100, 32), (255, 32), (300, 8)])
def test_the_largest_micro_batch_is_found(limit: int, first: int) -> None:
    """To an eighth, wherever the limit is, in few trials; weights and statistics are put back."""
    seen = []

    class UpTo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(len(pixels))
            if len(pixels) > limit:
                raise torch.OutOfMemoryError("out of memory")
            return self.fc(pixels.mean(dim=(2, 3)))

    network = UpTo()
    before = copy.deepcopy(network.state_dict())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "can_run_out_of_memory", lambda _: True)
        patched.setattr(memory, "clear_device_cache", lambda **_: None)  # it looks for garbage in all of the tests
        accelerator = Accelerator(cpu=True)
        found = largest_micro_batch(step_of(network), OptimConfig(), (4, 4), 2, accelerator, first=first)
    assert found is not None
    assert found.images <= limit
    if found.failed is None:
        assert found.images >= min(limit, 256) / 2
    else:
        assert limit < found.failed <= found.images + max(2, found.images // 8)
    assert len(set(seen)) <= 14
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert (f"{found.failed} do not fit" in found.in_words()) == (found.failed is not None)


@pytest.mark.slow
@pytest.mark.holds("benchmark says the largest micro-batch that fits")
def test_benchmark_under_a_limit_says_the_largest_micro_batch(photos: Path, tmp_path: Path) -> None:
    """Under `ulimit -v`."""
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        data={"train_transforms": [{"Resize": {"size": [160, 160]}}], "num_workers": 0},
        train={"epochs": 1, "global_batch_size": 16, "micro_batch_size": None},
    )
    words = ["benchmark", recipe, "--data.path", photos, "--seconds", "0.1", "--json"]
    limited = ["prlimit", f"--as={6 * 2**30}", sys.executable, "-m", "accel_flowers", *map(str, words)]
    done = subprocess.run(
        limited, capture_output=True, text=True, timeout=300, check=False, cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["largest_micro_batch"] >= 16


@pytest.mark.slow
@pytest.mark.holds("The trial of the memory holds what the training holds")
def test_a_trial_holds_what_the_training_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each forward pass: copies of the weights for the average, earlier gradients, and DDP's buckets."""
    found: list[tuple[bool, int, int]] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 1001)

        def forward(self, pixels: Tensor) -> Tensor:
            live = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
            copies = sum(each.shape == self.fc.weight.shape for each in live if type(each) is nn.Parameter)
            buckets = sum(each.dtype == torch.uint8 and each.numel() == 4 * (3 * 1001 + 1001) for each in live)
            found.append((self.fc.weight.grad is not None, copies, buckets))
            return self.fc(pixels.mean(dim=(2, 3)))

    def tried(plan: BatchPlan, processes: int, ema_decay: float) -> list[tuple[bool, int, int]]:
        found.clear()
        accelerator = Accelerator(cpu=True)
        with monkeypatch.context() as patched:
            patched.setattr(type(accelerator), "num_processes", processes)
            patched.setattr(memory, "true_everywhere", lambda _, here: here)  # there is one process in truth
            fit_micro_batch(step_of(Watching()), OptimConfig(), plan, (4, 4), 2, accelerator, ema_decay=ema_decay)
        return list(found)

    assert tried(BatchPlan(100, 1, 8, 1, 8), 1, 0.0) == 3 * [(False, 1, 0)]
    assert tried(BatchPlan(100, 1, 8, 1, 8), 1, 0.9) == 3 * [(False, 2, 0)]
    assert tried(BatchPlan(100, 1, 8, 1, 2), 1, 0.0) == 3 * [(False, 1, 0), (True, 1, 0)]
    assert tried(BatchPlan(100, 1, 16, 2, 8), 2, 0.9) == 3 * [(False, 2, 1)]


def test_a_trial_in_which_nothing_fits_tells_the_words_of_the_device() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, pixels: Tensor) -> Tensor:
            raise RuntimeError("FIND was unable to find an engine to execute this computation\nmore")

    plan = BatchPlan(100, 1, 8, 1, 8)
    with pytest.raises(UserError, match=r"1 picture of 4 x 4 pixels at once \(FIND was unable .* computation\): take"):
        fit_micro_batch(step_of(Large()), OptimConfig(), plan, (4, 4), 2, Accelerator(cpu=True))


# The meter


def loss_of(value: float) -> Output:
    return Output(torch.tensor(value), torch.zeros(4, 2))


def test_meter_finds_the_first_that_is_no_number() -> None:
    meter = Meter(Accelerator(cpu=True), BatchPlan(100, 1, 8, 1, 4))
    for number, loss in enumerate([1.0, 2.0]):
        meter.add(number, loss_of(loss))
    assert meter.first_bad() is None
    meter.add(2, loss_of(math.inf))
    meter.add(3, loss_of(math.nan))
    assert meter.first_bad() == (2, math.inf)


def test_meter_goes_on_where_it_was_saved() -> None:
    accelerator, plan = Accelerator(cpu=True), BatchPlan(100, 1, 8, 1, 4)
    losses = [0.1, 0.7, 1 / 3, 2.0]
    whole, first = Meter(accelerator, plan), Meter(accelerator, plan)
    for number, loss in enumerate(losses):
        whole.add(number, loss_of(loss))
    for number, loss in enumerate(losses[:2]):
        first.add(number, loss_of(loss))
    second = Meter(accelerator, plan, json.loads(json.dumps(first.pending())))
    for number, loss in enumerate(losses[2:], start=2):
        second.add(number, loss_of(loss))
    assert second.read().loss == whole.read().loss, "to the last bit"
    with_parts, first = Meter(accelerator, plan), Meter(accelerator, plan)
    for number, right in enumerate([0.25, 1.0, 0.5]):
        with_parts.add(number, loss_of(1.0)._replace(parts={"accuracy": torch.tensor(right)}))
        if number < 2:
            first.add(number, loss_of(1.0)._replace(parts={"accuracy": torch.tensor(right)}))
    second = Meter(accelerator, plan, first.pending(), json.loads(json.dumps(first.pending_parts())))
    second.add(2, loss_of(1.0)._replace(parts={"accuracy": torch.tensor(0.5)}))
    assert second.read().parts == with_parts.read().parts == {"accuracy": pytest.approx(7 / 12)}
    of_two = Meter(accelerator, plan, [[1.0, 2.0], [3.0, 4.0]])
    of_two.add(8, loss_of(5.0))
    assert of_two.read().loss == pytest.approx(3.0), "two processes' losses, read by one"
