"""What only DistributedDataParallel needs: its buckets of gradients, and batch-norm statistics that each process keeps."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def disable_buffer_broadcast(model: nn.Module) -> None:
    """Stop DDP from overwriting every process's batch-norm statistics with the first one's before each forward.

    `average_buffers` then keeps what all of them saw. (Set here because the constructor's argument changed its name
    between versions of torch.)
    """
    ddp = _ddp_of(model)
    if ddp is not None:
        ddp.broadcast_buffers = False


def _ddp_of(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """DDP as Accelerate has wrapped the model in it, also below what `torch.compile` puts around it; None on one process.

    On several it must be found: else DDP would overwrite the statistics of all processes, and nobody would notice.
    """
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        return inner
    alone = not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
    frozen = not any(
        parameter.requires_grad for parameter in model.parameters()
    )  # of which there is nothing to exchange
    assert alone or frozen, f"{type(inner).__name__} is not DistributedDataParallel"
    return None


def without_ddp(model: nn.Module) -> nn.Module:
    """The network inside DDP, whose gradients are this process's own; where there is no DDP, the model itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else model


def warm_up_ddp_buckets(model: nn.Module, network: nn.Module, pixels: Tensor) -> None:
    """Let DDP lay out its gradient buckets before the first step instead of after it; collective.

    It rebuilds them once, after a first backward pass, and sums in another order from then on, which on three
    processes and more changes the last digits: without this the first step after a resume would differ.

    Args:
        model: as Accelerate wrapped it, before any training.
        network: the same, unwrapped; its batch-norm statistics are put back.
        pixels: any input, float [B, C, H, W].
    """
    if _ddp_of(model) is None or torch.distributed.get_world_size() < 3:
        return
    before = [buffer.clone() for buffer in network.buffers()]
    for _ in range(2):  # the layout changes at the beginning of the second pass
        model(pixels).sum().mul(0).backward()
        model.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)


def rewrap(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """DDP anew around the same network, after another part of it was set to train; collective.

    DDP notes once, when it is made, of which parameters it awaits gradients. (Looking for those that come to none in each
    step, `find_unused_parameters`, would cost every step of the run.) Each process keeps its own batch-norm statistics.

    Args:
        model: as Accelerate wrapped it.
        accelerator: the processes; it forgets the old wrapping, whose hooks go with it.

    Returns:
        What to train from now on; on one process `model` itself.
    """
    old = _ddp_of(model)
    if old is None:
        return model
    assert old is model, "a compiled DDP cannot be made anew"
    new = nn.parallel.DistributedDataParallel(
        old.module,
        device_ids=old.device_ids,
        output_device=old.output_device,
        process_group=old.process_group,
        init_sync=False,
        **(accelerator.ddp_handler.to_kwargs() if accelerator.ddp_handler else {}),
    )
    disable_buffer_broadcast(new)
    wrapped = accelerator._models
    wrapped[:] = [new if each is old else each for each in wrapped]
    return new


def gather_buffers(network: nn.Module, accelerator: Accelerator) -> Tensor:
    """Each process's own running statistics as one row, float32 [processes, all values]; collective."""
    own = [buffer.detach().float().flatten() for buffer in network.buffers() if buffer.is_floating_point()]
    if not own:
        return torch.empty(accelerator.num_processes, 0)  # between GPUs nothing cannot be gathered
    return accelerator.gather(torch.cat(own)[None]).cpu()


@torch.no_grad()
def set_buffers(network: nn.Module, rows: Tensor, accelerator: Accelerator) -> None:
    """Put running statistics back: a process's own where as many are running as were, else the mean of all.

    Raises:
        ValueError: the rows are of another network.
    """
    same = rows.shape[0] == accelerator.num_processes
    row = rows[accelerator.process_index] if same else rows.double().mean(dim=0)
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if row.numel() != sum(buffer.numel() for buffer in buffers):
        raise ValueError("another number of batch-norm statistics")
    for buffer, values in zip(buffers, row.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def average_buffers(network: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their batch-norm running statistics: collective, before evaluation and saving.

    Each process has seen other micro-batches; the mean is what one process with as many would have kept, but for
    the order. Frozen layers are left alone.
    """
    if accelerator.num_processes == 1:
        return
    moving = [
        buffer
        for module in network.modules()
        for buffer in module.buffers(recurse=False)
        if module.training and buffer.is_floating_point()
    ]
    if moving:
        # All in one message. In float64 the mean of equal values is that value, so that to average twice changes nothing.
        means = accelerator.reduce(torch.cat([buffer.double().flatten() for buffer in moving]), reduction="mean")
        for buffer, mean in zip(moving, means.split([buffer.numel() for buffer in moving]), strict=True):
            buffer.copy_(mean.view_as(buffer))
