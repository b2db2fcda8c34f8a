"""Parts about numbers that must agree: on one process and several, beside the CPU, in training and by `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from accel_flowers.metrics.predictions import PREDICTIONS_FILE, load_predictions
from accel_flowers.selfcheck.bench import Bench, Where
from accel_flowers.selfcheck.compare import far_apart, lines
from accel_flowers.selfcheck.finding import Finding
from accel_flowers.selfcheck.part import ADVICE_BUG, ADVICE_REPEATS, BESIDE_CPU, ON_DEVICE, judged, tolerance
from accel_flowers.selfcheck.promises import BATCH_NORM, ONCE, SAME_LOSSES, SAME_SCORES
from accel_flowers.selfcheck.shared_runs import base_run, undisturbed_run

# --- One process and several


def one_and_all(bench: Bench) -> Iterator[Finding]:
    base, one = base_run(bench), bench.train("one", bench.recipe("plain"), where="one")
    far = far_apart(base.run_dir, one.run_dir, tolerance(bench))
    yield judged(SAME_LOSSES, far, ADVICE_LOSSES, f"1 and {bench.machine.processes} processes")


def beside_cpu(bench: Bench) -> Iterator[Finding]:
    base, cpu = base_run(bench), bench.train("cpu", bench.recipe("plain"), where="cpu")
    far = far_apart(base.run_dir, cpu.run_dir, BESIDE_CPU)
    yield judged(LOSSES_OF_CPU, far, ADVICE_REPEATS)


LOSSES_OF_CPU = "the losses of the CPU"
ADVICE_LOSSES = (
    "What the processes exchange is wrong: do not train on several here until it holds. With GPUs: NCCL_P2P_DISABLE=1\n"
    "(faulty links between GPUs or an IOMMU that is switched on), another NCCL or driver."
)


# --- Scores


def scores(bench: Bench) -> Iterator[Finding]:
    run = undisturbed_run(bench)
    yield judged(ONCE, _not_once(run.run_dir), ADVICE_BUG)
    test = _evaluated(bench, run.run_dir, "test", "all")
    problems = _other_scores(bench, run.run_dir, "test", test)
    if bench.machine.processes > 1:
        one = _evaluated(bench, run.run_dir, "test", "one")
        problems += [f"on one process: {problem}" for problem in _other_scores(bench, run.run_dir, "test", one)]
    yield judged(SAME_SCORES, problems, ADVICE_SCORES)
    if bench.machine.processes == 1:
        yield Finding(BATCH_NORM, "not tried", "one process: it needs two")
        return
    # The model was saved at the best epoch, whose line was scored with the statistics of all processes.
    val = _evaluated(bench, run.run_dir, "val", "all")
    yield judged(BATCH_NORM, _other_scores(bench, run.run_dir, "val_ema", val), ADVICE_SCORES)


ADVICE_SCORES = "Do not rely on scores from this machine until it holds; score models on one process."


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
        if abs(line[f"{group}/{kind}"] - scores[kind]) > (0.0 if exact else ON_DEVICE)
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
