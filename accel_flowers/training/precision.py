"""Which precision trains a network faster on this CPU: tried in a second or two, and remembered for the next runs.

ResNets gain much from bf16 where the CPU has instructions for it; networks of depthwise convolutions, such as
MobileNetV3, gain little (`models.depthwise`), or lose. Only a trial tells. The memory layout needs none: channels last (`models.wants_channels_last`) was at least
as fast as contiguous in both precisions for all networks that were measured.

Not for: GPUs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from accel_flowers.config.schema import Config
from accel_flowers.core.backends import HalfPrecision, fast_precision
from accel_flowers.core.errors import UserError
from accel_flowers.core.files import user_cache, write_text_durably
from accel_flowers.core.machine import bf16_instructions, cpu_facts
from accel_flowers.core.reading import parse_json, read_text
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.distributed.collectives import Processes
from accel_flowers.distributed.launch import launched_precision, launcher_says_precision
from accel_flowers.models.backbone import check_input, wants_channels_last
from accel_flowers.models.depthwise import learn_depthwise_in_float32
from accel_flowers.models.find import build_network, find_backbone
from accel_flowers.models.freezing import freeze, set_training_mode
from accel_flowers.models.layers import ends_of_stages
from accel_flowers.models.normalizer import Normalizer
from accel_flowers.tracking.run_dir import holds_run, recorded_precision
from accel_flowers.training.build_task import build_task
from accel_flowers.training.distillation import classes_for_trial, described_teacher
from accel_flowers.training.optim import build_optimizer, set_lr
from accel_flowers.training.step import InPrecision, LocalEngine, TrainStep, blank_batch, loaded_whole
from accel_flowers.training.tasks import TaskContext

_log = logging.getLogger(__name__)

Precision = Literal["no", "bf16"]
"""In the launcher's words: "no" is float32."""
PRECISIONS: tuple[Precision, ...] = ("bf16", "no")
MIN_SPEEDUP = 1.05
"""float32 must be so many times as fast: what is about equal stays as the launcher has it."""
EARLY_EXIT_SPEEDUP = 1.5
"""Where one is so many times as fast as the other, two rounds are enough."""
BUDGET_SECONDS = 3.0
_MIN_ROUNDS, _MAX_ROUNDS = 3, 10
# With few images the casting of the weights would weigh more than in training, and count against bf16: as many as the
# time allows. Beyond 16 little changes.
_FEW_IMAGES, _MAX_IMAGES = 4, 16
_STEP_SECONDS = 0.75
_NUM_CLASSES = 10  # of no weight beside the rest
_MAX_REMEMBERED, _MAX_BYTES = 500, 2**20


@dataclass(frozen=True)
class PrecisionChoice:
    """What a trial found."""

    ratio: float
    """Speed of float32 by that of bf16."""
    remembered: bool = False
    """Whether an earlier run has tried it."""

    @property
    def precision(self) -> Precision:
        """What to train in where the launcher says bf16."""
        return "no" if self.ratio > MIN_SPEEDUP else "bf16"

    @property
    def bare_precision(self) -> Precision:
        """What to train in where there is no launcher."""
        return "bf16" if self.ratio * MIN_SPEEDUP < 1 else "no"

    def words(self, name: str, *, bare: bool = False) -> str:
        """The line for people."""
        if bare:
            tried = "tried before" if self.remembered else "tried just now"
            other = "no" if self.bare_precision == "bf16" else "bf16"
            taken = "bf16 is taken" if self.bare_precision == "bf16" else "float32 is taken"
            found = f"{name} trains {1 / self.ratio:.2f} times as fast in bf16 as in float32 on this CPU"
            return f"precision: {found} ({tried}): {taken} (--train.precision {other} for the other)"
        found = f"{name} trains {self.ratio:.2f} times as fast in float32 as in bf16 on this CPU"
        tried = "tried before" if self.remembered else "tried just now"
        taken = "float32 is taken, not the launcher's bf16" if self.precision == "no" else "the launcher's bf16 stays"
        return f"precision: {found} ({tried}): {taken}"


def choose_precision(
    config: Config, processes: Processes, *, run_dir: Path | None = None, bare: bool = False
) -> str | None:
    """The precision of a run; None for what the launcher says.

    A recipe may name it. Else a run goes on as it began; a new one takes float32 instead of the launcher's bf16 where a
    trial on this CPU finds it faster, and fp16 on a GPU that only emulates bf16. Without a launcher it takes bf16 instead of
    float32 (or fp16, on such a GPU) where a GPU has it, or a CPU has instructions for it and the trial finds it faster.

    On the main process alone: the others wait, so that they do not train while it measures.

    Args:
        config: of the run.
        processes: of the run.
        run_dir: may hold a run that goes on.
        bare: whether a run without a launcher's word may take bf16: so on the command line.
    """
    launched = launched_precision()
    if config.train.precision == "bf16" or (config.train.precision, launched) == ("launcher", "bf16"):
        _tell_of_emulation(processes.device)
    if config.train.precision in ("no", "bf16", "fp16"):
        return config.train.precision
    bare = bare and not launcher_says_precision()
    if config.train.precision == "launcher" or (launched != "bf16" and not bare):
        return None
    if run_dir is not None and holds_run(run_dir):
        began_in = recorded_precision(run_dir, launched)
        if began_in not in (None, launched):
            _log.info(f"precision: {began_in}, in which this run began (--train.precision launcher takes {launched})")
        if began_in == "bf16":
            _tell_of_emulation(processes.device)
        return began_in
    if processes.device.type == "cuda":
        fast = fast_precision(processes.device)
        if fast != "bf16":
            _log.info(instead_of_bf16(fast, torch.cuda.get_device_name(processes.device)))
        return fast if bare or fast != "bf16" else None
    # What torch.compile would make of the network is another network's speed.
    if processes.device.type != "cpu" or config.train.compile or (bare and not bf16_instructions()):
        return None
    choice = try_precisions(config, num_processes=processes.num_processes)
    if choice is None:
        return None
    _log.info(choice.words(config.model.name, bare=bare))
    return choice.bare_precision if bare else choice.precision


def instead_of_bf16(fast: HalfPrecision, name: str) -> str:
    """The line for people where a GPU has no bf16.

    Args:
        fast: what is taken.
        name: of the GPU.
    """
    taken = "float32" if fast == "no" else fast
    return (
        f"precision: {name} has no bf16 of its own: {taken} is taken (--train.precision bf16 for emulated, slow bf16)"
    )


def _tell_of_emulation(device: torch.device) -> None:
    if device.type == "cuda" and (fast := fast_precision(device)) != "bf16":
        name = torch.cuda.get_device_name(device)
        _log.info(f"precision: {name} only emulates bf16, which is slow (--train.precision {fast} is fast there)")


def try_precisions(config: Config, *, num_processes: int) -> PrecisionChoice | None:
    """Find out which precision trains a recipe's network faster on this CPU.

    Weights, chance and memory of the run are left alone: the trial has a network of its own and gives it back.

    Args:
        config: says which network, images and micro-batch.
        num_processes: of the run.

    Returns:
        None where the network cannot be tried. The run will tell why, for it cannot do that step either.
    """
    settings = config.train
    try:
        _, size = build_transform(config.data.preprocessing().train_transforms, field="data.train_transforms")
        plan = BatchPlan(1, 1, settings.global_batch_size, num_processes, settings.micro_batch_size)
        key = trial_key(config, size, plan.micro_batch)
        ratio = recall(key)
        if ratio is not None:
            return PrecisionChoice(ratio, remembered=True)
        with torch.random.fork_rng(devices=[]):
            seconds = _try(config, size, plan.micro_batch)
    except (UserError, RuntimeError, MemoryError):
        return None
    choice = PrecisionChoice(round(seconds["bf16"] / seconds["no"], 3))
    remember(key, choice.ratio)
    return choice


def _try(config: Config, size: tuple[int, int], micro_batch: int) -> dict[Precision, float]:
    names = classes_for_trial(config.loss, _NUM_CLASSES)
    network, _ = build_network(config.model.name, len(names), dropout=config.model.dropout)
    freeze(network, config.model.freeze, find_backbone(config.model.name))
    check_input(network, (3, *size))
    learn_depthwise_in_float32(network)
    channels_last = wants_channels_last(network)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    set_training_mode(network)
    optimizer = build_optimizer(network, config.optim)
    set_lr(optimizer, 0.0)  # the same work, and numbers that stay numbers
    *_, mean, std = config.data.preprocessing()
    normalizer = Normalizer(mean, std, channels_last=channels_last)
    context = TaskContext(
        config.loss, torch.arange(len(names)), names, torch.device("cpu"), mean, std, image_size=size, network=network,
        stages=ends_of_stages(network, find_backbone(config.model.name)),
    )  # fmt: skip

    def step_in(precision: Precision) -> TrainStep:
        task = build_task(replace(context, autocast=_autocast(precision)))
        model = InPrecision(network, _autocast(precision))
        return TrainStep(LocalEngine(), model, optimizer, task, loaded_whole, normalizer)

    steps = {precision: step_in(precision) for precision in PRECISIONS}

    def make_steps(count: int) -> dict[Precision, Callable[[], object]]:
        batch = blank_batch(count, size, len(names), torch.device("cpu"))
        batch["pixels"] = torch.randint(0, 256, batch["pixels"].shape, dtype=torch.uint8)
        return {precision: partial(step, batch) for precision, step in steps.items()}

    few = make_steps(_FEW_IMAGES)["bf16"]
    few()  # the first pass of all sets up the libraries
    affordable = int(_FEW_IMAGES * _STEP_SECONDS / _seconds_of(few))
    # Batch norm behind a pooling to one place wants two, and what mixes pairs an even number.
    return time_in_turn(make_steps(max(2, min(micro_batch, _MAX_IMAGES, affordable) // 2 * 2)))


def _autocast(precision: Precision) -> Callable[[], torch.autocast]:
    """What the training makes its context of on a CPU."""
    return partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=precision == "bf16")


def time_in_turn(
    steps: Mapping[Precision, Callable[[], object]], *, budget_seconds: float = BUDGET_SECONDS
) -> dict[Precision, float]:
    """Seconds of the fastest of several repeats of each step, which the first, a warm-up, can hardly be; A B A B, so
    that other work on the machine hits both.

    Args:
        steps: what is timed.
        budget_seconds: no new round begins after it, once there were enough.
    """
    best = dict.fromkeys(steps, float("inf"))
    begun = time.perf_counter()
    for number in range(_MAX_ROUNDS):
        for name, step in steps.items():
            best[name] = min(best[name], _seconds_of(step))
        enough = number + 1 >= _MIN_ROUNDS and time.perf_counter() - begun > budget_seconds
        if enough or (number > 0 and max(best.values()) > EARLY_EXIT_SPEEDUP * min(best.values())):
            break
    return best


def _seconds_of(step: Callable[[], object]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


# What is remembered between runs: a convenience, so nothing that goes wrong here may end a run.


def trial_key(config: Config, size: tuple[int, int], micro_batch: int) -> str:
    """All that the answer depends on."""
    return (
        f"{config.model.name}, {config.optim.name}, freeze {config.model.freeze}, {size[0]} x {size[1]} pixels, {micro_batch} pictures, "
        f"{''.join(f'{teacher} {facts}, ' for teacher, facts in described_teacher(config).items())}"
        f"depthwise in float32, {torch.get_num_threads()} threads, {_describe_cpu()}, torch {torch.__version__}"
    )


def trials_file() -> Path:
    """trials.json in the user's cache directory."""
    return user_cache() / "trials.json"


def recall(key: str) -> float | None:
    """The ratio that an earlier trial found; None where there was none, or where the file is damaged."""
    ratio = _read_trials().get(key)
    return float(ratio) if isinstance(ratio, (int, float)) and 0 < ratio < 1e6 else None


def remember(key: str, ratio: float, *, at_most: int = _MAX_REMEMBERED) -> None:
    """Keep it, and so many in all, for the next runs, where the cache directory lets itself be written."""
    trials = {**_read_trials(), key: ratio}
    kept = dict(list(trials.items())[-at_most:])
    with suppress(OSError, RuntimeError):
        file = trials_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_durably(file, json.dumps(kept, indent=1) + "\n")


def _read_trials() -> dict[str, Any]:
    try:
        trials = parse_json(read_text(trials_file(), max_bytes=_MAX_BYTES))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home directory
        return {}
    return trials if isinstance(trials, dict) else {}


def _describe_cpu() -> str:
    """Model and the instructions that matter; virtual machines give many models one name."""
    facts = cpu_facts()
    named = [facts.get(name, "") for name in ("model name", "cpu family", "model")]
    return " ".join([*filter(None, named), *bf16_instructions(), torch.backends.cpu.get_cpu_capability()])
