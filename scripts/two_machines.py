#!/usr/bin/env python
"""Train over a network of two machines, which this makes of two network namespaces and a virtual cable between them.

Each machine has a launcher of its own with accelerate_configs/multi_node.yaml, one process on the CPU, gloo through
the cable; both read one folder of images and share the run directory. Linux only; needs `ip`, `unshare` and
`nsenter`, and root or the right to make user namespaces. All traffic stays inside the namespaces, which go with this
program, however it ends. The parts:

  same     a whole run; it must end bit for bit as a run of two processes on one machine does
  restart  one process is killed under launchers with --max_restarts, on each machine in turn: the run must go on by
           itself, and end the same
  cut      the cable is cut in the middle of a run (no packet, no reset): both machines must end by themselves within
           60 s, with a message and an exit code other than 0
  kill     all processes of one machine are killed, then in a new run those of the other: what is left must end within
           30 s, with a message and an exit code other than 0
  dies-in-mid-step
           the process of one machine is killed while the other one is in a step and waits for its gradients, then the
           other way round: as kill
  never-starts
           the program of one machine cannot start, then that of the other: whoever waits must say for whom, and end with
           a message in the time it is given (here 20 s instead of ten minutes)
  no-shared-directory
           each machine has a run directory of its own: both must end before the first step, with a message

  python scripts/two_machines.py             # all parts
  python scripts/two_machines.py same cut

Exit code 0: all as it must be; 1: something is not; 77: skipped, this system cannot make the namespaces (the last line
says why).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

SKIPPED = 77
CABLE, PORT = "cable", 29500
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PATIENCE = 180
"""Seconds that a whole run may take."""
AFTER_CUT, AFTER_KILL = 60, 30
"""Seconds in which a machine must notice that it is alone, and end."""
AFTER_START = 120
"""Seconds in which a machine must have ended where the other does not come, or has another disk."""
IMPATIENT = ("-m", "tests.impatient")
"""The program with seconds for minutes."""
GONE = r"not been heard of"
ABSENT = r"did not come within|lost each other before they had met"
APART = r"do not share the run directory"
CUT_AT = 6
"""Step at which a run is disturbed."""
SHORT, LONG = ("--train.epochs", "3"), ("--train.epochs", "200")
"""12 steps; and minutes, so that it cannot end before it is disturbed."""


def enter_namespaces() -> None:
    """Start this program again, as root of namespaces of its own; ends it where that is not possible.

    The processes' namespace lets all that was started end with this program; the user's gives a normal user the right
    to lay the cable.
    """
    if missing := [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]:
        skip(f"there is no {' and no '.join(missing)} here (Debian: apt install iproute2 util-linux)")
    own = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    refusals = []
    for command in ([*own, "--user", "--map-root-user"], own):
        # A veth pair is what the kernel might not have.
        lay = ["ip", "link", "add", "name", "one", "type", "veth", "peer", "name", "other"]
        attempt = subprocess.run([*command, *lay], capture_output=True, text=True, check=False)
        if attempt.returncode == 0:
            os.execvp(command[0], [*command, sys.executable, __file__, "--inside", *sys.argv[1:]])
        refusals.append(attempt.stderr.strip())
    skip(f"this system lets user {os.getuid()} make no network namespaces: {'; '.join(refusals)}")


def skip(why: str) -> None:
    print(f"skipped: {why}")
    sys.exit(SKIPPED)


if __name__ == "__main__" and "--inside" not in sys.argv and not {"-h", "--help"} & set(sys.argv):
    enter_namespaces()  # before anything heavy is imported

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",  # the configuration is for GPUs
    "GLOO_SOCKET_IFNAME": CABLE,
}
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.conftest import make_folder  # noqa: E402
from tests.faults import Forked, Launched, differences, fault_recipe  # noqa: E402
from tests.runs import LAUNCH, PROGRAM  # noqa: E402


class Machine:
    """A network namespace.

    Args:
        rank: of the machine.
        enter: the words that start a command there.
        process: one that is there.
    """

    def __init__(self, rank: int, enter: list[str], process: int | str) -> None:
        self.rank = rank
        self.enter = enter
        self.namespace = namespace_of(process)

    def ip(self, words: str) -> None:
        """Run `ip WORDS` there."""
        subprocess.run([*self.enter, "ip", *words.split()], check=True)


def namespace_of(process: int | str) -> str:
    """The network namespace of a process; empty where it has ended."""
    try:
        return os.readlink(f"/proc/{process}/ns/net")
    except OSError:
        return ""


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """The namespace in which this program runs and another one, joined by a cable."""
    with subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) as holder:
        try:
            one = Machine(0, [], "self")
            while namespace_of(holder.pid) == one.namespace:
                time.sleep(0.01)
            other = Machine(1, ["nsenter", "--net", "--target", str(holder.pid)], holder.pid)
            one.ip(f"link add name {CABLE} type veth peer name {CABLE} netns {holder.pid}")
            for machine, address in zip((one, other), ADDRESSES, strict=True):
                machine.ip("link set dev lo up")
                machine.ip(f"address add {address}/24 dev {CABLE}")
                machine.ip(f"link set dev {CABLE} up")
            yield one, other
        finally:
            holder.kill()


class OnMachine(Launched):
    """One machine's part of a run: its launcher and its process.

    Args:
        machine: where.
        run_dir: of the run.
        words: what the program gets.
        max_restarts: how often the launcher may start its process again.
        program: what is launched.
    """

    def __init__(
        self,
        machine: Machine,
        run_dir: Path,
        *words: str | Path,
        max_restarts: int = 0,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.machine = machine
        launcher = [
            *machine.enter, *LAUNCH, "--config_file", str(PROJECT / "accelerate_configs/multi_node.yaml"),
            "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(machine.rank),
            "--main_process_ip", ADDRESSES[0], "--main_process_port", str(PORT), "--mixed_precision", "no",
            "--max_restarts", str(max_restarts),
        ]  # fmt: skip
        log = run_dir.with_name(f"{run_dir.name}-machine-{machine.rank}.log")
        super().__init__(launcher, run_dir, *words, resume="never", log=log, program=program)

    def pids(self) -> dict[int, int | None]:
        return {pid: rank for pid, rank in super().pids().items() if namespace_of(pid) == self.machine.namespace}


def codes_of(run: Launched | Forked) -> list[int]:
    """Exit codes, after the end."""
    return [run.wait(PATIENCE)] if isinstance(run, Launched) else run.codes(PATIENCE)


class Trial:
    """The parts, on two machines.

    Args:
        machines: joined by the cable, which is whole again after each part.
        root: folder for images, runs and logs, which both see.
    """

    def __init__(self, machines: tuple[Machine, Machine], root: Path) -> None:
        self._machines = machines
        self._root = root
        self._words = [fault_recipe(root / "recipe.yaml"), "--data.path", make_folder(root / "photos", per_class=12)]
        self.wrong: list[str] = []
        """What was not as it must be."""

    def same(self) -> None:
        """A whole run, beside one of two processes on one machine."""
        run_dir, alone = self._root / "two-machines", self._root / "one-machine"
        with self._start(run_dir, *SHORT) as runs, Forked(2, alone, *self._words, *SHORT) as reference:
            self._must_finish("same", [*runs, reference], run_dir, alone)

    def restart(self) -> None:
        """A process is killed: the other one fails with it, and both launchers start theirs again."""
        alone = self._root / "one-machine-undisturbed"
        with Forked(2, alone, *self._words, *SHORT) as reference:
            self._must_finish("undisturbed", [reference], alone, alone)
        for killed in (1, 0):
            run_dir = self._root / f"restart-{killed}"
            with self._start(run_dir, *SHORT, max_restarts=1) as runs:
                runs[0].wait_for_step(CUT_AT)
                runs[killed].signal(signal.SIGKILL, rank=killed)
                self._must_finish(f"restart after process {killed} was killed", runs, run_dir, alone)

    def cut(self) -> None:
        """The cable is cut: the first machine sees a cable without the other end, the other one loses its interface."""
        cable_end = self._machines[1]
        with self._run_until_disturbed("cut") as runs:
            cable_end.ip(f"link set dev {CABLE} down")
            self._must_end("cut", runs, AFTER_CUT)
        cable_end.ip(f"link set dev {CABLE} up")

    def kill(self) -> None:
        """A machine's processes are killed, which closes their connections."""
        for killed, left in ((1, 0), (0, 1)):
            name = f"kill machine {killed}"
            with self._run_until_disturbed(f"kill-{killed}") as runs:
                runs[killed].signal(signal.SIGKILL)
                self._must_end(name, [runs[left]], AFTER_KILL)

    def dies_in_mid_step(self) -> None:
        """A machine's process is killed while it is asleep, and the other one waits in a step for what it would send."""
        for killed, left in ((1, 0), (0, 1)):
            with self._run_until_disturbed(f"mid-step-{killed}") as runs:
                runs[killed].signal(signal.SIGSTOP, rank=killed)
                time.sleep(2)  # so the other has come to where it waits
                runs[killed].signal(signal.SIGKILL, rank=killed)
                self._must_end(f"machine {killed} dies in mid-step", [runs[left]], AFTER_KILL)

    def never_starts(self) -> None:
        """A machine's launcher is there, and its program is not: a library is missing, a disk is not mounted."""
        for absent in (1, 0):
            run_dir = self._root / f"never-starts-{absent}"
            with ExitStack() as stack:
                runs = [
                    stack.enter_context(
                        OnMachine(
                            machine, run_dir, *self._words, *SHORT,
                            program=("-m", "a_module_that_is_not_there") if machine.rank == absent else IMPATIENT,
                        )
                    )
                    for machine in self._machines
                ]  # fmt: skip
                self._must_end(f"machine {absent} never starts", [runs[1 - absent]], AFTER_START, ABSENT)

    def no_shared_directory(self) -> None:
        """Each machine writes to a disk of its own."""
        disks = [self._root / f"disk-of-{machine.rank}" for machine in self._machines]
        for disk in disks:
            disk.mkdir()
        with ExitStack() as stack:
            runs = [
                stack.enter_context(OnMachine(machine, disk / "run", *self._words, *SHORT, program=IMPATIENT))
                for machine, disk in zip(self._machines, disks, strict=True)
            ]
            self._must_end("no shared directory", runs, AFTER_START, APART, speaks=(0,))
        if any(list(disk.glob("run/checkpoints/*")) for disk in disks):
            self.wrong.append("no shared directory: there was a step")

    @contextmanager
    def _start(self, run_dir: Path, *words: str, max_restarts: int = 0) -> Iterator[list[OnMachine]]:
        """A run on both machines; what is left of it in the end is killed."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(OnMachine(machine, run_dir, *self._words, *words, max_restarts=max_restarts))
                for machine in self._machines
            ]

    @contextmanager
    def _run_until_disturbed(self, name: str) -> Iterator[list[OnMachine]]:
        """A run that would take minutes, at the step at which it is disturbed."""
        with self._start(self._root / name, *LONG) as runs:
            runs[0].wait_for_step(CUT_AT)
            assert not any(run.has_ended() for run in runs), "".join(run.output() for run in runs)
            yield runs

    def _must_finish(self, what: str, runs: Sequence[Launched | Forked], run_dir: Path, alone: Path) -> None:
        """Wait for the end of a run, and compare it with one on one machine."""
        began = time.monotonic()
        codes = [code for run in runs for code in codes_of(run)]
        if any(codes):
            self.wrong += [f"{what}: exit codes {codes}", *(run.output() for run in runs)]
            return
        found = differences(run_dir, alone)
        self.wrong += [f"{what}: {name} differs" for name in found]
        if run_dir != alone:
            print(f"{what}: {', '.join(found) or 'bit-identical'} after {time.monotonic() - began:.0f} s", flush=True)

    def _must_end(
        self, what: str, runs: list[OnMachine], seconds: float, message: str = GONE, speaks: Sequence[int] = (0, 1)
    ) -> None:
        """Wait for the machines' ends and judge them.

        Args:
            what: was done to them.
            runs: that must end.
            seconds: in which.
            message: what a line that they say must hold; an expression.
            speaks: machines that must say it.
        """
        began = time.monotonic()
        said_before = {run: len(run.output()) for run in runs}
        ended: dict[OnMachine, float] = {}
        while len(ended) < len(runs) and time.monotonic() < began + seconds:
            for run in runs:
                if run not in ended and run.has_ended() and not run.pids():
                    ended[run] = time.monotonic() - began
            time.sleep(0.1)
        for run in runs:
            name = f"{what}: machine {run.machine.rank}"
            said = run.output()[said_before[run] :]
            if run not in ended:
                print(f"{name} is still running after {seconds} s: {sorted(run.pids().values(), key=str)}", flush=True)
                self.wrong.append(f"{name} did not end within {seconds} s; it said since:\n{said}")
                continue
            found, code = re.search(rf"^accel-flowers: .*\b(?:{message})\b.*$", said, re.MULTILINE), run.wait(0)
            print(f"{name} ended after {ended[run]:.1f} s, code {code}: {found[0].strip() if found else 'no message'}")
            if code == 0 or (not found and run.machine.rank in speaks):
                self.wrong.append(f"{name} ended with code {code}; it said since:\n{said}")


def main() -> int:
    parts: dict[str, Callable[[Trial], None]] = {
        "same": Trial.same, "restart": Trial.restart, "cut": Trial.cut, "kill": Trial.kill,
        "dies-in-mid-step": Trial.dies_in_mid_step, "never-starts": Trial.never_starts,
        "no-shared-directory": Trial.no_shared_directory,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; default: all")
    parser.add_argument("--keep", type=Path, help="new folder for runs and logs, kept; default: temporary")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - parts.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    with ExitStack() as stack:
        if asked.keep:
            asked.keep.mkdir(parents=True)
        root = asked.keep.resolve() if asked.keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trial = Trial(stack.enter_context(two_machines()), root)
        for name in asked.parts or parts:
            parts[name](trial)
    print("\n".join(trial.wrong) if trial.wrong else "all as it must be")
    return 1 if trial.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
