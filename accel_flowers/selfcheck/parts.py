"""The parts of the self-check, those first in which a broken machine shows first."""

from __future__ import annotations

from accel_flowers.selfcheck.agreement import (
    ADVICE_LOSSES,
    ADVICE_SCORES,
    LOSSES_OF_CPU,
    beside_cpu,
    one_and_all,
    scores,
)
from accel_flowers.selfcheck.faults import (
    ADVICE_LOST,
    ADVICE_MEMORY,
    ADVICE_RESUME,
    kill_part,
    launcher_part,
    memory_part,
    signal_part,
)
from accel_flowers.selfcheck.part import ADVICE_REPEATS, Part, no_bf16, no_cuda, no_others
from accel_flowers.selfcheck.promises import (
    BATCH_NORM,
    CHANCE,
    ELSEWHERE,
    KILLED,
    MEMORY,
    ONCE,
    ONE_DIES,
    ORDER,
    OUTLIVE,
    PIXELS,
    REPEATS,
    SAME_LOSSES,
    SAME_SCORES,
    SIGNAL,
)
from accel_flowers.selfcheck.ways import (
    ADVICE_PIXELS,
    ADVICE_START,
    FLOAT32,
    FROM_CACHE,
    float32,
    look_at_pixels,
    way_part,
)

PARTS = (
    Part("pixels", (PIXELS, ORDER, CHANCE), ADVICE_PIXELS, 1, look_at_pixels),
    Part("float32", (FLOAT32, REPEATS, FROM_CACHE), ADVICE_START, 3, float32),
    way_part("bf16", "training in bf16", "--train.precision bf16", no_bf16),
    way_part("fp16", "training in fp16", "--train.precision fp16", no_cuda),
    way_part("device", "training from pictures in the GPU's memory", "--data.pixels-from device", no_cuda),
    way_part("ema", "training with a moving average and clipped gradients", "--ema.decay 0.9 --optim.max-grad-norm 1"),
    way_part("frozen", "training of the last layer alone", "--model.freeze backbone"),
    Part("losses", (SAME_LOSSES,), ADVICE_LOSSES, 2, one_and_all, no_others),
    Part("cpu", (LOSSES_OF_CPU,), ADVICE_REPEATS, 2, beside_cpu, no_cuda),
    Part("scores", (ONCE, SAME_SCORES, BATCH_NORM), ADVICE_SCORES, 4, scores),
    Part("signal", (SIGNAL,), ADVICE_RESUME, 3, signal_part),
    Part("kill", (ONE_DIES, KILLED), ADVICE_LOST, 4, kill_part),
    Part("launcher", (OUTLIVE, ELSEWHERE), ADVICE_LOST, 4, launcher_part),
    Part("memory", (MEMORY,), ADVICE_MEMORY, 2, memory_part, no_cuda),
    way_part("compile", "training with --train.compile", "--train.compile"),
)
"""All, in their order."""
