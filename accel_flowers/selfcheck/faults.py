"""Parts in which a run is disturbed: signals, processes that are killed, short memory."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from accel_flowers.samples.draw import draw_sample
from accel_flowers.selfcheck.bench import Bench, newest_step
from accel_flowers.selfcheck.compare import differences, far_apart
from accel_flowers.selfcheck.finding import Finding, PartFailed
from accel_flowers.selfcheck.part import judged, tolerance
from accel_flowers.selfcheck.processes import Started, python
from accel_flowers.selfcheck.promises import ELSEWHERE, KILLED, MEMORY, ONE_DIES, OUTLIVE, SIGNAL
from accel_flowers.selfcheck.shared_runs import undisturbed_run, whole_recipe

_SOON_SECONDS = 60.0
"""In which a disturbed run must have ended: half a minute until all know, and as long for torch's launcher to end them."""
_FREE_GIB = 3.0
"""What is left of a GPU's memory for the part in which it is short."""
_IMAGES_THAT_DO_NOT_FIT = 64
"""Of 512 pixels on each process: a ResNet-18 needs some 0.2 GiB for each in float32."""
_STEP_IN_TIME = 3
"""After so many steps a run is disturbed."""


# --- Signals, and processes that are lost


def _disturbed(
    bench: Bench, name: str, recipe: Path, disturb: Callable[[Started], None], *words: str
) -> tuple[int, str]:
    """Start a run, disturb it after a few steps, and let it end.

    Returns:
        The launcher's exit code, and what was said.

    Raises:
        PartFailed: it does not end soon, or leaves processes behind.
    """
    run_dir = bench.scratch / name
    limit = bench.limit()
    with bench.start(f"{name}-disturbed", *bench.training(recipe, run_dir, *words)) as started:
        bench.until(started, lambda: newest_step(run_dir) >= _STEP_IN_TIME)
        disturb(started)
        code = bench.wait(started, min(limit, _SOON_SECONDS), left_behind=_SOON_SECONDS)
        if code == 0:
            raise PartFailed(f"it went on to its end in spite of it:\n{started.last_lines()}")
        return code, started.said()


def signal_part(bench: Bench) -> Iterator[Finding]:
    undisturbed, last = undisturbed_run(bench), bench.machine.processes - 1
    _, said = _disturbed(
        bench, "stopped", whole_recipe(bench), lambda started: started.signal_rank(last, signal.SIGTERM)
    )
    problems = []
    if "stopped by a signal after step " not in said:
        problems.append("it does not say that a checkpoint was saved")
    if not re.search(r"exit(?:code| status)\W+75\b", said):
        problems.append("it did not end with exit code 75")
    resumed = bench.train("stopped", whole_recipe(bench))
    problems += _not_resumed(resumed.said)
    problems += [f"after the resume it differs in {each}" for each in differences(undisturbed.run_dir, resumed.run_dir)]
    yield judged(SIGNAL, problems, ADVICE_RESUME, f"SIGTERM to process {last}, resumed bit for bit")


def kill_part(bench: Bench) -> Iterator[Finding]:
    undisturbed, last = undisturbed_run(bench), bench.machine.processes - 1
    _, said = _disturbed(
        bench, "killed", whole_recipe(bench), lambda started: started.signal_rank(last, signal.SIGKILL)
    )
    if bench.machine.processes == 1:
        yield Finding(ONE_DIES, "not tried", "one process: it needs two")
    else:
        named = re.search(rf"process {last} (?:has not been heard of|failed|is gone|stands)", said) is not None
        yield judged(
            ONE_DIES, [] if named else [f"nobody says that process {last} is lost"], ADVICE_LOST, "nothing left over"
        )
    resumed = bench.train("killed", whole_recipe(bench))
    problems = _not_resumed(resumed.said)
    problems += [f"after the resume it differs in {each}" for each in differences(undisturbed.run_dir, resumed.run_dir)]
    yield judged(KILLED, problems, ADVICE_RESUME, f"SIGKILL to process {last}, resumed bit for bit")


def launcher_part(bench: Bench) -> Iterator[Finding]:
    recipe = bench.recipe("elsewhere", train={"epochs": 4}, model={"dropout": 0.3}, checkpoint={"every_steps": 1})
    whole = bench.train("elsewhere-whole", recipe)
    _, said = _disturbed(bench, "elsewhere", recipe, lambda started: started.signal_launcher(signal.SIGKILL))
    told = "the launcher is gone: stopping" in said
    yield judged(OUTLIVE, [] if told else ["they do not say that the launcher is gone"], ADVICE_LOST)
    if bench.machine.processes == 1:
        yield Finding(ELSEWHERE, "not tried", "one process: it needs two")
        return
    resumed = bench.train("elsewhere", recipe, where="one")
    problems = _not_resumed(resumed.said) + far_apart(whole.run_dir, resumed.run_dir, tolerance(bench))
    yield judged(ELSEWHERE, problems, ADVICE_RESUME, f"begun on {bench.machine.processes}, ended on 1")


def _not_resumed(said: str) -> list[str]:
    return [] if "going on after step " in said else ["it began anew instead of going on"]


ADVICE_RESUME = (
    "Do not rely on --resume here until it holds: is the disk of the run directory a network disk that keeps old files?"
)
ADVICE_LOST = "Look for processes that are left over after a crash (nvidia-smi, ps), and end them before the next run."

# --- Memory


def memory_part(bench: Bench) -> Iterator[Finding]:
    processes, each = bench.machine.processes, _IMAGES_THAT_DO_NOT_FIT
    recipe = bench.recipe(
        "memory",
        data={
            "train_transforms": [{"RandomResizedCrop": {"size": 512}}],
            "eval_transforms": [{"Resize": {"size": [512, 512]}}],
        },
        model={"name": "resnet18"},
        train={"global_batch_size": each * processes, "micro_batch_size": None},
        debug={"deterministic": False},
    )
    enough = draw_sample(bench.scratch / "enough", images_per_class=each * processes // 3, image_size=32)
    hog = python("accel_flowers.selfcheck.memory_hog", str(processes), str(_FREE_GIB))
    with Started(hog, bench.scratch / "hog.log") as taken:
        bench.until(taken, lambda: "taken" in taken.said())
        words = bench.training(recipe, bench.scratch / "memory", "--debug.fast-dev-run", "--data.path", str(enough))
        said = bench.finish("memory", *words)
    smaller = re.search(rf"out of memory: (\d+) pictures in a forward pass instead of {each}", said)
    problems = [] if smaller else [f"{each} pictures of 512 pixels fit into what was left, or nothing was said"]
    if f"a step is {each * processes} pictures" not in said:
        problems.append("the global batch is another one")
    good = f"{smaller[1]} pictures instead of {each}" if smaller else ""
    yield judged(MEMORY, problems, ADVICE_MEMORY, good)


ADVICE_MEMORY = "Set --train.micro-batch-size yourself, to half of what fails."
