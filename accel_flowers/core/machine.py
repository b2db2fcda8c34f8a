"""What the processor is: one reader of /proc/cpuinfo. No torch."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_facts() -> dict[str, str]:
    """What Linux says of the first processor, such as "model name" and "flags"; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return dict(reversed(pairs))


def cpu_name() -> str:
    """Its model; where that is not known, what Python calls it, which may be empty."""
    return cpu_facts().get("model name") or platform.processor()


def bf16_instructions() -> list[str]:
    """Flags of the instructions that compute in bfloat16, such as "avx512_bf16"."""
    return [flag for flag in cpu_facts().get("flags", "").split() if flag.endswith("_bf16")]
