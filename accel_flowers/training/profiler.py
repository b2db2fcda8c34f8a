"""A profile of a few training steps: a trace and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from accel_flowers.config.schema import DebugConfig

PROFILE_DIR, TRACE_FILE, TABLE_FILE = "profile", "trace.json", "table.txt"
_SKIPPED_STEPS, _WARMUP_STEPS, _PROFILED_STEPS = 2, 1, 3
_STAGES = {
    "data": ("enumerate(DataLoader)",),
    "forward": ("forward",),
    "backward": ("backward",),
    "optimizer": ("Optimizer.step", "Optimizer.zero_grad"),
}
"""Row of the table → beginnings of the names that it sums up."""


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
        try:
            self._write_files(finished)
        except (OSError, RuntimeError) as error:  # a full disk: no reason to end a run
            self.table = f"the profile cannot be written to {self._directory}: {error}"

    def _write_files(self, finished: Any) -> None:
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
