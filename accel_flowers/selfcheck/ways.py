"""Parts about a single run: pixels, and each way of training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from accel_flowers.samples.draw import draw_sample
from accel_flowers.selfcheck.bench import Bench
from accel_flowers.selfcheck.compare import differences, far_apart, lines
from accel_flowers.selfcheck.finding import Finding, PartFailed
from accel_flowers.selfcheck.part import ADVICE_BUG, ADVICE_REPEATS, Part, judged
from accel_flowers.selfcheck.processes import Started, python
from accel_flowers.selfcheck.promises import CHANCE, ORDER, PIXELS, REPEATS
from accel_flowers.selfcheck.shared_runs import base_run

# --- Pixels, order, chance


ADVICE_PIXELS = "Train with --data.pixels-from files, whose pixels are made on the CPU, and update torch, torchvision and the driver."


def look_at_pixels(bench: Bench) -> Iterator[Finding]:
    large = draw_sample(bench.scratch / "large", images_per_class=2, image_size=256)
    limit = bench.limit()
    with Started(
        python("accel_flowers.selfcheck.pixels", large, bench.machine.device), bench.scratch / "pixels.log"
    ) as look:
        code = bench.wait(look, limit)
        if code != 0:
            raise PartFailed(f"it ended with exit code {code}:\n{look.last_lines()}")
        found = json.loads(look.said()[look.said().index('{"pixels"') :])
    yield judged(PIXELS, found["pixels"], ADVICE_PIXELS, found["looked_at"])
    yield judged(ORDER, found["order"], ADVICE_BUG)
    yield judged(CHANCE, found["chance"], ADVICE_BUG)


# --- Ways of training


FLOAT32 = "training in float32"
FROM_CACHE = "training from the cache of decoded pictures"


def float32(bench: Bench) -> Iterator[Finding]:
    base = base_run(bench)
    # Nothing was asked for that the log would deny: as many processes, on that device.
    wanted = f"{bench.machine.processes} x {bench.machine.device}, precision no"
    problems = [] if wanted in base.said else [f"the log does not say '{wanted}'"]
    yield judged(FLOAT32, problems, ADVICE_START, f"{lines(base.run_dir)[-1]['step']} steps")
    again = bench.train("again", bench.recipe("plain"))
    yield judged(REPEATS, differences(base.run_dir, again.run_dir), ADVICE_REPEATS)
    cached = bench.train("cached", bench.recipe("plain"), "--data.pixels-from", "cache")
    yield judged(
        FROM_CACHE, far_apart(base.run_dir, cached.run_dir, 0.0), "Take --data.pixels-from files until it holds."
    )


ADVICE_START = (
    "Read the log that is named. With several GPUs: NCCL_DEBUG=INFO tells what NCCL tries; NCCL_P2P_DISABLE=1, or\n"
    "NCCL_SOCKET_IFNAME=lo on one machine, is a way round; accel-flowers launch-config lists other configurations."
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


def way_part(name: str, what: str, flags: str, why_not: Callable[[Bench], str | None] = lambda _: None) -> Part:
    compiles = "compile" in flags
    return Part(name, (what,), _ADVICE_WAY, 3 if compiles else 1, _way(name, what, *flags.split(), compiles=compiles), why_not)  # fmt: skip
