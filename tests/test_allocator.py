"""Freed memory stays with the process while a network computes on a CPU, and goes back afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import resource, sys
import torch
from accel_flowers.core.backends import fast_arithmetic
from accel_flowers.core.allocator import freed_memory_is_kept

def faults_of_a_tensor():
    "How often the system had to find a page for 64 MiB that were held and freed a moment ago."
    for _ in range(20):  # small pieces settle between the large ones at first
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20

outside, at_first = faults_of_a_tensor(), held()
with fast_arithmetic(torch.device("cpu")):
    with freed_memory_is_kept():
        pass
    inside, kept = faults_of_a_tensor(), held()
print(outside, inside, faults_of_a_tensor(), kept - at_first, held() - at_first)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts as Linux does")
@pytest.mark.parametrize("own", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_freed_memory_is_kept_on_a_cpu_unless_the_user_says_otherwise(own: dict[str, str]) -> None:
    """A block within the block does not end it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, env=plain | own, check=True)
    outside, inside, after, kept, given_back = map(int, done.stdout.split())
    assert outside > 20, "the system does not clear pages here"  # 32 where it gives two megabytes at once
    assert after > outside / 2
    assert given_back < 32
    if own:
        assert inside > outside / 2
        assert kept < 32
    else:
        assert inside < outside / 4
        assert kept > 48
