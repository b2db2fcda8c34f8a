"""The parts of the self-check, those first in which a broken machine shows first.

Each is a function of the bench that yields a finding for each promise it tried; a run that does not do what it should raises
`PartFailed`, which counts for all that the part had not come to.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from accel_flowers.metrics.predictions import PREDICTIONS_FILE, load_predictions
from accel_flowers.samples.draw import draw_sample
from accel_flowers.selfcheck.bench import Bench, Ended, Where, newest_step
from accel_flowers.selfcheck.compare import differences, far_apart, lines
from accel_flowers.selfcheck.finding import Finding, OutOfTime, PartFailed
from accel_flowers.selfcheck.processes import Started, python

ORDER = "Which samples form step k follows from (seed, epoch, position)"
CHANCE = "Crop, flip, colour, erasing of a sample"
PIXELS = "Pixels do not depend on where they come from"
REPEATS = "A run repeats"
SAME_LOSSES = "Losses of a whole run on 1, 2 and 4 processes"
SAME_SCORES = "Scores of one set of weights on 1 and 2 processes, in training and by `evaluate`"
BATCH_NORM = "Each process keeps the batch-norm statistics of what it saw, and their mean is what is scored and saved"
ONCE = "Every picture is scored once"
SIGNAL = "A signal to stop, to any process"
KILLED = "A run that was killed and resumed ends as if it had not been"
ONE_DIES = "One process dies: all end"
OUTLIVE = "Processes do not outlive their launcher"
ELSEWHERE = "The same on another number of processes"
MEMORY = "Short memory halves the micro-batch, and keeps the global batch"

_ON_CPU, _ON_DEVICE, _BESIDE_CPU = 1e-5, 1e-4, 1e-3
"""How far losses may be apart: sums on a GPU run in another order, and beside the CPU with other algorithms, too."""
_SOON_SECONDS = 60.0
"""In which a disturbed run must have ended: half a minute until all know, and as long for torch's launcher to end them."""
_FREE_GIB = 3.0
"""What is left of a GPU's memory for the part in which it is short."""
_IMAGES_THAT_DO_NOT_FIT = 64
"""Of 512 pixels on each process: a ResNet-18 needs some 0.2 GiB for each in float32."""
_STEP_IN_TIME = 3
"""After so many steps a run is disturbed."""


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
            yield from (Finding(what, "not tried", "time") for what in self.tries)
            return
        open_ones = list(self.tries)
        try:
            for found in self.work(bench):
                open_ones.remove(found.what)
                yield found
        except PartFailed as failed:
            yield from (Finding(what, "failed", str(failed), self.advice) for what in open_ones)
        except OutOfTime:
            yield from (Finding(what, "not tried", "time") for what in open_ones)


def judged(what: str, problems: list[str], advice: str, good: str = "") -> Finding:
    """Held where there are no problems."""
    if not problems:
        return Finding(what, "held", good)
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return Finding(what, "failed", "; ".join(problems[:3]) + more, advice)


# --- Pixels, order, chance


_ADVICE_PIXELS = "Train with --data.pixels-from files, whose pixels are made on the CPU, and update torch, torchvision and the driver."


def _pixels(bench: Bench) -> Iterator[Finding]:
    large = draw_sample(bench.scratch / "large", images_per_class=2, image_size=256)
    limit = bench.limit()
    with Started(
        python("accel_flowers.selfcheck.pixels", large, bench.machine.device), bench.scratch / "pixels.log"
    ) as look:
        code = bench.wait(look, limit)
        if code != 0:
            raise PartFailed(f"it ended with exit code {code}:\n{look.last_lines()}")
        found = json.loads(look.said()[look.said().index('{"pixels"') :])
    yield judged(PIXELS, found["pixels"], _ADVICE_PIXELS, found["looked_at"])
    yield judged(ORDER, found["order"], _ADVICE_BUG)
    yield judged(CHANCE, found["chance"], _ADVICE_BUG)


_ADVICE_BUG = "This does not depend on the machine: install accel-flowers again, and report it if it stays so."

# --- Ways of training


_FLOAT32 = "training in float32"
_FROM_CACHE = "training from the cache of decoded pictures"


def _base(bench: Bench) -> Ended:
    """The run that others are compared with: float32, deterministic, without batch norm."""
    return bench.train("base", bench.recipe("plain"))


def _float32(bench: Bench) -> Iterator[Finding]:
    base = _base(bench)
    # Nothing was asked for that the log would deny: as many processes, on that device.
    wanted = f"{bench.machine.processes} x {bench.machine.device}, precision no"
    problems = [] if wanted in base.said else [f"the log does not say '{wanted}'"]
    yield judged(_FLOAT32, problems, _ADVICE_START, f"{lines(base.run_dir)[-1]['step']} steps")
    again = bench.train("again", bench.recipe("plain"))
    yield judged(REPEATS, differences(base.run_dir, again.run_dir), _ADVICE_REPEATS)
    cached = bench.train("cached", bench.recipe("plain"), "--data.pixels-from", "cache")
    yield judged(
        _FROM_CACHE, far_apart(base.run_dir, cached.run_dir, 0.0), "Take --data.pixels-from files until it holds."
    )


_ADVICE_START = (
    "Read the log that is named. With several GPUs: NCCL_DEBUG=INFO tells what NCCL tries; NCCL_P2P_DISABLE=1, or\n"
    "NCCL_SOCKET_IFNAME=lo on one machine, is a way round; accel-flowers launch-config lists other configurations."
)
_ADVICE_REPEATS = (
    "What this machine computes varies: memory or a GPU may be faulty (nvidia-smi -q -d ECC, a memory test). Do not\n"
    "trust runs of it until it repeats."
)


def _way(name: str, what: str, *words: str, compiles: bool = False) -> Callable[[Bench], Iterator[Finding]]:
    """A short training with these flags."""

    def work(bench: Bench) -> Iterator[Finding]:
        recipe = bench.recipe("short", debug={"deterministic": False}, model={"name": "resnet18"})
        run = bench.train(name, recipe, "--debug.fast-dev-run", *words, compiles=compiles)
        steps = [line["step"] for line in lines(run.run_dir) if "train/loss" in line]
        problems = [] if steps == [1, 2] else [f"steps {steps} instead of 1 and 2"]
        yield judged(what, problems, _ADVICE_WAY)

    return work


_ADVICE_WAY = "Read the log that is named, and train without it until then: all other settings do without."


def _no_bf16(bench: Bench) -> str | None:
    return None if bench.machine.facts["bf16"] else f"this {bench.machine.device} computes no bf16"


def _no_cuda(bench: Bench) -> str | None:
    return None if bench.machine.device == "cuda" else "it is for GPUs, and this runs on none"


def _no_others(bench: Bench) -> str | None:
    return None if bench.machine.processes > 1 else "one process: it needs two"


# --- One process and several


def _one_and_all(bench: Bench) -> Iterator[Finding]:
    base, one = _base(bench), bench.train("one", bench.recipe("plain"), where="one")
    far = far_apart(base.run_dir, one.run_dir, _tolerance(bench))
    yield judged(SAME_LOSSES, far, _ADVICE_LOSSES, f"1 and {bench.machine.processes} processes")


def _beside_cpu(bench: Bench) -> Iterator[Finding]:
    base, cpu = _base(bench), bench.train("cpu", bench.recipe("plain"), where="cpu")
    far = far_apart(base.run_dir, cpu.run_dir, _BESIDE_CPU)
    yield judged(_LOSSES_OF_CPU, far, _ADVICE_REPEATS)


_LOSSES_OF_CPU = "the losses of the CPU"
_ADVICE_LOSSES = (
    "What the processes exchange is wrong: do not train on several here until it holds. With GPUs: NCCL_P2P_DISABLE=1\n"
    "(faulty links between GPUs or an IOMMU that is switched on), another NCCL or driver."
)


def _tolerance(bench: Bench) -> float:
    return _ON_CPU if bench.machine.device == "cpu" else _ON_DEVICE


# --- Scores


def _scores(bench: Bench) -> Iterator[Finding]:
    run = _undisturbed(bench)
    yield judged(ONCE, _not_once(run.run_dir), _ADVICE_BUG)
    test = _evaluated(bench, run.run_dir, "test", "all")
    problems = _other_scores(bench, run.run_dir, "test", test)
    if bench.machine.processes > 1:
        one = _evaluated(bench, run.run_dir, "test", "one")
        problems += [f"on one process: {problem}" for problem in _other_scores(bench, run.run_dir, "test", one)]
    yield judged(SAME_SCORES, problems, _ADVICE_SCORES)
    if bench.machine.processes == 1:
        yield Finding(BATCH_NORM, "not tried", "one process: it needs two")
        return
    # The model was saved at the best epoch, whose line was scored with the statistics of all processes.
    val = _evaluated(bench, run.run_dir, "val", "all")
    yield judged(BATCH_NORM, _other_scores(bench, run.run_dir, "val_ema", val), _ADVICE_SCORES)


_ADVICE_SCORES = "Do not rely on scores from this machine until it holds; score models on one process."


def _evaluated(bench: Bench, run_dir: Path, part: str, where: Where) -> dict[str, float]:
    words: list[str | Path] = [
        run_dir / "model",
        "--data",
        bench.photos,
        "--split",
        run_dir / "split.json",
        "--part",
        part,
        "--json",
    ]
    said = bench.finish(f"evaluate-{part}-{where}", "evaluate", *words, where=where)
    found: dict[str, float] = json.loads(said[said.index("{\n") : said.rindex("}") + 1])
    return found


def _other_scores(bench: Bench, run_dir: Path, group: str, scores: dict[str, float]) -> list[str]:
    """Where `evaluate` says another thing than the line of the best epoch, or of the end."""
    name = f"{group}/loss"
    told = [line for line in lines(run_dir) if name in line]
    best = json.loads((run_dir / "checkpoints/last/state.json").read_text())["best_step"]
    line = next(line for line in told if group == "test" or line["step"] == best)
    exact = bench.machine.device == "cpu"
    return [
        f"{kind} {line[f'{group}/{kind}']} in training, {scores[kind]} by evaluate"
        for kind in ("loss", "accuracy")
        if abs(line[f"{group}/{kind}"] - scores[kind]) > (0.0 if exact else _ON_DEVICE)
    ]


def _not_once(run_dir: Path) -> list[str]:
    """Pictures that are not scored once."""
    split: dict[str, str] = json.loads((run_dir / "split.json").read_text())["parts"]
    problems = []
    for part, predictions in load_predictions(run_dir / PREDICTIONS_FILE).parts.items():
        wanted = sorted(name for name, its_part in split.items() if its_part == part)
        if sorted(predictions.files) != wanted:
            problems.append(f"{part}: {len(predictions.files)} rows for {len(wanted)} pictures, or other ones")
    return problems


# --- Signals, and processes that are lost


def _disturbable(bench: Bench) -> Path:
    """Batch norm, dropout, a moving rate and average, many checkpoints: all that a resume must bring back."""
    return bench.recipe(
        "whole",
        model={"name": "shufflenet_v2_x0_5", "dropout": 0.3},
        optim={"name": "adamw", "lr": 1e-3},
        schedule={"name": "cosine"},
        train={"epochs": 4, "log_every_steps": 3},
        ema={"decay": 0.9},
        checkpoint={"every_steps": 1},
    )


def _undisturbed(bench: Bench) -> Ended:
    return bench.train("undisturbed", _disturbable(bench))


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


def _signal(bench: Bench) -> Iterator[Finding]:
    undisturbed, last = _undisturbed(bench), bench.machine.processes - 1
    _, said = _disturbed(
        bench, "stopped", _disturbable(bench), lambda started: started.signal_rank(last, signal.SIGTERM)
    )
    problems = []
    if "stopped by a signal after step " not in said:
        problems.append("it does not say that a checkpoint was saved")
    if not re.search(r"exit(?:code| status)\W+75\b", said):
        problems.append("it did not end with exit code 75")
    resumed = bench.train("stopped", _disturbable(bench))
    problems += _not_resumed(resumed.said)
    problems += [f"after the resume it differs in {each}" for each in differences(undisturbed.run_dir, resumed.run_dir)]
    yield judged(SIGNAL, problems, _ADVICE_RESUME, f"SIGTERM to process {last}, resumed bit for bit")


def _kill(bench: Bench) -> Iterator[Finding]:
    undisturbed, last = _undisturbed(bench), bench.machine.processes - 1
    _, said = _disturbed(
        bench, "killed", _disturbable(bench), lambda started: started.signal_rank(last, signal.SIGKILL)
    )
    if bench.machine.processes == 1:
        yield Finding(ONE_DIES, "not tried", "one process: it needs two")
    else:
        named = re.search(rf"process {last} (?:has not been heard of|failed|is gone|stands)", said) is not None
        yield judged(
            ONE_DIES, [] if named else [f"nobody says that process {last} is lost"], _ADVICE_LOST, "nothing left over"
        )
    resumed = bench.train("killed", _disturbable(bench))
    problems = _not_resumed(resumed.said)
    problems += [f"after the resume it differs in {each}" for each in differences(undisturbed.run_dir, resumed.run_dir)]
    yield judged(KILLED, problems, _ADVICE_RESUME, f"SIGKILL to process {last}, resumed bit for bit")


def _launcher(bench: Bench) -> Iterator[Finding]:
    recipe = bench.recipe("elsewhere", train={"epochs": 4}, model={"dropout": 0.3}, checkpoint={"every_steps": 1})
    whole = bench.train("elsewhere-whole", recipe)
    _, said = _disturbed(bench, "elsewhere", recipe, lambda started: started.signal_launcher(signal.SIGKILL))
    told = "the launcher is gone: stopping" in said
    yield judged(OUTLIVE, [] if told else ["they do not say that the launcher is gone"], _ADVICE_LOST)
    if bench.machine.processes == 1:
        yield Finding(ELSEWHERE, "not tried", "one process: it needs two")
        return
    resumed = bench.train("elsewhere", recipe, where="one")
    problems = _not_resumed(resumed.said) + far_apart(whole.run_dir, resumed.run_dir, _tolerance(bench))
    yield judged(ELSEWHERE, problems, _ADVICE_RESUME, f"begun on {bench.machine.processes}, ended on 1")


def _not_resumed(said: str) -> list[str]:
    return [] if "going on after step " in said else ["it began anew instead of going on"]


_ADVICE_RESUME = (
    "Do not rely on --resume here until it holds: is the disk of the run directory a network disk that keeps old files?"
)
_ADVICE_LOST = "Look for processes that are left over after a crash (nvidia-smi, ps), and end them before the next run."

# --- Memory


def _memory(bench: Bench) -> Iterator[Finding]:
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
    yield judged(MEMORY, problems, _ADVICE_MEMORY, good)


_ADVICE_MEMORY = "Set --train.micro-batch-size yourself, to half of what fails."


def _way_part(name: str, what: str, flags: str, why_not: Callable[[Bench], str | None] = lambda _: None) -> Part:
    compiles = "compile" in flags
    return Part(name, (what,), _ADVICE_WAY, 3 if compiles else 1, _way(name, what, *flags.split(), compiles=compiles), why_not)  # fmt: skip


PARTS = (
    Part("pixels", (PIXELS, ORDER, CHANCE), _ADVICE_PIXELS, 1, _pixels),
    Part("float32", (_FLOAT32, REPEATS, _FROM_CACHE), _ADVICE_START, 3, _float32),
    _way_part("bf16", "training in bf16", "--train.precision bf16", _no_bf16),
    _way_part("fp16", "training in fp16", "--train.precision fp16", _no_cuda),
    _way_part("device", "training from pictures in the GPU's memory", "--data.pixels-from device", _no_cuda),
    _way_part("ema", "training with a moving average and clipped gradients", "--ema.decay 0.9 --optim.max-grad-norm 1"),
    _way_part("frozen", "training of the last layer alone", "--model.freeze backbone"),
    Part("losses", (SAME_LOSSES,), _ADVICE_LOSSES, 2, _one_and_all, _no_others),
    Part("cpu", (_LOSSES_OF_CPU,), _ADVICE_REPEATS, 2, _beside_cpu, _no_cuda),
    Part("scores", (ONCE, SAME_SCORES, BATCH_NORM), _ADVICE_SCORES, 4, _scores),
    Part("signal", (SIGNAL,), _ADVICE_RESUME, 3, _signal),
    Part("kill", (ONE_DIES, KILLED), _ADVICE_LOST, 4, _kill),
    Part("launcher", (OUTLIVE, ELSEWHERE), _ADVICE_LOST, 4, _launcher),
    Part("memory", (MEMORY,), _ADVICE_MEMORY, 2, _memory, _no_cuda),
    _way_part("compile", "training with --train.compile", "--train.compile"),
)
"""All, in their order."""
