#!/usr/bin/env python
"""Disturb training runs at random moments, resume them, and compare how they end with a run that nobody disturbed.

Draws a few images, trains a tiny network with batch norm, dropout and a moving average on the CPU once without
disturbance, then again and again with them: while it starts, between steps, while a checkpoint is written. Each run is
resumed with --resume auto until it is done; then weights, averages, optimizer, state, model and the lines of
metrics.jsonl (without speed/*) must be bit-identical. Resumed on another number of processes (--resume-on; then with a
network without batch norm), the lines must be the same and the losses agree to 1e-5.
Exit code 0: no difference; 1: a difference, a run that hangs, or one that fails by itself.

  python scripts/fault_drill.py                                  # 50 x SIGKILL to both of two processes
  python scripts/fault_drill.py --disturb term --kills 20        # SIGTERM: each must save and end with 75
  python scripts/fault_drill.py --disturb one --kills 20         # SIGKILL to one: the other must end within 30 s
  python scripts/fault_drill.py --disturb disk --kills 20        # files cannot grow: each must end with the cause
  python scripts/fault_drill.py --disturb damage --kills 20      # SIGKILL, and the newest checkpoint is damaged
  python scripts/fault_drill.py --resume-on 1 --kills 10         # begun on two processes, resumed on one
  python scripts/fault_drill.py --processes 1 --resume-on 4 --kills 10
  python scripts/fault_drill.py --launcher --kills 6             # with accelerate launch: seconds more for each start
  python scripts/fault_drill.py --disturb any --kills 60         # as a user starts and loses it: see below

"any" starts each run by accelerate launch and draws a disturbance (SIGKILL to all, to the launcher alone or to one
process; SIGTERM to all; SIGSTOP to one process) and a moment: also while the configuration, the split, the saved model
or the report is written. After each no process may be left over.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.conftest import make_folder  # noqa: E402
from tests.faults import (  # noqa: E402
    Forked,
    Launched,
    differences,
    far_apart,
    fault_recipe,
    recipe_without_batch_norm,
)
from tests.runs import TWO_PROCESSES  # noqa: E402

EPOCHS, TRAIN_PICTURES = 8, 30
PATIENCE = 180
"""Seconds that a run may take, from its start to its end."""
SOON = 30
"""Seconds within which a disturbed run must have ended."""
SOON_AFTER_STOP = 100
"""The others wait half a minute for a process that sleeps, and torch's launcher as long until it kills it."""
DISTURBANCES = ("kill", "launcher", "one", "term", "stop")
WEIGHTS = (2, 2, 3, 2, 1)
FILES_OF = {"config": "config.yaml*", "split": "*split.json*", "model": "*model*", "report": "*predictions.parquet*"}
"""Moment → what appears in the run directory when it has come, whole or half written."""


class Drill:
    """All runs of one call."""

    def __init__(self, asked: argparse.Namespace, root: Path) -> None:
        self._asked = asked
        self._root = root
        self._chance = random.Random(asked.seed)
        photos = make_folder(root / "photos", per_class=12)
        counts = [asked.processes, *asked.resume_on]
        self._elsewhere = set(counts) != {asked.processes}
        # Two micro-batches on each process; the same global batch for all numbers of processes.
        batch = 4 * asked.processes if not self._elsewhere else 8
        self._num_steps = -(-EPOCHS * TRAIN_PICTURES // batch)
        flags = ["--data.path", photos, "--train.epochs", EPOCHS, "--train.global-batch-size", batch]
        flags += ["--tracking.report"] if asked.disturb == "any" else []
        recipe = recipe_without_batch_norm if self._elsewhere else fault_recipe
        self._words = [recipe(root / "recipe.yaml"), *map(str, flags)]
        self._rows: Counter[str] = Counter()
        self._bad: list[str] = []

    def start(self, run_dir: Path, processes: int) -> Launched | Forked:
        if self._asked.launcher:
            return Launched([*TWO_PROCESSES, "--num_processes", str(processes)], run_dir, *self._words)
        return Forked(processes, run_dir, *self._words)

    def run(self) -> bool:
        """Returns whether all went well."""
        asked, began = self._asked, time.monotonic()
        undisturbed = self._root / "undisturbed"
        with self.start(undisturbed, asked.processes) as run:
            if self._wait(run, PATIENCE) != 0:
                print(run.output())
                return False
        once = time.monotonic() - began
        print(f"undisturbed: {self._num_steps} steps on {asked.processes} processes in {once:.1f} s", flush=True)
        print(f"{'':>4} {'run':>3} {'on':>2} {'moment':<8} {'from':>4} {'at':>4}  left behind", flush=True)

        kills = finished = 0
        processes = asked.processes
        while not self._bad:
            run_dir = self._root / f"run-{finished}"
            last = kills >= asked.kills or time.monotonic() - began > 60 * asked.minutes
            how = self._how()
            with self.start(run_dir, processes) as run:
                moment = None if last else self._disturb(run, how, starts_in=once / 2)
                try:
                    code = self._wait(run, (SOON_AFTER_STOP if how == "stop" else SOON) if moment else PATIENCE)
                except TimeoutError as error:
                    self._bad.append(f"{kills + 1}: {how} at {moment}: {error}")
                    break
                said = run.output()
                left = "a checkpoint half written" if run.is_writing() else ""
                at = run.steps_seen()
            if code == 0:
                self._compare(undisturbed, run_dir)
                finished += 1
                processes = asked.processes
                if last:
                    break
                continue
            if moment is None:
                self._bad.append(f"run {finished} failed by itself\n{said}")
                break
            kills += 1
            left += self._judge(how, moment, said, code, run_dir, kills)
            since = said.split("going on after step ")[1].split()[0] if "going on after" in said else 0
            print(f"{kills:4} {finished:3} {processes:2} {moment:<8} {since:>4} {at:4}  {how:<8} {left}", flush=True)
            self._rows[moment] += 1
            if asked.disturb == "any":
                self._rows[how] += 1
            self._rows["half a checkpoint"] += left.startswith("a checkpoint")
            if asked.resume_on and run.steps_seen():
                processes = asked.resume_on[kills % len(asked.resume_on)]
        took = time.monotonic() - began
        print(f"{kills} x {asked.disturb} in {took:.0f} s: {dict(self._rows)}; {finished} runs compared")
        print("\n".join(self._bad) if self._bad else "no difference")
        return not self._bad and kills > 0

    def _how(self) -> str:
        """The disturbance of the next run."""
        disturb: str = self._asked.disturb
        return disturb if disturb != "any" else self._chance.choices(DISTURBANCES, WEIGHTS)[0]

    def _judge(self, how: str, moment: str, said: str, code: int, run_dir: Path, kills: int) -> str:
        """Whether a disturbed run ended as it should; returns what to say of it."""
        if self._asked.disturb == "any":
            if code == 0:
                self._bad.append(f"{kills}: {how} at {moment} ended with 0 before all was done\n{said}")
            return ""
        if how == "term" and moment != "start":
            saved = said.split("stopped by a signal after step ")[1:]
            if not saved or (code != 75 and not self._asked.launcher):
                self._bad.append(f"{kills}: exit code {code}, no checkpoint after SIGTERM\n{said}")
                return ""
            return f"step {saved[0].split(',')[0]} saved"
        if self._asked.disturb == "disk":
            if not re.search("cannot be written: .*File too large", said) or "Traceback" in said:
                self._bad.append(f"{kills}: not told that the disk is full\n{said}")
            return said.partition("accel-flowers: ")[2].partition(" cannot be written")[0]
        if self._asked.disturb == "damage":
            return self._damage_newest(run_dir)
        return ""

    def _damage_newest(self, run_dir: Path) -> str:
        """Of the two newest checkpoints that are kept, the newer one."""
        chance = self._chance
        whole = sorted((run_dir / "checkpoints").glob("step-*"))
        if len(whole) < 2:
            return ""
        file = chance.choice(sorted(whole[-1].iterdir()))
        content = bytearray(file.read_bytes())
        match chance.choice(["flip", "cut", "remove"]):
            case "flip":
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
                file.write_bytes(content)
            case "cut":
                file.write_bytes(content[: chance.randrange(len(content))])
            case _:
                file.unlink()
        return f"{file.parent.name}/{file.name} damaged"

    def _wait(self, run: Launched | Forked, seconds: float) -> int:
        return run.wait(seconds) if isinstance(run, Launched) else max(run.codes(seconds), key=abs)

    def _compare(self, undisturbed: Path, run_dir: Path) -> None:
        found = far_apart(undisturbed, run_dir) if self._elsewhere else differences(undisturbed, run_dir)
        good = "losses agree" if self._elsewhere else "bit-identical"
        print(f"         {run_dir.name} done: {', '.join(found) or good}", flush=True)
        self._bad += [f"{run_dir.name}: {name}" for name in found]
        if not found and not self._asked.keep:
            shutil.rmtree(run_dir)

    def _moment(self, disturb: str) -> str:
        if self._asked.disturb == "any":
            return self._chance.choices(("start", *FILES_OF, "steps", "writing"), (1, 1, 1, 1, 1, 4, 3))[0]
        return "steps" if disturb == "disk" else self._chance.choices(("start", "steps", "writing"), (1, 5, 4))[0]

    def _disturb(self, run: Launched | Forked, disturb: str, *, starts_in: float) -> str | None:
        """Wait for a random moment and disturb; returns the moment's kind, None if the run was faster."""
        chance, moment = self._chance, self._moment(disturb)
        if moment in FILES_OF and any(run.run_dir.glob(FILES_OF[moment])):
            moment = "steps"  # it was written before this start
        if moment == "start" and disturb == "stop":
            moment = "steps"  # until they have met the others wait for minutes, and say so
        if moment == "start":
            time.sleep(chance.uniform(0, starts_in))
        elif moment in FILES_OF:
            run.wait_for_file(FILES_OF[moment], PATIENCE)
            time.sleep(chance.uniform(0, 0.03))
        else:
            ahead = chance.randint(1, max(2, self._num_steps // 3))
            run.wait_for_step(run.steps_seen() + ahead, PATIENCE, writing=moment == "writing")
            time.sleep(chance.uniform(0, 0.3 if moment == "steps" else 0.03))
        if run.has_ended():
            return None
        if disturb == "disk":
            assert isinstance(run, Forked), "--disturb disk needs no launcher"
            # What the processes say goes into a file, too, so there is no smaller limit.
            run.limit_file_size(chance.choice([20_000, 100_000, 1_000_000, 2_000_000]))
            return moment
        ranks: Sequence[int] = range(self._asked.processes if isinstance(run, Launched) else len(run.pids))
        number = {"term": signal.SIGTERM, "stop": signal.SIGSTOP}.get(disturb, signal.SIGKILL)
        if disturb in ("one", "stop"):
            ranks = [chance.choice(ranks)]
        if isinstance(run, Launched) and disturb == "launcher":
            run.signal_launcher(number)
        elif isinstance(run, Launched):
            alone = ranks[0] if len(ranks) == 1 else None
            if alone is not None and not run.wait_for_rank(alone, PATIENCE):
                return None
            run.signal(number, rank=alone)
        else:
            for rank in ranks:
                run.signal(rank, number)
        return moment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="disturbances in all; default %(default)s")
    parser.add_argument("--disturb", choices=("kill", "term", "one", "disk", "damage", "any"), default="kill")
    parser.add_argument("--processes", type=int, default=2, help="of each run at its start; default %(default)s")
    parser.add_argument("--resume-on", type=int, nargs="+", default=[], help="numbers of processes after that")
    parser.add_argument(
        "--minutes", type=float, default=30, help="no new disturbance after so many; default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default %(default)s")
    parser.add_argument("--keep", type=Path, help="new folder for all runs, kept; default: temporary")
    parser.add_argument("--launcher", action="store_true", help="use accelerate launch")
    asked = parser.parse_args()
    asked.launcher |= asked.disturb == "any"
    if asked.keep:
        asked.keep.mkdir(parents=True)
        return 0 if Drill(asked, asked.keep.resolve()).run() else 1
    with tempfile.TemporaryDirectory() as root:
        return 0 if Drill(asked, Path(root)).run() else 1


if __name__ == "__main__":
    sys.exit(main())
