"""Ways to find out what is wrong: less data, a profile, stricter arithmetic. Each is a flag of the section `debug`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from accel_flowers.config import Config, DebugConfig
from accel_flowers.data.folder import ImageTable
from accel_flowers.data.split import Split, thin_out

PROFILE_DIR, TRACE_FILE, TABLE_FILE = "profile", "trace.json", "table.txt"
_SKIPPED_STEPS, _WARMUP_STEPS, _PROFILED_STEPS = 2, 1, 3
_STAGES = {
    "data": ("enumerate(DataLoader)",),
    "forward": ("forward",),
    "backward": ("backward",),
    "optimizer": ("Optimizer.step", "Optimizer.zero_grad"),
}
"""Row of the table → beginnings of the names that it sums up."""


def shorten(config: Config) -> Config:
    """The configuration as `debug.fast_dev_run` changes it."""
    if not config.debug.fast_dev_run:
        return config
    train = config.train.model_copy(update={"epochs": 1, "log_every_steps": 1})
    schedule = config.schedule.model_copy(update={"warmup_epochs": 0.0})
    return config.model_copy(update={"train": train, "schedule": schedule})


def thin_for_debugging(split: Split, table: ImageTable, config: Config) -> Split:
    """The split with as many pictures as `debug` leaves."""
    debug, batch = config.debug, config.train.global_batch_size
    present = {part: len(split.files_of(part)) for part in set(split.parts.values())}
    if debug.subset is not None:
        sizes = {part: max(1, round(debug.subset * size)) for part, size in present.items()}
        cause = f"left out by debug.subset {debug.subset:g}"
    elif debug.overfit_batches is not None:
        sizes = {part: debug.overfit_batches * batch if part == "train" else 0 for part in present}
        cause = f"left out by debug.overfit_batches {debug.overfit_batches}"
    elif debug.fast_dev_run:
        sizes = {part: 2 * batch if part == "train" else config.train.eval_batch_size for part in present}
        cause = "left out by debug.fast_dev_run"
    else:
        return split
    labels = dict(zip(table.files, table.labels.tolist(), strict=True))
    return thin_out(split, labels, sizes, seed=config.train.seed, cause=cause)


@contextmanager
def stricter(debug: DebugConfig) -> Iterator[None]:
    """Anomaly detection and deterministic algorithms, as asked for, while the block lasts."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    if debug.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.set_detect_anomaly(debug.detect_anomaly or torch.is_anomaly_enabled()):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


@contextmanager
def ways_by_rule() -> Iterator[None]:
    """Let cuDNN take its ways by rule and not by trial while the block lasts: the scores of a model are then the same each
    time, and a last batch of fewer pictures costs no search of its own."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def fast_arithmetic(device: torch.device, *, deterministic: bool = False) -> Iterator[None]:
    """On a GPU, while the block lasts: TensorFloat-32 where float32 is multiplied, and the convolution that a first try
    finds fastest; not where the same bits are wanted each time. A CPU computes as it does."""
    if device.type != "cuda" or deterministic:
        yield
        return
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(precision)


class StepProfiler:
    """Profiles a few steps of the main process, then writes a trace and a table; does nothing where it is not asked for.

    Args:
        debug: says whether.
        run_dir: gets `profile/trace.json` (for chrome://tracing or ui.perfetto.dev) and `profile/table.txt`.
        accelerator: its `backward` gets a name in the trace.
        network: its forward does.
    """

    def __init__(self, debug: DebugConfig, run_dir: Path, accelerator: Accelerator, network: nn.Module) -> None:
        self._directory = run_dir / PROFILE_DIR
        self._accelerator, self._network = accelerator, network
        self._profile: Any = None
        self._undo: list[Any] = []
        self.table: str | None = None
        """What to tell, once all steps are profiled."""
        if debug.profile and accelerator.is_main_process:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=_SKIPPED_STEPS, warmup=_WARMUP_STEPS, active=_PROFILED_STEPS, repeat=1),
                on_trace_ready=self._write,
                profile_memory=True,
                acc_events=True,
            )

    def __enter__(self) -> StepProfiler:
        if self._profile is not None:
            self._name_stages()
            self._profile.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._profile is not None:
            self._profile.stop()
        for undo in self._undo:
            undo()

    def step(self) -> str | None:
        """An optimizer step is done.

        Returns:
            The table, once, when all steps are profiled.
        """
        if self._profile is None or self.table is not None:
            return None
        self._profile.step()
        return self.table

    def _name_stages(self) -> None:
        """Forward and backward get names; the loader and the optimizer have theirs from torch."""
        ranges: list[Any] = []

        def begin(*_: object) -> None:
            ranges.append(record_function("forward"))
            ranges[-1].__enter__()

        def end(*_: object) -> None:
            ranges.pop().__exit__(None, None, None)

        backward = self._accelerator.backward

        def named_backward(*args: Any, **words: Any) -> None:
            with record_function("backward"):
                backward(*args, **words)

        self._accelerator.backward = named_backward
        hooks = [self._network.register_forward_pre_hook(begin), self._network.register_forward_hook(end)]
        self._undo = [*(hook.remove for hook in hooks), lambda: setattr(self._accelerator, "backward", backward)]

    def _write(self, finished: Any) -> None:
        self._directory.mkdir(exist_ok=True)
        finished.export_chrome_trace(str(self._directory / TRACE_FILE))
        events = finished.key_averages()
        seconds = {
            stage: sum(event.cpu_time_total for event in events if event.key.startswith(beginnings)) / 1e6
            for stage, beginnings in _STAGES.items()
        }
        total = sum(event.cpu_time_total for event in events if event.key.startswith("ProfilerStep")) / 1e6
        seconds["other"] = max(0.0, total - sum(seconds.values()))
        # A GPU works on while the processor is ahead of it: what a stage waits for is then no measure of its work.
        of = "of the processor" if torch.cuda.is_available() else ""
        lines = [f"{'':<10}  ms a step   share  {of}".rstrip()]
        for stage, spent in seconds.items():
            lines.append(f"{stage:<10}  {1000 * spent / _PROFILED_STEPS:9.1f}  {spent / max(total, 1e-9):6.1%}")
        by_device = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        details = events.table(sort_by=by_device, row_limit=25, max_name_column_width=60)
        self.table = "\n".join(lines)
        (self._directory / TABLE_FILE).write_text(f"{self.table}\n\n{details}\n", encoding="utf-8")
