#!/usr/bin/env python
"""Feed the program damaged and hostile files: each must be read, or refused in a message, within ten seconds.

Trains a tiny network, then damages copies of what it needs and what it made, one thing at a time: pictures, zips, JSON
(splits, model cards, states, metrics.jsonl), YAML (recipes, config.yaml), Parquet, and whole run directories (files that
are missing, folders, pipes, links). Each input is read in a forked process by the command or function that reads it.
A fault is a traceback, a signal, an exit code other than 0, 1 and 2, or no end within --limit seconds.
Exit code 0: no fault; 1: faults, each with the words that do it again; what the process said is in --keep.

  python scripts/fuzz.py --inputs 30000                 # some ten inputs a second and core
  python scripts/fuzz.py --inputs 200 --seed 7          # others than those of seed 0
  python scripts/fuzz.py --kinds yaml json --inputs 500
  python scripts/fuzz.py --seed 7 --only 133            # one of them again, with all that it says

An input is a function of the seed and its number.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from accel_flowers.cli.main import end_with  # noqa: E402
from tests.damage import KINDS, Input, Stock, build_stock, make_input  # noqa: E402

ALLOWED = (0, 1, 2)
"""Done; done, but some pictures could not be read; a mistake that is told."""
MEMORY = 6 << 30
"""Bytes of address space beyond what the process has already: a file that eats more ends in a traceback."""
SECONDS_BETWEEN_LINES = 60


@dataclass(frozen=True)
class Fault:
    """What went wrong with an input."""

    number: int
    kind: str
    words: str
    reason: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="what they follow from (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to go on after an interruption")
    parser.add_argument("--only", type=int, help="the number of one input: do it alone, and show what it says")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS), help="default: all")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for each (default: 10)")
    parser.add_argument("--keep", type=Path, help="folder that receives the input and the words of each fault")
    asked = parser.parse_args()
    numbers = [asked.only] if asked.only is not None else range(asked.first, asked.first + asked.inputs)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        root = Path(place)
        os.environ["XDG_CACHE_HOME"], os.environ["HF_HOME"] = str(root / "cache"), str(root / "hf")
        stock = build_stock(root / "stock")
        gc.collect()
        gc.freeze()  # forked processes share it
        faults, ends = [], Counter[str]()
        begun = spoke = time.monotonic()
        for number in numbers:
            if time.monotonic() > spoke + SECONDS_BETWEEN_LINES:
                spoke = time.monotonic()
                print(f"{ends.total()} of {len(numbers)}, {len(faults)} faults", file=sys.stderr, flush=True)
            fault, end = _try(stock, root / "input", number, asked)
            ends[end] += 1
            if fault:
                faults.append(fault)
                print(f"seed {asked.seed}, input {number} ({fault.kind}): {fault.reason}\n  {fault.words}", flush=True)
    each = (time.monotonic() - begun) / max(len(numbers), 1)
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    print(f"{len(numbers)} inputs of seed {asked.seed} in {each:.2f} s each: {told}; {len(faults)} faults")
    return 1 if faults else 0


def _try(stock: Stock, place: Path, number: int, asked: argparse.Namespace) -> tuple[Fault | None, str]:
    """Make an input and let a process read it; the fault, if any, and how it ended."""
    place.mkdir()
    try:
        chance = random.Random(f"{asked.seed}:{number}")
        made = make_input(chance.choice(asked.kinds), stock, place, chance)
        said = place.parent / "said"
        code = _run(made, place, said, asked.limit)
        text = said.read_text(errors="replace")
        if asked.only is not None:
            print(made.words, text, f"exit code {code}", sep="\n")
        reason = _reason(code, text, asked.limit)
        if reason is None:
            return None, f"with exit code {code}"
        if asked.keep:
            _keep(place, said, asked.keep / f"{asked.seed}-{number}")
        return Fault(number, made.kind, made.words, reason), "faults"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _reason(code: int | None, text: str, limit: float) -> str | None:
    """Why an end is a fault; None where it is none."""
    if code is None:
        return f"no end within {limit:g} s"
    if "Traceback (most recent call last)" in text:
        return "traceback: " + text.strip().splitlines()[-1][:200]
    return None if code in ALLOWED else f"exit code {code}"


def _run(made: Input, place: Path, said: Path, limit: float) -> int | None:
    """The exit code of a forked process that reads it (minus the signal that ended it); None where it did not end in time."""
    child = os.fork()
    if child == 0:
        _read(made.read, place, said)
    deadline = time.monotonic() + limit
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)


def _read(read: Callable[[], int], place: Path, said: Path) -> None:
    """In the forked process: never returns."""
    code = 70
    try:
        os.setsid()  # what it starts can be ended with it
        os.chdir(place)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w", errors="backslashreplace") for stream in (1, 2))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        end_with(read)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - it is what is looked for
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _keep(place: Path, said: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(said, folder / "said.txt")
    shutil.copytree(place, folder / "input", dirs_exist_ok=True, symlinks=True, ignore=_not_regular)


def _not_regular(folder: str, names: list[str]) -> list[str]:
    """Pipes and devices, which a copy would wait for."""
    paths = [Path(folder, name) for name in names]
    return [path.name for path in paths if not (path.is_symlink() or path.is_file() or path.is_dir())]


if __name__ == "__main__":
    sys.exit(main())
