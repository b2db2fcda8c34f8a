"""The step's forward and backward pass as a CUDA graph: recorded once, then started by one call instead of hundreds.

At small batches the host needs longer to start a step's kernels than the GPU to run them. A graph runs the same kernels on the
same memory: a batch is copied to where it reads it, gradients and losses are found where it wrote them. What depends on the step as a
shape or number on the host stays outside: resizes, mixing, clipping, the optimizer with its learning rate, the moving average. Chance on the device stays that of the micro-batch, because a graph takes its generator's seed when it starts.

A recording is not believed: on its first batches the usual pass is made, too, and only where both agree the graph takes over.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError, error_text
from accel_flowers.core.registry import is_own_name
from accel_flowers.data.sampler import BatchPlan
from accel_flowers.data.transforms.build_batch import InTurn
from accel_flowers.training.step import TrainStep
from accel_flowers.training.tasks import Output, PlacedTask

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_WARM_UP = 3
"""Usual steps before the recording, in which libraries set themselves up: as in PyTorch's own examples."""
_PROOFS = 2
"""Batches on which the graph is compared: with one, numbers of that batch that were recorded would not be noticed."""
_TOLERANCE = 0.02
"""Of the gradients' norm. Kernels that add up in any order differ in bf16 by less than a hundredth from one pass to the next; a
graph that reads another batch or old weights, by the whole."""


class Recorder(Protocol):
    """What records work on a device and does it again."""

    def aside(self, work: Callable[[], _T]) -> _T:
        """Do it now, where it will be recorded."""

    def record(self, work: Callable[[], _T]) -> _T:
        """Record it, without effect on anything that was there before; what it gives is filled by `replay`."""

    def replay(self) -> None:
        """Do what was recorded."""

    def chance(self) -> Any:
        """Where the device's generator stands."""

    def set_chance(self, state: Any) -> None:
        """Put it back there."""


class CudaRecorder:
    """A CUDA graph.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream, self._graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
        self._generator = torch.cuda.default_generators[torch.cuda.current_device()]

    def aside(self, work: Callable[[], _T]) -> _T:
        """On a stream of its own: what a default stream began cannot be recorded."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            made = work()
        current.wait_stream(self._stream)
        return made

    def record(self, work: Callable[[], _T]) -> _T:
        """Kernels of this thread and of those that it waits for alone, because a loader's thread may pin memory meanwhile."""
        current = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                return work()
        finally:
            torch.cuda.set_stream(current)  # torch leaves the other one where a recording fails

    def replay(self) -> None:
        """One call."""
        self._graph.replay()

    def chance(self) -> Any:
        """Numbers drawn since it was seeded."""
        return self._generator.get_offset()

    def set_chance(self, state: Any) -> None:
        """Without a wait for the device."""
        self._generator.set_offset(state)


def why_not(config: Config, *, device: torch.device, plan: BatchPlan, step: TrainStep | None = None) -> str | None:
    """What forbids a graph of a run's step; None = nothing that is known before."""
    if device.type != "cuda":
        return f"it runs on {device.type}, and only a CUDA device has graphs"
    if plan.num_processes > 1:
        return "gradients of several processes are averaged while the backward pass runs"
    if plan.accumulation > 1:
        return "a step has several forward passes (--train.micro-batch-size)"
    if config.train.compile:
        return "the network is compiled (--train.compile)"
    if config.optim.sam_rho is not None:
        return "a step has two forward passes, with other weights in the second (--optim.sam-rho)"
    if step and isinstance(step.task, PlacedTask):
        return f"{config.loss.task} draws for each batch what it does inside the network (--loss.task)"
    if step and isinstance(step.mix, InTurn) and step.mix.resizes:
        return "a graph takes pictures of one size, and these grow (--data.batch-transform)"
    if config.debug.detect_anomaly:
        return "--debug.detect-anomaly looks at each operation"
    return None


def own_parts(config: Config) -> list[str]:
    """Parts of the user's own inside the recorded pass: they may do on the host what a graph would leave out."""
    return [name for name in (config.model.name, config.loss.task, config.loss.name) if is_own_name(name)]


def graphed(step: TrainStep, config: Config, *, device: torch.device, plan: BatchPlan) -> TrainStep:
    """The step as `train.cuda_graph` says.

    Raises:
        UserError: the recipe insists on a graph, and there can be none.
    """
    wanted = config.train.cuda_graph
    if wanted == "off":
        return step
    reason = why_not(config, device=device, plan=plan, step=step)
    if reason is None and wanted == "auto" and (own := own_parts(config)):
        reason = f"{', '.join(own)} may work on the host, too (--train.cuda-graph on tries it)"
    if reason is None:
        return GraphedStep(**vars(step), recorder=CudaRecorder(device), insists=wanted == "on")
    if wanted == "on":
        raise UserError(f"The step cannot be a CUDA graph: {reason}.\nTake --train.cuda-graph auto or off.")
    _log.info(f"step: no CUDA graph, because {reason}")
    return step


@dataclass
class _Recording:
    """Where a graph reads and writes."""

    loaded: tuple[Tensor, ...]
    targets: Tensor
    logits: Tensor
    values: Tensor
    """float32 [1 + K]: the loss and the parts."""
    names: list[str]
    """Of the parts."""
    gradients: list[tuple[torch.nn.Parameter, Tensor]]
    proofs: int = 0
    """Batches on which it agreed with the usual pass."""

    def takes(self, loaded: tuple[Tensor, ...], targets: Tensor) -> bool:
        """Whether a batch has the shapes that were recorded."""
        return all(
            given.shape == there.shape and given.dtype == there.dtype
            for given, there in zip((*loaded, targets), (*self.loaded, self.targets), strict=True)
        )


class _NoGraphError(Exception):
    """Why there is no graph."""


@dataclass
class GraphedStep(TrainStep):
    """A step that records its forward and backward pass after a few steps, and from then on replays it.

    Batches of other shapes take the usual way. The logits it gives are overwritten by the next step.
    """

    recorder: Recorder | None = None
    """None = there is no graph, or not any more."""
    insists: bool = False
    """Whether a graph that cannot be made is an error."""
    _steps: int = field(default=0, init=False)
    _recording: _Recording | None = field(default=None, init=False)

    def learn(self, loaded: tuple[Tensor, ...], targets: Tensor, first: int) -> Output:
        """Forward and backward pass.

        Raises:
            UserError: the recipe insists on a graph, and it cannot be recorded, or does not give what the usual pass gives.
        """
        if self.recorder is None:
            return super().learn(loaded, targets, first)
        try:
            return self._learn(self.recorder, loaded, targets, first)
        except _NoGraphError as error:
            self.recorder = self._recording = None
            if self.insists:
                raise UserError(
                    f"The step cannot be a CUDA graph: {error}.\nTake --train.cuda-graph auto or off."
                ) from None
            _log.warning(f"step: no CUDA graph, because {error}")
        return super().learn(loaded, targets, first)

    def _learn(self, recorder: Recorder, loaded: tuple[Tensor, ...], targets: Tensor, first: int) -> Output:
        if self._steps < _WARM_UP:
            self._steps += 1
            return recorder.aside(lambda: TrainStep.learn(self, loaded, targets, first))
        if self._recording is None:
            self._recording = self._record(recorder, loaded, targets, first)
        recording = self._recording
        if not recording.takes(loaded, targets):
            return super().learn(loaded, targets, first)
        if recording.proofs < _PROOFS:
            return self._prove(recorder, recording, loaded, targets, first)
        return _replayed(recorder, recording, loaded, targets)

    def _record(self, recorder: Recorder, loaded: tuple[Tensor, ...], targets: Tensor, first: int) -> _Recording:
        """
        Raises:
            _NoGraphError: it cannot be recorded.
        """
        loaded, targets = tuple(tensor.clone() for tensor in loaded), targets.clone()
        parameters = list(self.model.parameters())
        for parameter in parameters:
            parameter.grad = None  # the graph is to write gradients, not to add to them

        def work() -> tuple[Tensor, Tensor, list[str]]:
            output = TrainStep.learn(self, loaded, targets, first)
            values = torch.stack([value.detach().float() for value in (output.loss, *output.parts.values())])
            return output.logits.detach(), values, list(output.parts)

        on_host, chance = _host_chance(), recorder.chance()
        try:
            logits, values, names = recorder.record(work)
        except (RuntimeError, ValueError) as error:
            recorder.set_chance(chance)
            raise _NoGraphError(f"it cannot be recorded: {error_text(error).splitlines()[0]}") from None
        if _host_chance() != on_host:
            raise _NoGraphError("the network draws chance on the host")
        gradients = [(each, each.grad) for each in parameters if each.grad is not None]
        return _Recording(loaded, targets, logits, values, names, gradients)

    def _prove(
        self, recorder: Recorder, recording: _Recording, loaded: tuple[Tensor, ...], targets: Tensor, first: int
    ) -> Output:
        """The usual pass, after a look at what the graph makes of the same batch.

        Raises:
            _NoGraphError: something else, or there is no memory for both; then nothing of it is left.
        """
        buffers = list(self.model.buffers())
        before, chance = [buffer.clone() for buffer in buffers], recorder.chance()

        def put_back() -> None:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            for parameter in self.model.parameters():
                parameter.grad = None
            recorder.set_chance(chance)

        try:
            made = _replayed(recorder, recording, loaded, targets)
            put_back()
            usual = super().learn(loaded, targets, first)
            far = _distance(recording.gradients, made.loss, usual.loss)
        except torch.OutOfMemoryError:
            put_back()
            raise _NoGraphError("there is not enough memory for one beside the evaluation") from None
        if not far <= _TOLERANCE:  # nor is nan
            put_back()
            raise _NoGraphError(f"its gradients differ by {far:.2g} of their norm from those of the usual pass")
        recording.proofs += 1
        if recording.proofs == _PROOFS:
            _log.info(f"step: a CUDA graph from now on; it agreed with the usual pass on {_PROOFS} batches")
        return usual


def _host_chance() -> tuple[object, ...]:
    """Where the host's generators stand."""
    torchs, numpys = torch.default_generator.get_state(), np.random.get_state(legacy=False)
    return torchs.numpy().tobytes(), repr(numpys), random.getstate()


def _replayed(recorder: Recorder, recording: _Recording, loaded: tuple[Tensor, ...], targets: Tensor) -> Output:
    for there, given in zip((*recording.loaded, recording.targets), (*loaded, targets), strict=True):
        there.copy_(given)
    recorder.replay()
    for parameter, gradient in recording.gradients:
        parameter.grad = gradient
    loss, *parts = recording.values.clone().unbind()  # they are read steps later
    return Output(loss, recording.logits, dict(zip(recording.names, parts, strict=True)))


def _distance(gradients: Sequence[tuple[torch.nn.Parameter, Tensor]], loss: Tensor, usual_loss: Tensor) -> float:
    """How far a graph's gradients and loss are from the usual pass's, as a share of these; it waits for the device."""
    usual = [torch.zeros_like(made) if each.grad is None else each.grad for each, made in gradients]
    norm = torch.nn.utils.get_total_norm
    far = norm([made - wanted for (_, made), wanted in zip(gradients, usual, strict=True)]) / norm(usual).clamp(1e-30)
    of_loss = (loss - usual_loss.detach()).abs() / usual_loss.detach().abs().clamp(1e-3)
    return float(torch.maximum(far, of_loss))
