"""Does a test notice? Breaks one promise after another, on purpose, in a copy of the project, and runs the tests that hold it.

    python scripts/mutate.py               # all of them, some minutes each
    python scripts/mutate.py --list
    python scripts/mutate.py --only exactly-once average-buffers

A mutation that no test notices survives: a promise that nothing holds. Exit code 0: none survives; 1: some do, and they are
listed; 2: a text to be replaced is not found exactly once, so the mutation must be written anew.
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
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
COPIED = ("accel_flowers", "tests", "examples", "scripts", "accelerate_configs", "docs", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Mutation:
    """A promise, broken."""

    name: str
    file: str
    """Below accel_flowers/."""
    old: str
    """Stands there exactly once."""
    new: str
    tests: tuple[str, ...]
    """What pytest is given, below tests/: the ones that should notice."""


MUTATIONS = (
    Mutation(
        "exactly-once",
        "inference/loop.py",
        "    check_every_image_once(samples[kept], num_images)\n",
        "",
        ("test_evaluate_exact.py",),
    ),
    Mutation(
        "average-buffers",
        "distributed/ddp.py",
        "    if accelerator.num_processes == 1:\n        return\n    moving = [",
        "    return\n    moving = [",
        ("test_batch_norm.py",),
    ),
    Mutation(
        "own-buffers",
        "distributed/ddp.py",
        "        model.broadcast_buffers = False",
        "        pass",
        ("test_batch_norm.py",),
    ),
    Mutation(
        "buckets",
        "distributed/ddp.py",
        "    for _ in range(2):  # the layout changes at the beginning of the second pass",
        "    for _ in range(0):",
        ("test_batch_norm.py",),
    ),
    Mutation(
        "heartbeat-apart",
        "distributed/health.py",
        "            apart = [heard - together for heard, together in zip(self._heard_at, self._together_at, strict=True)]",
        "            apart = [0.0] * self._size",
        ("test_peers.py",),
    ),
    Mutation(
        "fingerprint",
        "training/build.py",
        '        "digest of their names and classes": random_key(*table.files, *map(int, table.labels)),\n',
        "",
        ("test_peers.py",),
    ),
    Mutation(
        "stream-starts-anew",
        "training/loop.py",
        "    run.stream.start_step = state.step\n",
        "    run.stream.start_step = 0\n",
        ("test_faults.py", "test_interrupted.py"),
    ),
    Mutation(
        "dropout-without-seed",
        "training/loop.py",
        '        _seed_dropout(config.train.seed, batch["micro_batch"], accelerator.device)\n',
        "",
        ("test_interrupted.py", "test_faults.py"),
    ),
    Mutation(
        "augmentation-without-epoch",
        "data/dataset.py",
        'random_key(self._seed, "augment", key.epoch, key.sample)',
        'random_key(self._seed, "augment", key.sample)',
        ("test_batches.py",),
    ),
    Mutation(
        "manifest-not-checked",
        "training/checkpoint.py",
        '        return f"{wrong[0]} is not what was written" if wrong else None',
        "        return None",
        ("test_checkpoint.py",),
    ),
    Mutation(
        "best-upside-down",
        "training/checkpoint.py",
        "(value < best if lower_is_better else value > best)",
        "(value > best if lower_is_better else value < best)",
        ("test_checkpoint.py",),
    ),
    Mutation(
        "average-stands-still",
        "training/loop.py",
        "            run.ema.update(state.step - state.skipped_steps)",
        "            pass",
        ("test_ema.py",),
    ),
    Mutation(
        "temperature-lost",
        "training/epoch.py",
        '"temperature": temperature}',
        '"temperature": None}',
        ("test_train.py", "test_report.py", "test_predict.py"),
    ),
    Mutation(
        "nan-unseen",
        "training/loop.py",
        "        if log or due or stop:\n            _check_numbers(run, meter, lr)\n",
        "",
        ("test_numbers.py",),
    ),
    Mutation(
        "signal-not-agreed",
        "distributed/preemption.py",
        "        stop, late = self._agreement.any(self._signalled, late)",
        "        stop = self._signalled",
        ("test_faults.py", "test_interrupted.py"),
    ),
    Mutation(
        "gradient-not-clipped",
        "training/step.py",
        "            if self.engine.sync_gradients and self.max_grad_norm is not None:",
        "            if False:",
        ("test_tasks.py", "test_optim.py", "test_train.py"),
    ),
    Mutation(
        "mixing-left-out",
        "training/step.py",
        "        if self.mix:\n",
        "        if False:\n",
        ("test_own_parts.py",),
    ),
    Mutation(
        "scaled-accumulation",
        "training/build.py",
        "    accelerator.gradient_accumulation_steps = plan.accumulation\n",
        "",
        ("test_train.py", "test_processes.py"),
    ),
    Mutation(
        "weights-of-the-last-epoch",
        "training/epoch.py",
        "    session.checkpoints.load_weights(network, state.best_step, AVERAGED if run.ema else WEIGHTS)\n",
        "",
        ("test_train.py", "test_ema.py"),
    ),
    Mutation(
        "duplicates-torn-apart",
        "data/split.py",
        "    return [numbers.setdefault(digest, len(numbers)) for digest in digests]",
        "    return list(range(len(digests)))",
        ("test_split.py", "test_inspect.py"),
    ),
    Mutation(
        "import-without-asking",
        "core/registry.py",
        "    if is_own_name(name):\n        known =",
        '    if is_own_name(name):\n        importlib.import_module(name.partition("/")[0])\n        known =',
        ("test_own_parts.py",),
    ),
)


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


def noticed_by(mutation: Mutation, root: Path) -> str | None:
    """The first test that fails; None where none does."""
    # Whatever is installed, the copy is what is tested.
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow"]
    done = subprocess.run(
        [*command, *(f"tests/{test}" for test in mutation.tests)],
        cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{mutation.name}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
    return found[1].removeprefix("tests/")


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the mutations and run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[each.name for each in MUTATIONS])
    asked = parser.parse_args()
    chosen = [each for each in MUTATIONS if asked.only is None or each.name in asked.only]
    if asked.list:
        print("\n".join(f"{each.name:<28}{each.file:<28}{' '.join(each.tests)}" for each in chosen))
        return 0
    survivors: list[str] = []
    for mutation in chosen:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "project"
            for name in COPIED:
                source = PROJECT / name
                ignored = shutil.ignore_patterns("__pycache__")
                if source.is_dir():
                    shutil.copytree(source, root / name, ignore=ignored)
                else:
                    shutil.copy(source, root / name)
            try:
                mutate(mutation, root)
            except LookupError as error:
                print(error, file=sys.stderr)
                return 2
            test = noticed_by(mutation, root)
        said = f"noticed by {test}" if test else "SURVIVES"
        print(f"{mutation.name:<28}{said}  ({time.monotonic() - begun:.0f} s)", flush=True)
        if test is None:
            survivors.append(mutation.name)
    print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} noticed"
        + (f"; survive: {', '.join(survivors)}" if survivors else "")
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
