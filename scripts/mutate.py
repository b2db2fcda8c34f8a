"""Does a test notice? Breaks one promise after another, on purpose, in a copy of the project, and runs the tests that hold it.

    python scripts/mutate.py               # all of them: half an hour on two cores
    python scripts/mutate.py --list
    python scripts/mutate.py --only exactly-once average-buffers
    python scripts/mutate.py --processes 2

First the tests must pass on the code as it is. A mutation that no test notices survives: a promise that nothing holds. Exit
code 0: none survives; 1: some do, and they are listed; 2: a text to be replaced is not found exactly once, so the mutation
must be written anew, or a test fails on the code as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from scripts.mutations import MUTATIONS, Mutation  # noqa: E402

COPIED = ("accel_flowers", "tests", "examples", "scripts", "accelerate_configs", "docs", "pyproject.toml", "README.md")
PATIENCE_SECONDS = 1800
"""For the tests of one mutation; whatever hangs has been noticed long before by pytest's own limit."""


def mutate(mutation: Mutation, root: Path) -> None:
    """Break it in a copy.

    Raises:
        LookupError: the text is not there exactly once.
    """
    file = root / "accel_flowers" / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise LookupError(f"{mutation.name}: {mutation.file} holds {text.count(mutation.old)} times: {mutation.old!r}")
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the project that may be broken."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        for name in COPIED:
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root / name)
        yield root


def first_failure(root: Path, tests: tuple[str, ...]) -> str | None:
    """The first of these tests that fails in a copy; None where none does.

    Raises:
        RuntimeError: pytest itself fails, for example because there is no such test.
    """
    # Whatever is installed, the copy is what is tested.
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow"]
    done = subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", done.stdout, flags=re.MULTILINE)
    if done.returncode != 1 or found is None:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
    return found[1]


def noticed_by(mutation: Mutation) -> str | None:
    """The test that notices it, in a copy of its own; None where none does."""
    begun = time.monotonic()
    with copied() as root:
        mutate(mutation, root)
        test = first_failure(root, mutation.tests)
    said = f"noticed by {test}" if test else "SURVIVES"
    print(f"{mutation.name:<36}{said}  ({time.monotonic() - begun:.0f} s)", flush=True)
    return test


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the mutations and run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[each.name for each in MUTATIONS])
    parser.add_argument("--processes", type=int, default=1, help="how many are tried at a time")
    asked = parser.parse_args()
    chosen = [each for each in MUTATIONS if asked.only is None or each.name in asked.only]
    if asked.list:
        print("\n".join(f"{each.name:<36}{each.file:<28}{' '.join(each.tests)}" for each in chosen))
        return 0
    with copied() as root:
        try:
            for mutation in chosen:
                mutate(mutation, root)  # into one copy, only to see that each can be made
        except LookupError as error:
            print(error, file=sys.stderr)
            return 2
    print("first the tests on the code as it is ...", flush=True)
    with copied() as root:
        failed = first_failure(root, tuple(dict.fromkeys(test for each in chosen for test in each.tests)))
    if failed:
        print(f"{failed} fails on the code as it is: nothing can be said", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(max(1, asked.processes)) as pool:
        tests = list(pool.map(noticed_by, chosen))
    survivors = [mutation.name for mutation, test in zip(chosen, tests, strict=True) if test is None]
    print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} noticed"
        + (f"; survive: {', '.join(survivors)}" if survivors else "")
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
