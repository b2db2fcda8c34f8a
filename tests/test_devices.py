"""Which device a process computes on, decided from facts: no GPU is needed to see what is refused, told or counted."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from accel_flowers.core.errors import UserError
from accel_flowers.data.sampler import random_key
from accel_flowers.distributed.devices import (
    Place,
    check_gpu_is_there,
    count_on_machine,
    device_trouble,
    differences,
    runs_on,
)
from accel_flowers.distributed.environment import asks_for_gpu, sign_of_gpu
from accel_flowers.distributed.launch_words import asked_of
from accel_flowers.training.step import seed_dropout
from tests.ranks import Ranks
from tests.runs import PROJECT, without_photos, write_recipe

LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "no"}
"""What Accelerate's launchers set in any case."""


# A GPU that is not there


@pytest.mark.holds("A launch that asks for a GPU does not train on the CPU")
@pytest.mark.parametrize(
    ("environment", "asks"),
    [
        ({}, False),
        ({"CUDA_VISIBLE_DEVICES": "0"}, False),  # there is no launch configuration that asks
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, False),  # somebody's own setting
        (LAUNCHED, True),
        ({**LAUNCHED, "ACCELERATE_USE_CPU": "False"}, True),
        ({**LAUNCHED, "ACCELERATE_USE_CPU": "True"}, False),
        ({**LAUNCHED, "ACCELERATE_USE_CPU": "1"}, False),
        ({**LAUNCHED, "CUDA_VISIBLE_DEVICES": "0,1"}, True),
        ({**LAUNCHED, "CUDA_VISIBLE_DEVICES": ""}, True),  # so says a job without a GPU
        ({**LAUNCHED, "CUDA_VISIBLE_DEVICES": "-1,-1"}, False),
    ],
)
def test_who_asks_for_a_gpu(environment: dict[str, str], asks: bool) -> None:
    assert asks_for_gpu(environment) is asks


@pytest.mark.parametrize(
    ("environment", "sign"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({"CUDA_VISIBLE_DEVICES": "7"}, "CUDA_VISIBLE_DEVICES is '7'"),
        ({"SLURM_JOB_GPUS": "0,1"}, "SLURM_JOB_GPUS is '0,1'"),
    ],
)
def test_signs_of_a_gpu(environment: dict[str, str], sign: str | None, tmp_path: Path) -> None:
    assert sign_of_gpu(environment, tmp_path) == sign
    (tmp_path / "nvidia3").touch()
    (tmp_path / "nvidiactl").touch()  # so a container may have without any GPU
    hidden = environment.get("CUDA_VISIBLE_DEVICES") == "-1"
    assert sign_of_gpu(environment, tmp_path) == (None if hidden else sign or f"there is {tmp_path / 'nvidia3'}")


without_gpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="a device would be taken")


@pytest.mark.holds("A launch that asks for a GPU does not train on the CPU")
@without_gpu
def test_a_launch_for_a_gpu_ends_where_there_is_none(tmp_path: Path) -> None:
    """Before anything is read, in one message; so it is where the launcher is told to take the CPU that the run goes on."""
    recipe = write_recipe(tmp_path / "recipe.yaml")
    words = ["train", recipe, "--data.path", without_photos(tmp_path), "--run-dir", tmp_path / "run"]
    with Ranks(tmp_path, words, variables=LAUNCHED) as ranks:
        assert ranks.codes(60) == [2], ranks.output()
        said = ranks.said(0)
    assert said.startswith("accel-flowers: The launch configuration asks for a GPU, and none can be used: ")
    assert "add --cpu" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
    check_gpu_is_there({**LAUNCHED, "ACCELERATE_USE_CPU": "True"})


@without_gpu
def test_without_a_launcher_the_cpu_is_taken_and_a_gpu_that_is_lost_told(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("accel_flowers")
    logger.addHandler(caplog.handler)
    try:
        check_gpu_is_there({"CUDA_VISIBLE_DEVICES": "-1"})
        assert not caplog.messages
        check_gpu_is_there({"CUDA_VISIBLE_DEVICES": "3"})
    finally:
        logger.removeHandler(caplog.handler)
    (line,) = caplog.messages
    assert line.startswith("no GPU is used, though CUDA_VISIBLE_DEVICES is '3': ")
    assert line.endswith("Training on the CPU.")
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU=true"):
        check_gpu_is_there({**LAUNCHED, "CUDA_VISIBLE_DEVICES": "3"})


# What was said to the launcher


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("accelerate launch -m accel_flowers train", "nothing"),
        ("accelerate launch --cpu -m accel_flowers train", "cpu"),
        ("accelerate launch --use-cpu -m accel_flowers", "cpu"),
        ("accelerate launch --num_processes 2 script.py --cpu", "nothing"),  # that is the script's
        ("accelerate launch --multi_gpu -m accel_flowers", "gpu"),
        ("accelerate launch --config_file cpu.yaml -m accel_flowers", "cpu"),
        ("accelerate launch --config_file=cpu.yaml -m accel_flowers", "cpu"),
        ("python -m accelerate.commands.launch --config_file gpu.yaml -m accel_flowers --cpu", "gpu"),
        ("/usr/bin/accelerate-launch --config_file mpi.yaml script.py", "cpu"),
        ("accelerate launch --config_file none.yaml script.py", None),
        ("accelerate launch --config_file odd.yaml script.py", None),
        ("accelerate launch --config_file", "nothing"),
        ("torchrun --nproc-per-node 2 script.py", None),
        ("bash", None),
        ("", None),
    ],
)
def test_what_a_launch_asks_for(words: str, asked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cpu.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\n")
    Path("gpu.yaml").write_text("distributed_type: 'NO'\n")
    Path("mpi.yaml").write_text("distributed_type: MULTI_CPU\n")
    Path("odd.yaml").write_text("- {")
    assert asked_of(words.split(), default="not there") == asked
    if asked == "nothing":
        assert asked_of(words.split(), default="cpu.yaml") == "cpu"


@pytest.mark.multiprocess
def test_a_configuration_for_the_cpu_is_one_on_several_processes_too(tmp_path: Path) -> None:
    """Without a variable, and without GPUs that are hidden."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "distributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\nmain_process_port: 0\nuse_cpu: true\nmixed_precision: 'no'\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom accel_flowers.distributed.launch import computes_on_cpu, start_processes\n"
        "processes = start_processes()\nassert computes_on_cpu()\n"
        "line = str(processes.num_processes) + ' ' + os.environ['ACCELERATE_USE_CPU'] + os.linesep\n"
        "os.write(1, line.encode())\n"  # in one piece: the other process writes, too
        "processes.destroy_process_group()\n"
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    done = subprocess.run(
        [*launcher, str(script)], capture_output=True, text=True, timeout=120, check=False, cwd=PROJECT,
        env={**{k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "true"] * 2


# GPUs that are dealt out wrongly, or differ


def on(*devices: str, machine: str = "a", name: str = "A100", driver: str = "570") -> list[Place]:
    return [Place(machine, device=device, name=name, driver=driver) for device in devices]


@pytest.mark.holds("No two processes share a GPU")
@pytest.mark.parametrize(
    ("places", "told"),
    [
        (on("0"), None),
        (on("0", "1"), None),
        ([Place("a"), Place("a")], None),  # CPUs are shared
        # Each task of a job sees its own as number 0, and the numbers of two machines are the same.
        (on("GPU-1", "GPU-2"), None),
        ([*on("0", machine="a"), *on("0", machine="b")], None),
        (on("0", "0"), "2 processes share a machine where they see 1 GPU (A100)"),
        (on("0", "1", "0", "1"), "4 processes share a machine where they see 2 GPUs (A100)"),
        (
            [*on("0", "1"), *on("0", "0", machine="b")],
            "2 processes share a machine where they see 1 GPU ",
        ),
    ],
)
def test_two_processes_on_one_gpu_are_refused(places: list[Place], told: str | None) -> None:
    message = device_trouble(places)
    assert (message is None) == (told is None)
    if message is not None and told is not None:
        assert message.startswith(told)
        (advised,) = re.findall(r"Start (\d+) on it", message)
        assert f"see {advised} GPU" in message


def test_a_gpu_that_this_torch_cannot_use_is_named() -> None:
    places = [*on("0"), Place("a", device="1", trouble="no kernels for Tesla V100 (7.0)")]
    assert device_trouble(places) == "The GPU of process 1 cannot be used: no kernels for Tesla V100 (7.0)."
    assert device_trouble(places[1:]) == "The GPU cannot be used: no kernels for Tesla V100 (7.0)."


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90", "sm_100"], True),
        ((12, 0), ["sm_100"], False),
        ((6, 1), [], True),
    ],
)
def test_what_a_gpu_can_run(capability: tuple[int, int], built_for: list[str], runs: bool) -> None:
    assert runs_on(capability, built_for) is runs


@pytest.mark.holds("GPUs or drivers that differ between processes are told")
def test_what_differs_is_told_with_the_processes_that_have_it() -> None:
    assert differences(on("0", "1")) == []
    assert differences([Place("a"), Place("b")]) == []
    (models,) = differences([*on("0", "1", "2"), *on("0", machine="b", name="T4")])
    assert "different GPUs: A100 on processes 0-2; T4 on process 3" in models
    (drivers,) = differences([*on("0"), *on("0", machine="b", driver="535"), *on("0", machine="c")])
    assert "different GPU drivers: 535 on process 1; 570 on processes 0, 2" in drivers


# Processes of one machine


@pytest.mark.holds("A machine's cores are divided by its own processes")
def test_processes_of_a_machine_are_counted() -> None:
    places = [Place("a"), Place("a"), Place("b")]
    assert [count_on_machine(places, rank) for rank in range(3)] == [2, 2, 1]


@pytest.mark.holds("A machine's cores are divided by its own processes")
@pytest.mark.multiprocess
def test_they_are_counted_where_nobody_says_how_many(tmp_path: Path) -> None:
    """As under srun, which sets none of torch's variables of a machine."""
    with Ranks(tmp_path, ["srun"], ["srun"], entry="tests.counted:main") as ranks:
        assert ranks.codes(60) == [0, 0], ranks.output()
        assert ranks.said(0).endswith("here: 2\n"), ranks.output()


# Chance on a device


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_dropout_is_seeded_on_whatever_device_there_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(getattr(torch, kind), "manual_seed", seeds.append)
    state = torch.get_rng_state()
    for device in (torch.device("cpu"), torch.device(kind)):
        seed_dropout(7, 3, device)
    torch.set_rng_state(state)
    assert seeds == [random_key(7, "dropout", 3)]
