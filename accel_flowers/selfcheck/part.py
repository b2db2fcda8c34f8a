"""What a part of the self-check is, and what parts share: how far numbers may be apart, and why one cannot be tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from accel_flowers.selfcheck.bench import Bench
from accel_flowers.selfcheck.finding import TIME, Finding, OutOfTime, PartFailed

ON_CPU, ON_DEVICE, BESIDE_CPU = 1e-5, 1e-4, 1e-3
"""How far losses may be apart: sums on a GPU run in another order, and beside the CPU with other algorithms, too."""
ADVICE_REPEATS = (
    "What this machine computes varies: memory or a GPU may be faulty (nvidia-smi -q -d ECC, a memory test). Do not\n"
    "trust runs of it until it repeats."
)
ADVICE_BUG = "This does not depend on the machine: install accel-flowers again, and report it if it stays so."


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: as `--only` takes it.
        tries: promises, or ways of training, that it has findings for.
        advice: what to do where it fails.
        runs: how many runs it makes at most: whether it fits into the minutes.
        work: does it.
        why_not: bench → why it cannot be tried here, or None.
    """

    name: str
    tries: tuple[str, ...]
    advice: str
    runs: int
    work: Callable[[Bench], Iterator[Finding]]
    why_not: Callable[[Bench], str | None] = lambda _: None

    def findings(self, bench: Bench) -> Iterator[Finding]:
        """Do it; one finding for each thing that it tries, whatever happens."""
        why_not = self.why_not(bench)
        if why_not is not None:
            yield from (Finding(what, "not tried", why_not) for what in self.tries)
            return
        if not bench.has_room(self.runs):
            yield from (Finding(what, "not tried", TIME) for what in self.tries)
            return
        open_ones = list(self.tries)
        try:
            for found in self.work(bench):
                open_ones.remove(found.what)
                yield found
        except PartFailed as failed:
            yield from (Finding(what, "failed", str(failed), self.advice) for what in open_ones)
        except OutOfTime:
            yield from (Finding(what, "not tried", TIME) for what in open_ones)


def judged(what: str, problems: list[str], advice: str, good: str = "") -> Finding:
    """Held where there are no problems."""
    if not problems:
        return Finding(what, "held", good)
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return Finding(what, "failed", "; ".join(problems[:3]) + more, advice)


def tolerance(bench: Bench) -> float:
    return ON_CPU if bench.machine.device == "cpu" else ON_DEVICE


def no_bf16(bench: Bench) -> str | None:
    return None if bench.machine.facts["bf16"] else f"this {bench.machine.device} computes no bf16"


def no_cuda(bench: Bench) -> str | None:
    return None if bench.machine.device == "cuda" else "it is for GPUs, and this runs on none"


def no_others(bench: Bench) -> str | None:
    return None if bench.machine.processes > 1 else "one process: it needs two"
