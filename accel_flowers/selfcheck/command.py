"""The self-check from the look at the machine to the table; each part ends by itself and spoils none of the others."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_flowers.core.errors import UserError, did_you_mean
from accel_flowers.core.machine import check_can_train
from accel_flowers.samples.draw import draw_sample
from accel_flowers.selfcheck.bench import Bench
from accel_flowers.selfcheck.finding import Finding, PartFailed
from accel_flowers.selfcheck.machine import Machine, choose_machine, described
from accel_flowers.selfcheck.part import Part
from accel_flowers.selfcheck.parts import PARTS
from accel_flowers.selfcheck.processes import Started, end_all_of, python
from accel_flowers.selfcheck.table import promises_of_page, table

_log = logging.getLogger(__name__)

LIBRARIES = "the libraries and devices of this machine"
_PROBE_SECONDS = 120.0
_ADVICE_LIBRARIES = (
    "pip install --upgrade accel-flowers; torch and torchvision must belong together, and torch's CUDA must be one that\n"
    "the driver knows (nvidia-smi shows it)."
)


@dataclass(frozen=True)
class SelfCheck:
    """What a self-check came to."""

    findings: tuple[Finding, ...]

    @property
    def all_held(self) -> bool:
        """Whether nothing failed; what was not tried says nothing."""
        return all(finding.outcome != "failed" for finding in self.findings)

    def in_words(self) -> str:
        """The table."""
        return table(self.findings, promises_of_page())


def selfcheck(
    launch: Path | None, shipped: Mapping[str, Path], *, minutes: float = 10.0, only: Sequence[str] = ()
) -> SelfCheck:
    """Try this machine with drawn images, and without a network.

    Args:
        launch: a configuration of `accelerate launch`; None = the one that fits.
        shipped: name → file of those that come with the package.
        minutes: after which no part begins, and what runs is ended.
        only: names of parts; nothing = all.

    Raises:
        UserError: there is no such part, or the configuration is not for this machine.
    """
    check_can_train()
    parts, deadline = chosen(only), time.monotonic() + 60 * minutes
    promises_of_page()  # what is missing is told now
    with _scratch() as (scratch, findings):
        facts = _look(scratch)
        if isinstance(facts, Finding):
            _tell(facts, 0.0)
            findings.append(facts)
            return SelfCheck(tuple(findings))
        for line in described(facts):
            _log.info(line)
        machine = choose_machine(facts, launch, shipped)
        findings.append(_of_libraries(facts))
        _tell(findings[0], 0.0)
        _log.info(f"trying {machine.in_words}; {minutes:g} minutes; all output is in {scratch}")
        bench = Bench(machine, scratch, _draw(scratch, machine), deadline)
        for part in parts:
            begun = time.monotonic()
            for finding in part.findings(bench):
                _tell(finding, time.monotonic() - begun, part)
                findings.append(finding)
                begun = time.monotonic()
    return SelfCheck(tuple(findings))


def chosen(only: Sequence[str]) -> list[Part]:
    """The parts of these names, in the order of all; nothing = all.

    Raises:
        UserError: there is no such part.
    """
    names = [part.name for part in PARTS]
    for name in only:
        if name not in names:
            raise UserError(f"There is no part '{name}'.{did_you_mean(name, names)} Parts: {', '.join(names)}.")
    return [part for part in PARTS if not only or part.name in only]


@contextmanager
def _scratch() -> Iterator[tuple[Path, list[Finding]]]:
    """A folder that stays, and is named, where something failed."""
    folder = Path(tempfile.mkdtemp(prefix="accel-flowers-selfcheck-"))
    findings: list[Finding] = []
    try:
        yield folder, findings
    except BaseException:
        end_all_of(folder)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if any(finding.outcome == "failed" for finding in findings):
        _log.info(f"all that the runs said and wrote stays in {folder}; remove it when it is not needed any more")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _look(scratch: Path) -> dict[str, Any] | Finding:
    """What this machine has; a finding where it cannot even be looked at."""
    try:
        with Started(python("accel_flowers.selfcheck.probe"), scratch / "probe.log") as probe:
            if probe.wait(_PROBE_SECONDS):
                raise PartFailed(f"torch and what belongs to it cannot be loaded:\n{probe.last_lines()}")
            said = probe.said()
            facts: dict[str, Any] = json.loads(said[said.index('{"versions"') :])
            return facts
    except PartFailed as failed:
        return Finding(LIBRARIES, "failed", str(failed), _ADVICE_LIBRARIES)


def _of_libraries(facts: Mapping[str, Any]) -> Finding:
    if facts["too_old"]:
        return Finding(LIBRARIES, "failed", "; ".join(facts["too_old"]), _ADVICE_LIBRARIES)
    if facts["gpu_without_torch"]:
        seen = f"there is a GPU, but torch sees none (it wants CUDA {facts['cuda_of_torch']})"
        return Finding(LIBRARIES, "failed", seen, _ADVICE_LIBRARIES)
    return Finding(LIBRARIES, "held")


def _draw(scratch: Path, machine: Machine) -> Path:
    """So many that each process has several batches of each part."""
    return draw_sample(scratch / "photos", images_per_class=max(12, 6 * machine.processes), image_size=48)


def _tell(finding: Finding, seconds: float, part: Part | None = None) -> None:
    """One line as it goes; more where it failed."""
    said = {"held": "ok", "failed": "FAILED", "not tried": "not tried"}[finding.outcome]
    name = part.name if part else "machine"
    more = f": {finding.seen}" if finding.seen else ""
    took = "" if finding.outcome == "not tried" else f" ({seconds:.0f} s)"
    _log.info(f"{name:<9}{said:<10}{finding.what}{more}{took}")
