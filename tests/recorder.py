"""What a CUDA graph does, on a CPU: operations are recorded with the memory that they read and write, and done again on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_T = TypeVar("_T")


class OperationRecorder:
    """Records the operations below autograd. Like a GPU's recording, it takes no notice of what Python did between them.

    Args:
        state: what the work changes in place; a recording leaves it as it was.
    """

    def __init__(self, state: Iterable[Tensor] = ()) -> None:
        self._state = list(state)
        self._operations: list[Callable[[], None]] = []
        self.replays = 0

    def aside(self, work: Callable[[], _T]) -> _T:
        return work()

    def record(self, work: Callable[[], _T]) -> _T:
        before = [tensor.clone() for tensor in self._state]
        chance = self.chance()
        try:
            with _Recording(self._operations):
                made = work()
        finally:
            self.set_chance(chance)
            for tensor, value in zip(self._state, before, strict=True):
                tensor.copy_(value)
        # Recorded kernels have not run: what they will write holds nothing yet.
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.detach().fill_(float("nan"))
        return made

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for again in self._operations:
            again()

    def chance(self) -> Any:
        return torch.default_generator.get_state()

    def set_chance(self, state: Any) -> None:
        torch.default_generator.set_state(state)


class _Recording(TorchDispatchMode):
    def __init__(self, operations: list[Callable[[], None]]) -> None:
        super().__init__()
        self._operations = operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")  # a wait for the device
        if all(result.alias_info is None or result.alias_info.is_write for result in func._schema.returns):
            self._operations.append(lambda: _again(func, args, kwargs, made))  # not a view of the same memory
        return made


def _again(func: Any, args: Any, kwargs: Any, made: Any) -> None:
    for there, result in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(there, Tensor) and there is not result:
            there.copy_(result)
