"""Variables of a launcher that is not there: a process alone answers, and a training says what to unset."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_flowers.cli import main
from accel_flowers.core.errors import UserError
from accel_flowers.distributed.environment import RANKS, SIZES, launched_place
from accel_flowers.distributed.launch import check_launch
from tests.conftest import CLASSES, make_folder
from tests.made_runs import make_run
from tests.runs import write_recipe

MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
POD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "trainer-0", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, *SIZES, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    return int(end.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({}, (0, 1)),
        ({"RANK": "1"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, (0, 1)),
        ({"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, (0, 1)),
        (POD, (1, 2)),
        ({**MPI, "MASTER_ADDR": "a"}, (1, 2)),
    ],
)
def test_who_has_others(given: dict[str, str], place: tuple[int, int]) -> None:
    assert launched_place(given) == place


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"RANK": "1"}, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        (POD, None),
        ({"WORLD_SIZE": "2"}, "there is no RANK.*unset WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "there is no MASTER_ADDR.*unset RANK WORLD_SIZE"),
        ({"LOCAL_RANK": "0"}, "unset LOCAL_RANK"),
        (MPI, "there is no MASTER_ADDR.*unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE"),
        ({"PMI_SIZE": "4"}, "PMI_SIZE is 4.*unset PMI_SIZE"),
        ({**POD, "RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "two"}, "'two', which is no number"),
        ({"WORLD_SIZE": ""}, "'', which is no number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
    ],
    ids=str,
)
def test_half_a_launch_is_told(given: dict[str, str], told: str | None) -> None:
    if told is None:
        check_launch(given)
    else:
        with pytest.raises(UserError, match=f"(?s)not there: .*{told}"):
            check_launch(given)


@pytest.mark.holds("Only a process that has others is silent")
@pytest.mark.parametrize("given", [{"RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}, MPI, POD], ids=str)
def test_commands_for_one_process_answer(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_folder(tmp_path / "photos", per_class=3)
    run_dir = make_run(tmp_path / "run", tmp_path / "own", CLASSES)
    (photos / "rose/broken.png").write_bytes(b"no picture")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code, out, _ = run(capsys, "predict", run_dir / "model", photos / "tulip")
    assert (code, out.count("\n")) == (0, 3)
    code, out, _ = run(capsys, "inspect", photos)
    assert code == 1
    assert "broken.png" in out
    assert run(capsys, "report", tmp_path / "nothing")[2], "a mistake is told"
    assert run(capsys, "compare", tmp_path / "nothing", tmp_path / "here")[2]


@pytest.mark.holds("Only a process that has others is silent")
@pytest.mark.parametrize(
    "given", [{"RANK": "1", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "2"}, {"LOCAL_RANK": "1"}, MPI], ids=str
)
def test_a_training_says_what_to_unset(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_folder(tmp_path / "photos", per_class=3)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    recipe = write_recipe(tmp_path / "recipe.yaml")
    code, _, err = run(capsys, "train", recipe, "--data.path", photos, "--run-dir", tmp_path / "run")
    assert code == 2
    assert f"unset {next(iter(given))}" in err
    assert not (tmp_path / "run").exists()
