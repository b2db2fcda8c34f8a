"""`accel-flowers find-lr`: a proposal that follows from the losses, the run's own step, and the same answer anywhere."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.training.lr_finder import find_lr, propose, smooth
from tests.conftest import make_folder
from tests.ranks import Ranks, finish
from tests.runs import tiny_config, write_recipe

LRS = list(np.geomspace(1e-6, 1, 100))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12)


def course(best: float) -> list[float]:
    """Losses that fall up to a rate and rise behind it, as those of networks do."""
    return [1.6 / (1 + (lr / (best / 10))) + (lr / best) ** 2 for lr in LRS]


@pytest.mark.parametrize("best", [1e-4, 1e-3, 1e-2])
def test_the_proposal_follows_the_lowest_loss(best: float) -> None:
    lr, why = propose(LRS, course(best))
    assert lr is not None
    assert best / 100 < lr < best / 2, "below the rate of the lowest loss, and not by far"
    assert "a tenth of" in why


def test_it_moves_with_the_curve() -> None:
    low, high = propose(LRS, course(1e-4))[0], propose(LRS, course(1e-2))[0]
    assert low is not None
    assert high is not None
    assert high / low == pytest.approx(100, rel=0.35)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1.6] * 100, "does not fall"),
        ([1.6 + 0.01 * step for step in range(100)], "does not fall"),
        (list(np.linspace(1.6, 0.5, 100)), "higher --high"),
        ([9.0, 90.0], "lower --low"),
        ([], "lower --low"),
    ],
)
def test_losses_that_say_nothing_give_no_proposal(losses: list[float], words: str) -> None:
    lr, why = propose(LRS, losses)
    assert lr is None
    assert words in why


def test_the_mean_is_not_pulled_to_zero_at_the_beginning() -> None:
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([4.0, 0.0])[1] == pytest.approx(0.9 * 4 / 1.9)


@pytest.mark.parametrize("numbers", [{"low": 0.0}, {"low": 1.0, "high": 0.1}, {"steps": 3}, {"high": 1e9}])
def test_numbers_that_are_not_allowed(photos: Path, tmp_path: Path, numbers: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"allowed are 0 < low < high"):
        find_lr(tiny_config(photos, tmp_path / "run"), **numbers)


def answer(said: str) -> dict[str, Any]:
    found, _ = json.JSONDecoder().raw_decode(said[said.index("{\n") :])
    assert isinstance(found, dict)
    return found


def words_of(tmp_path: Path, photos: Path, *more: object, size: int | None = None) -> list[object]:
    recipe = write_recipe(
        tmp_path / "recipe.yaml", train={"global_batch_size": 8, "micro_batch_size": size, "head_epochs": 1}
    )
    return ["find-lr", recipe, "--data.path", photos, "--steps", "24", "--low", "1e-5", "--json", *more]


@pytest.mark.holds("A search for the learning rate finds the same again")
def test_from_the_command_line_to_the_page_and_again(photos: Path, tmp_path: Path) -> None:
    """What was killed in the middle and is called again finds what a call of its own finds; nothing is left but the page."""
    words = words_of(tmp_path, photos, "--high", "10")
    with Ranks(tmp_path, words) as ranks:
        while "24 steps at" not in ranks.said(0):
            assert ranks.code(0) is None, ranks.output()
            time.sleep(0.01)
        ranks.signal(0, signal.SIGKILL)
    before = {path for path in tmp_path.iterdir() if path.suffix not in (".log", ".html")}
    first = answer(finish(tmp_path, [*words, "--html", tmp_path / "lr.html"]))
    again = answer(finish(tmp_path, words))
    assert again == first
    assert {path for path in tmp_path.iterdir() if path.suffix not in (".log", ".html")} == before
    assert first["lrs"] == pytest.approx(np.geomspace(1e-5, 10, 24)[: len(first["losses"])])
    assert len(set(first["losses"])) == len(first["losses"]), "it trains"
    page = (tmp_path / "lr.html").read_text()
    assert "<svg" in page
    assert "squeezenet1_1" in page
    assert ("No proposal" in page) == (first["lr"] is None)


@pytest.mark.multiprocess
@pytest.mark.holds("A search for the learning rate finds the same again")
def test_two_processes_find_the_same(photos: Path, tmp_path: Path) -> None:
    words = words_of(tmp_path, photos, size=4)
    alone = answer(finish(tmp_path, words))
    with Ranks(tmp_path, words, words) as ranks:
        assert ranks.codes(60) == [0, 0], ranks.output()
        together, other = answer(ranks.said(0)), ranks.said(1)
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-3)
    assert together["lr"] == alone["lr"]
    assert "losses" not in other, "the main process speaks"
