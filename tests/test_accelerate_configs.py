"""The launch configurations: Accelerate's own reader takes them, and the commands in their remarks can be typed."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

import accel_flowers
from accel_flowers.cli.launch_config import launch_configs
from accel_flowers.cli.main import main
from accel_flowers.config.loading import config_from_flags
from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import asks_for_gpu
from accel_flowers.distributed.launch import check_launch

DIRECTORY = Path(__file__).parent.parent / "accelerate_configs"
EXPECTED = {
    # name: (machines, processes, precision, distributed type)
    "cpu": (1, 1, "bf16", "NO"),
    "cpu_2_processes": (1, 2, "no", "MULTI_GPU"),
    "single_gpu": (1, 1, "bf16", "NO"),
    "multi_gpu": (1, 8, "bf16", "MULTI_GPU"),
    "multi_node": (2, 16, "bf16", "MULTI_GPU"),
}
FILES = sorted(DIRECTORY.glob("*.yaml"))


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    """Each of the configurations."""
    path: Path = request.param
    return path


def commands_in(file: Path) -> list[str]:
    """The commands in the remarks at the head of a file."""
    remarks = [line.removeprefix("#") for line in file.read_text().splitlines() if line.startswith("#")]
    return [line.strip() for line in remarks if line.startswith("   ") and "accelerate launch" in line]


def parse(command: str) -> argparse.Namespace:
    """A command as the launcher reads it; ends the test where the launcher does not know a flag."""
    words = shlex.split(command)
    return launch_command_parser().parse_args(words[words.index("launch") + 1 :])


def test_the_files_are_the_expected_ones() -> None:
    assert {file.stem for file in FILES} == EXPECTED.keys()
    assert sorted(DIRECTORY.iterdir()) == FILES, "nothing else lies there"


def test_accelerate_reads_it(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    machines, processes, precision, distributed_type = EXPECTED[file.stem]
    assert config.num_machines == machines
    assert config.num_processes == processes
    assert config.mixed_precision == precision
    assert config.distributed_type == distributed_type
    assert config.use_cpu is file.stem.startswith("cpu")


def test_its_command_can_be_typed(file: Path) -> None:
    commands = commands_in(file)
    assert commands, "a remark says how to use it"
    for command in commands:
        args = parse(command)
        assert args.config_file == f"accelerate_configs/{file.name}"
        assert (args.module, args.training_script) == (True, "accel_flowers")
        train, recipe, *flags = args.training_script_args
        assert (train, recipe) == ("train", "RECIPE")
        assert config_from_flags(Config(), flags, program="train").data.path == "DIR"


def given_to_its_processes(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What Accelerate's launcher hands to the processes that a configuration asks for."""
    for name in ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    parsed = launch_command_parser().parse_args(["--config_file", str(file), "-m", "accel_flowers", "train"])
    args, _, _ = _validate_launch_command(parsed)
    if args.multi_gpu:
        return prepare_multi_gpu_env(args)
    _, environment = prepare_simple_launcher_cmd_env(args)
    assert isinstance(environment, dict)
    return environment


@pytest.mark.holds("A launch that asks for a GPU does not train on the CPU")
def test_its_processes_know_whether_it_asks_for_a_gpu(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the very variables that Accelerate's launchers set; that of several processes does not pass `use_cpu` on."""
    environment = given_to_its_processes(file, monkeypatch)
    assert asks_for_gpu(environment) is not file.stem.startswith("cpu")
    assert not asks_for_gpu({**environment, "ACCELERATE_USE_CPU": "true"})


# The command that finds them


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code and output of `accel-flowers launch-config WORDS`."""
    with pytest.raises(SystemExit) as caught:
        main(["launch-config", *words])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_launch_config_prints_the_path(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (file.stem, file.name):
        assert said(capsys, name) == (0, f"{file.resolve()}\n", "")


def test_without_a_name_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys)
    assert code == 0
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert list(lines) == [file.stem for file in FILES]
    for file in FILES:
        assert file.read_text().startswith(f"# {lines[file.stem].strip()}\n")


def test_a_name_that_is_none_is_told_with_all_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "multi_gpus")
    assert (code, out) == (2, "")
    assert "There is no launch configuration 'multi_gpus'. Did you mean 'multi_gpu'?" in err
    assert all(name in err for name in EXPECTED)


def test_an_installation_without_them_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel_flowers, "__file__", str(tmp_path / "accel_flowers/__init__.py"))
    with pytest.raises(UserError, match="install accel-flowers again"):
        launch_configs()


# Several processes asked for, one started


def environment_of(monkeypatch: pytest.MonkeyPatch, *flags: str) -> dict[str, str]:
    """What Accelerate's launcher for one process hands to that process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    args = launch_command_parser().parse_args(
        [*flags, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--num_cpu_threads_per_process", "1", "-m", "accel_flowers", "train", "quickstart"]
    )  # fmt: skip
    command, environment = prepare_simple_launcher_cmd_env(args)
    assert command[1:] == ["-m", "accel_flowers", "train", "quickstart"]
    assert isinstance(environment, dict)
    return environment


def test_one_process_for_two_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of(monkeypatch, "--cpu", "--num_processes", "2")
    with pytest.raises(UserError) as caught:
        check_launch(environment)
    message = str(caught.value)
    assert "asked for several processes but started only this one" in message
    advised = re.search(r'--config_file "\$\(accel-flowers launch-config (\w+)\)"', message)
    assert advised
    assert DIRECTORY / f"{advised[1]}.yaml" in FILES


def test_one_process_for_one_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    check_launch(environment_of(monkeypatch, "--cpu", "--num_processes", "1"))


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"])
def test_a_process_with_a_rank_is_one_of_several(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    size = rank.removeprefix("LOCAL_").replace("WORLD_RANK", "WORLD_SIZE").replace("PMI_RANK", "PMI_SIZE")
    size = "WORLD_SIZE" if size == "RANK" else size
    check_launch({**environment_of(monkeypatch, "--cpu", "--num_processes", "2"), rank: "0", size: "2"})


def test_without_a_launcher_there_is_nothing_to_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    check_launch({})
    check_launch({"MASTER_PORT": "29500"})
    environment = environment_of(monkeypatch, "--cpu", "--num_processes", "2")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError):
        check_launch()


@pytest.mark.holds("What would shard the model is refused")
@pytest.mark.parametrize(
    "asked", [["--use_fsdp"], ["--use_deepspeed"], ["--use_megatron_lm"], ["--use_parallelism_config"]], ids=str
)
def test_what_shards_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    """FSDP, DeepSpeed and the like, by the very variables that Accelerate's launcher makes of its flags."""
    what = asked[0].removeprefix("--use_").upper()
    environment = {**environment_of(monkeypatch, "--cpu", "--num_processes", "1"), f"ACCELERATE_USE_{what}": "true"}
    with pytest.raises(UserError, match="is not supported") as caught:
        check_launch(environment)
    assert "unset it.)" in str(caught.value)
    assert "launch-config multi_gpu" in str(caught.value)
    check_launch({**environment, f"ACCELERATE_USE_{what}": "false"})
