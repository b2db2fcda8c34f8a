#!/usr/bin/env python
"""Kill training runs at random moments, resume them, and compare how they end with a run that nobody disturbed.

Draws a few pictures, trains a tiny network with batch norm and dropout on the CPU once without disturbance, then again
and again with kills: while it starts, between steps, while a checkpoint is written. Each run is resumed with
--resume auto until it is done; then weights, optimizer, state, model and the lines of metrics.jsonl (without speed/*)
must be bit-identical (on three processes and more they are not: DDP sums the first step's gradients in another order).
Exit code 0: no difference; 1: a difference, a run that hangs, or one that fails by itself.

  python scripts/fault_drill.py --kills 20
  python scripts/fault_drill.py --kills 20 --signal TERM
  python scripts/fault_drill.py --kills 200 --fork            # ranks without the launcher: seconds less for each start
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.conftest import make_folder  # noqa: E402
from tests.faults import Launched, differences, fault_recipe  # noqa: E402
from tests.runs import TWO_PROCESSES  # noqa: E402

EPOCHS, TRAIN_PICTURES = 8, 30
PATIENCE = 180
"""Seconds that a run may take, from its start to its end."""


class Forked(Launched):
    """The same ranks, forked from this process, which has imported everything, instead of started by the launcher."""

    def __init__(self, processes: int, run_dir: Path, *words: str | Path) -> None:
        from accel_flowers import cli, train  # noqa: F401 - what takes the time

        self.run_dir = run_dir
        self._log = (run_dir.parent / f"{run_dir.name}.log").open("w+")
        self._codes: dict[int, int] = {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes}
        self._ranks: dict[int, int | None] = {}
        for rank in range(processes):
            pid = os.fork()
            if pid == 0:
                for stream in (1, 2):
                    os.dup2(self._log.fileno(), stream)
                own = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes, "ACCELERATE_USE_CPU": "true"}
                os.environ.update({name: str(value) for name, value in {**shared, **own}.items()})
                code = 1
                try:
                    cli.main(["train", *map(str, words), "--run-dir", str(run_dir), "--resume", "auto"])
                except SystemExit as end:
                    code = int(end.code or 0)
                except BaseException:  # noqa: BLE001 - the fork must end here, whatever it was
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            self._ranks[pid] = rank

    def pids(self) -> dict[int, int | None]:
        for pid in self._ranks.keys() - self._codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._codes[pid] = os.waitstatus_to_exitcode(status)
        return {pid: rank for pid, rank in self._ranks.items() if pid not in self._codes}

    def has_ended(self) -> bool:
        return not self.pids()

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while not self.has_ended():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout} s these are left: {self.pids()}\n{self.output()}")
            time.sleep(0.01)
        return max(self._codes.values(), key=abs)


class Drill:
    """All runs of one call."""

    def __init__(self, asked: argparse.Namespace, root: Path) -> None:
        self._asked = asked
        self._root = root
        self._chance = random.Random(asked.seed)
        photos = make_folder(root / "photos", per_class=12)
        batch = 4 * asked.processes  # two micro-batches on each
        self._num_steps = -(-EPOCHS * TRAIN_PICTURES // batch)
        flags = ["--data.path", photos, "--train.epochs", EPOCHS, "--train.global-batch-size", batch]
        self._words = [fault_recipe(root / "recipe.yaml"), *map(str, flags)]
        self._rows: Counter[str] = Counter()

    def start(self, run_dir: Path) -> Launched:
        if self._asked.fork:
            return Forked(self._asked.processes, run_dir, *self._words)
        launcher = [*TWO_PROCESSES, "--num_processes", str(self._asked.processes)]
        return Launched(launcher, run_dir, *self._words)

    def run(self) -> bool:
        """Returns whether all went well."""
        asked, began = self._asked, time.monotonic()
        undisturbed = self._root / "undisturbed"
        with self.start(undisturbed) as run:
            code = run.wait(PATIENCE)
            if code != 0:
                print(run.output())
                return False
        once = time.monotonic() - began
        print(f"undisturbed: {self._num_steps} steps on {asked.processes} processes in {once:.1f} s", flush=True)
        print(f"{'kill':>4} {'run':>3} {'moment':<8} {'from':>4} {'at':>4}  left behind", flush=True)

        kills = finished = 0
        bad: list[str] = []
        while kills < asked.kills and time.monotonic() - began < 60 * asked.minutes:
            run_dir = self._root / f"run-{finished}"
            with self.start(run_dir) as run:
                moment = self._disturb(run, starts_in=once / 2)
                code = run.wait(30 if moment else PATIENCE)
                said = run.output()
                half = "a checkpoint half written" if run.is_writing() else ""
                at = run.steps_seen()
            if moment and code != 0:
                kills += 1
                since = said.split("going on after step ")[1].split()[0] if "going on after" in said else 0
                saved = said.split("stopped by a signal after step ")[1:]
                if saved:
                    half = f"step {saved[0].split(',')[0]} saved"
                elif asked.signal == "TERM" and moment != "start":
                    bad.append(f"kill {kills}: no checkpoint after SIGTERM\n{said}")
                print(f"{kills:4} {finished:3} {moment:<8} {since:>4} {at:4}  {half}", flush=True)
                self._rows[moment] += 1
                self._rows["left half a checkpoint"] += half.startswith("a checkpoint")
                self._rows["saved at the signal"] += bool(saved)
                continue
            if code != 0:
                bad.append(f"run {finished} failed by itself\n{said}")
                break
            bad += self._compare(undisturbed, run_dir)
            finished += 1
        # The last one is brought to its end undisturbed.
        run_dir = self._root / f"run-{finished}"
        if run_dir.exists() and not bad:
            with self.start(run_dir) as run:
                if run.wait(PATIENCE) != 0:
                    bad.append(f"run {finished} failed by itself\n{run.output()}")
                else:
                    bad += self._compare(undisturbed, run_dir)
                    finished += 1
        print(f"{kills} kills in {time.monotonic() - began:.0f} s: {dict(self._rows)}; {finished} runs compared")
        print("\n".join(bad) if bad else "no difference")
        return not bad

    def _compare(self, undisturbed: Path, run_dir: Path) -> list[str]:
        found = differences(undisturbed, run_dir)
        print(f"         run {run_dir.name} done: {'bit-identical' if not found else ', '.join(found)}", flush=True)
        if not found and not self._asked.keep:
            shutil.rmtree(run_dir)
        return [f"{run_dir.name}: {name}" for name in found]

    def _disturb(self, run: Launched, *, starts_in: float) -> str | None:
        """Wait for a random moment and send the signal; returns the moment's kind, None if the run was faster."""
        chance = self._chance
        moment = chance.choices(("start", "steps", "writing"), (1, 5, 4))[0]
        if moment == "start":
            time.sleep(chance.uniform(0, starts_in))
        else:
            ahead = chance.randint(1, max(2, self._num_steps // 3))
            run.wait_for_step(run.steps_seen() + ahead, PATIENCE, writing=moment == "writing")
            time.sleep(chance.uniform(0, 0.3 if moment == "steps" else 0.03))
        if run.has_ended():
            return None
        rank = chance.randrange(self._asked.processes) if self._asked.one_rank else None
        run.signal(signal.Signals[f"SIG{self._asked.signal}"], rank=rank)
        return moment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills in all; default %(default)s")
    parser.add_argument("--minutes", type=float, default=30, help="no new start after so many; default %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="of each run; default %(default)s")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL", help="default %(default)s")
    parser.add_argument("--one-rank", action="store_true", help="hit one rank only: all must end within 30 s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default %(default)s")
    parser.add_argument("--keep", type=Path, help="new folder for all runs, kept; default: temporary")
    parser.add_argument("--fork", action="store_true", help="fork the ranks from this process instead of launching")
    asked = parser.parse_args()
    if asked.keep:
        asked.keep.mkdir(parents=True)
        return 0 if Drill(asked, asked.keep.resolve()).run() else 1
    with tempfile.TemporaryDirectory() as root:
        return 0 if Drill(asked, Path(root)).run() else 1


if __name__ == "__main__":
    sys.exit(main())
