"""On what the self-check runs: the launch configuration, the number of processes and the device that fit together here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_flowers.core.errors import UserError
from accel_flowers.core.reading import read_text
from accel_flowers.core.yaml_text import MAX_BYTES, parse_yaml

_USE_CPU = "ACCELERATE_USE_CPU"


@dataclass(frozen=True)
class Machine:
    """What is tried.

    Attributes:
        facts: what `probe.look` found.
        file: the launch configuration.
        processes: that the launcher starts.
        device: "cuda", "cpu" or another of torch's names.
    """

    facts: Mapping[str, Any]
    file: Path
    processes: int
    device: str

    @property
    def launcher(self) -> list[str]:
        """Words behind `accelerate launch`."""
        return ["--config_file", str(self.file), "--num_processes", str(self.processes)]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that its processes need besides: the launcher does not pass `use_cpu` on."""
        return {_USE_CPU: "true"} if self.device == "cpu" else {}

    @property
    def in_words(self) -> str:
        """For example "2 x cuda by multi_gpu.yaml"."""
        return f"{self.processes} x {self.device}, as {self.file} says"


def choose_machine(facts: Mapping[str, Any], asked: Path | None, shipped: Mapping[str, Path]) -> Machine:
    """The launch configuration that was asked for, or the one that fits.

    Args:
        facts: what `probe.look` found.
        asked: a file; None = of those that come with the package the one for all devices of this machine.
        shipped: name → file of these.

    Raises:
        UserError: the file cannot be read, or is for more than this machine.
    """
    num_devices = len(facts["devices"])
    if asked is None:
        name = "cpu_2_processes" if not num_devices else "single_gpu" if num_devices == 1 else "multi_gpu"
        return Machine(facts, shipped[name], max(1, num_devices) if num_devices else 2, facts["device"])
    values = _read(asked)
    if (machines := values.get("num_machines", 1)) not in (1, None):
        raise UserError(
            f"'{asked}' is for {machines} machines, and the self-check tries one.\n"
            "Run it on each of them without --launch, then start a short training on all:\n"
            "accelerate launch ... -m accel_flowers train quickstart --data.path DIR --debug.fast-dev-run"
        )
    on_cpu = bool(values.get("use_cpu"))
    processes = values.get("num_processes", 1)
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise UserError(f"'{asked}' says num_processes: {processes!r}; 1 or more are needed.")
    if not on_cpu and not num_devices:
        raise UserError(
            f"'{asked}' is for GPUs, and torch sees none here{_why_none(facts)}.\n"
            "Leave --launch out to try what this machine has."
        )
    if not on_cpu and processes > num_devices:
        if asked in shipped.values():
            processes = num_devices  # what its remark says to set
        else:
            raise UserError(
                f"'{asked}' starts {processes} processes, and this machine has {num_devices} GPUs.\n"
                f"Set num_processes: {num_devices} there."
            )
    return Machine(facts, asked, processes, "cpu" if on_cpu else facts["device"])


def _why_none(facts: Mapping[str, Any]) -> str:
    if facts["cuda_of_torch"] is None:
        return ": this torch was built without CUDA"
    return f" (this torch wants CUDA {facts['cuda_of_torch']}: is the driver new enough?)"


def _read(file: Path) -> Mapping[str, Any]:
    try:
        values = parse_yaml(read_text(file, max_bytes=MAX_BYTES), str(file))
    except OSError as error:
        raise UserError(
            f"The launch configuration '{file}' cannot be read: {error.strerror}.\n"
            "Give a file, or one of the names that accel-flowers launch-config lists."
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"'{file}' is no launch configuration: it needs lines such as num_processes: 2.")
    return values


def described(facts: Mapping[str, Any]) -> Sequence[str]:
    """Lines for people."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    devices = [f"  {number}: {name}" for number, name in enumerate(facts["devices"])]
    cuda = f"CUDA {facts['cuda_of_torch']}, NCCL {facts['nccl']}; " if facts["device"] == "cuda" else ""
    shared = facts["shared_memory"]
    room = "" if shared is None else f", {shared / 2**30:.1f} GiB of shared memory"
    return [versions, f"{cuda}{facts['cpu']}, {facts['cores']} cores{room}", *devices]
