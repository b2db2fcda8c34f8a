"""A model goes to the hub and comes back; a local server stands in for the hub."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import accel_flowers as af
from accel_flowers.cli.main import main
from accel_flowers.models.find import build_network
from accel_flowers.models.hub import fetch_model
from accel_flowers.models.saved import WEIGHTS, save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.weights import clean_state_dict
from tests.conftest import make_folder
from tests.hub_server import TOKEN, HubServer, address_of, hub_server, lead_there

# Of httpx, about how huggingface_hub uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")
NOBODY = "http://127.0.0.1:9"
"""The port of `discard`: nobody listens."""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "model"
    torch.manual_seed(0)
    spec = ModelSpec(
        architecture="shufflenet_v2_x0_5", class_names=("daisy", "rose", "tulip"), transforms=({"Resize": {"size": [32, 32]}},),
        mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), scores={"test": {"num_images": 9, "accuracy": 0.5}},
    )  # fmt: skip
    seen = {part: torch.arange(3).numpy() for part in ("train", "val")}
    save_model(directory, clean_state_dict(build_network("shufflenet_v2_x0_5", 3)[0]), spec, seen=seen)
    return directory


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"), per_class=2)


@dataclass
class Ask:
    """The program, asked in this process."""

    hub: HubServer
    home: Path
    patch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def __call__(self, *words: str | Path, code: int = 0) -> tuple[str, str]:
        """What it says on both streams."""
        fetch_model.cache_clear()
        with pytest.raises(SystemExit) as end:
            main(list(map(str, words)))
        out, err = self.capfd.readouterr()
        assert end.value.code == code, err
        assert "Traceback" not in err
        return out, err

    def lead(self, *, address: str | None = None, home: Path | None = None, token: str | None = TOKEN) -> None:
        lead_there(self.patch, address or address_of(self.hub), home or self.home, token)


@pytest.fixture
def ask(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Ask]:
    asking = Ask(hub, tmp_path / "home", monkeypatch, capfd)
    asking.lead()
    yield asking
    fetch_model.cache_clear()


@pytest.mark.holds("A model comes back from the hub as it went there")
def test_there_and_back(ask: Ask, model: Path, photos: Path, tmp_path: Path) -> None:
    out, _ = ask("push", model, "owner/flowers", "--private", "--licence", "cc-by-4.0")
    assert out.strip() == f"{address_of(ask.hub)}/owner/flowers"
    assert ask.hub.private["owner/flowers"]
    (commit, files), *_ = ask.hub.commits["owner/flowers"]
    assert files.keys() == {"README.md", "config.json", WEIGHTS}, "digests of the photos stay at home"
    assert ModelCard(files["README.md"].decode()).data["license"] == "cc-by-4.0"
    assert files[WEIGHTS] == (model / WEIGHTS).read_bytes()

    words = ["--format", "json", "--top-k", "3", photos]
    here, _ = ask("predict", model, *words)
    there, told = ask("predict", "hub:owner/flowers", *words)
    assert json.loads(there) == json.loads(here)
    assert len(json.loads(here)) > 1
    assert f"hub:owner/flowers is at revision {commit}" in told
    scored, told = ask("evaluate", f"hub:owner/flowers@{commit}", "--data", photos, "--json")
    assert json.loads(scored)["loss"] == json.loads(ask("evaluate", model, "--data", photos, "--json")[0])["loss"]
    assert af.load_model("hub:owner/flowers").class_names == ("daisy", "rose", "tulip")

    ask.lead(address=NOBODY)
    kept, told = ask("predict", "hub:owner/flowers", *words)
    assert json.loads(kept) == json.loads(here)
    assert f"cannot be reached: revision {commit}, fetched at an earlier time" in told
    _, told = ask("push", model, "owner/flowers", code=2)
    assert "The hub cannot be reached, so nothing was written" in told
    ask.lead(address=NOBODY, home=tmp_path / "empty")
    _, told = ask("predict", "hub:owner/flowers", *words, code=2)
    assert "cannot be fetched, and is not kept here from an earlier time" in told


def test_what_the_hub_refuses_is_told(ask: Ask, model: Path, photos: Path) -> None:
    ask.hub.commits["owner/other"] = [("1" * 40, {"config.json": b"{}", "README.md": b""})]
    for token, words, told in (
        (None, ["push", model, "owner/new"], "Writing to the hub needs a token"),
        ("hf_wrong", ["push", model, "owner/new"], "does not let you write to owner/new (status 401)"),
        (TOKEN, ["push", model, "stranger/new"], "does not let you write to stranger/new (status 403)"),
        (TOKEN, ["push", model, "flowers"], "'flowers' is no model of the hub: type OWNER/NAME."),
        (TOKEN, ["push", photos, "owner/new"], "is no model folder"),
        (TOKEN, ["push", "hub:owner/other", "owner/new"], "is on the hub already"),
        (TOKEN, ["predict", "hub:owner/missing", photos], "There is no model 'owner/missing' on the hub"),
        (TOKEN, ["predict", "hub:owner/other@v9", photos], "hub:owner/other has no revision 'v9'"),
        (TOKEN, ["predict", "hub:../../etc", photos], "is no model of the hub: type hub:OWNER/NAME."),
        (TOKEN, ["predict", "hub:owner/other", photos], "it lacks config.json or model.safetensors"),
    ):
        ask.lead(token=token)
        _, said = ask(*words, code=2)
        assert told in said, (words, said)
    assert "owner/new" not in ask.hub.commits


def test_a_card_that_was_written_by_hand_goes_as_it_is(ask: Ask, model: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "model"))
    (own / "README.md").write_text("---\nlicense: mit\n---\n\nMy flowers.\n")
    ask("push", own, "owner/by-hand")
    assert ask.hub.commits["owner/by-hand"][-1][1]["README.md"] == (own / "README.md").read_bytes()
    (own / "README.md").unlink()
    ask("push", own, "owner/by-hand")
    assert b"pipeline_tag: image-classification" in ask.hub.commits["owner/by-hand"][-1][1]["README.md"]
