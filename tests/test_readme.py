"""README and docs/ are true: their commands are understood, their Python runs, their links, tables and flags name what is there."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from accelerate.commands.launch import launch_command_parser
from PIL import Image

from accel_flowers.cli.commands import COMMANDS
from accel_flowers.cli.common import split_imports
from accel_flowers.cli.launch_config import launch_configs
from accel_flowers.cli.train import split_study_words
from accel_flowers.config.loading import config_from_flags, load_recipe, recipe_names
from accel_flowers.config.schema import Config, LossConfig
from accel_flowers.core import registry
from accel_flowers.core.registry import import_parts
from accel_flowers.training import losses
from tests.conftest import draw_image, make_folder
from tests.runs import PROJECT, write_recipe

README = (PROJECT / "README.md").read_text()
DOCS = sorted((PROJECT / "docs").glob("*.md"))
PAGES = {file.relative_to(PROJECT).as_posix(): file.read_text() for file in (*sorted(PROJECT.glob("*.md")), *DOCS)}
RECIPES = sorted((PROJECT / "accel_flowers/config/recipes").iterdir())


# Commands


def commands() -> list[list[str]]:
    """The words of every `accel-flowers` and `accelerate launch` command of the pages and the recipes' headers.

    "..." stands for what the command before it in the page has there.
    """
    found = []
    headers = [file.read_text().replace("#", " ") for file in RECIPES]
    for text in (*PAGES.values(), *headers):
        lines = text.replace("\\\n", " ").splitlines()
        written = [line.strip().removeprefix("$ ") for line in lines if line.startswith("    ")]
        written += re.findall(r"`(accel-flowers [a-z][^`\n]*)`", text) if text not in headers else []
        for line in written:
            if re.match(r"(accel-flowers|accelerate launch) ", line):
                line = line.replace(" ... ", " resnet18-finetune --data.path photos ")
                found += [shlex.split(part, comments=True) for part in line.split("&&")]
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


def program_words(words: Sequence[str]) -> list[str]:
    """What `accel-flowers` gets, also behind the launcher."""
    return list(words[1:] if words[0] == "accel-flowers" else words[words.index("accel_flowers") + 1 :])


@pytest.fixture
def own_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry of its own, into which `--import` brings parts; nothing of it stays."""
    monkeypatch.setattr(registry, "_parts", {})
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(PROJECT)
    before = sys.modules.pop("my_parts", None)
    yield
    sys.modules.pop("my_parts", None)
    if before:
        sys.modules["my_parts"] = before


class Parsed(Exception):
    """The words were understood."""


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_is_understood(words: list[str], own_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    modules, (command, *rest) = split_imports(program_words(words))
    import_parts(modules)
    assert command in COMMANDS
    if "--help" in rest:
        return
    if command in ("train", "benchmark"):
        recipe, *flags = rest
        _, flags = split_study_words(flags)
        # The configuration that a run has written is a recipe; there is none here.
        config = Config() if recipe.startswith("runs/") else load_recipe(recipe)
        config_from_flags(config, flags, program=f"accel-flowers {command}")
        return
    parse = tyro.cli

    def parse_only(*args: object, **kwargs: object) -> None:
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse_only)
    with pytest.raises(Parsed):
        COMMANDS[command][0](rest)


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "accelerate"], ids=" ".join)
def test_launch_command_is_understood(words: list[str]) -> None:
    args = launch_command_parser().parse_args(words[2:])
    assert (args.module, args.training_script) == (True, "accel_flowers")
    named = re.fullmatch(r"\$\(accel-flowers launch-config (\w+)\)|accelerate_configs/(\w+)\.yaml", args.config_file)
    assert named, args.config_file
    assert (named[1] or named[2]) in launch_configs()


def test_there_are_commands() -> None:
    named = {program_words(words)[0] for words in commands()}
    assert named == COMMANDS.keys(), "each command stands somewhere as one types it"
    assert sum(words[0] == "accelerate" for words in commands()) >= 2


def test_flags_in_the_text_are_fields() -> None:
    flags = {flag for text in PAGES.values() for flag in re.findall(r"--([a-z]+\.[a-z][a-z_-]+)", text)}
    assert len(flags) > 30
    for flag in flags:
        section, field = flag.replace("-", "_").split(".")
        fields = getattr(Config(), section).__class__.model_fields
        assert field.removeprefix("no_") in fields or field in fields, flag


# Python


def python_blocks() -> dict[str, list[str]]:
    found = {page: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for page, text in PAGES.items()}
    return {page: blocks for page, blocks in found.items() if blocks}


def test_python_is_python() -> None:
    blocks = python_blocks()
    assert blocks.keys() >= {"README.md", "docs/training.md", "docs/reports.md", "docs/extending.md"}
    for page, each in blocks.items():
        for block in each:
            compile(block, page, "exec")


def test_python_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """The README's cell, and those of training.md and reports.md after it, with a tiny recipe in place of ResNet-18."""
    monkeypatch.chdir(tmp_path)
    photos = make_folder(tmp_path / "photos")
    (tmp_path / "new").mkdir()
    for file in ("new/1.jpg", "new/2.jpg", "photos/rose/1.jpg"):
        draw_image("rose", len(file)).save(file)
    write_recipe(tmp_path / "tiny.yaml")
    blocks = python_blocks()
    for block in (blocks["README.md"][0], blocks["docs/training.md"][0], blocks["docs/reports.md"][0]):
        assert "notebook_launcher" not in block, "that has a test of its own"
        exec(compile(re.sub('"(flagship|resnet18-finetune)"', '"tiny.yaml"', block), "page", "exec"), {})
    said = capsys.readouterr().out
    assert "test accuracy" in said
    assert said.count("new/1.jpg (") == 1
    assert (tmp_path / "runs/second/model").is_dir()
    assert photos.is_dir()


def test_a_part_of_ones_own_in_the_page_works(own_parts: None) -> None:
    block, _ = python_blocks()["docs/extending.md"]
    names: dict[str, object] = {}
    exec(compile(block, "docs/extending.md", "exec"), names)
    part = registry.find("transform", "my/rain")
    assert part is not None
    image = Image.new("RGB", (40, 30))
    wet = part.make(drops=3)(image)
    assert (wet.size, wet.mode) == (image.size, "RGB")
    assert wet.tobytes() != image.tobytes()


def test_a_method_for_everybody_in_the_page_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page says it: the function, a line in a table, and its name; of even scores over two classes the loss is known."""
    _, block = python_blocks()["docs/extending.md"]
    names: dict[str, Any] = {}
    exec(compile(block, "docs/extending.md", "exec"), names)
    monkeypatch.setattr(losses, "_LOSSES", {**losses._LOSSES, "poly": names["poly"]})
    config = LossConfig.model_construct(name="poly", options={"epsilon": 2})
    loss = losses.build_criterion(config, torch.tensor([0, 1]), 2, torch.device("cpu"))
    assert float(loss(torch.zeros(1, 2), torch.tensor([0]))) == pytest.approx(math.log(2) + 2 * 0.5)
    assert float(loss(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]]))) == pytest.approx(math.log(2) + 2 * 0.5)


def test_extending_names_every_kind(own_parts: None) -> None:
    page = PAGES["docs/extending.md"]
    import_parts(["examples/my_parts.py"])
    kinds = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert kinds == [kind for kind in registry.KINDS if kind in kinds]
    assert [kind for kind in kinds if not registry.registered(kind)] == [], "the example has one of each"
    assert {"transform", "model", "loss", "task", "metric", "optimizer"} <= set(kinds)


# Names


def test_readme_is_for_newcomers() -> None:
    assert len(README.splitlines()) < 150
    image = PROJECT / "docs/images/report.png"
    assert f"({image.relative_to(PROJECT)})" in README
    assert image.stat().st_size < 200_000
    with Image.open(image) as opened:
        assert opened.format == "PNG"


def test_every_package_is_named() -> None:
    packages = sorted(file.parent.name for file in (PROJECT / "accel_flowers").glob("*/__init__.py"))
    assert len(packages) > 10
    table = README.split("## Where things are")[1]
    assert sorted(re.findall(r"^\| `(\w+)/` \|", table, flags=re.MULTILINE)) == packages


def test_the_loop_is_found() -> None:
    """The files of the table are there, and the loop calls what it says."""
    section = README.split("## Where things are")[1].split("The packages")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ") and "`" in row]
    files = [file for row in rows for file in re.findall(r"`([\w/]+\.py)`", row)]
    assert len(files) > 6
    assert [file for file in files if not (PROJECT / "accel_flowers" / file).is_file()] == []
    loop = (PROJECT / "accel_flowers/training/loop.py").read_text()
    assert "\ndef loop(" in loop
    for call in ("run.train_step(batch)", 'each_batch(run.loaders["train"])', "run.lr_of_step", "set_lr", "end_epoch"):
        assert f"`{call}`" in section
        assert call in loop, call


def test_every_command_is_in_the_table() -> None:
    table = README.split("## All commands")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, flags=re.MULTILINE) == list(COMMANDS)


def test_tables_name_every_recipe_and_configuration() -> None:
    for name in recipe_names():
        for page in ("README.md", "RESULTS.md", "docs/training.md"):
            assert f"`{name}`" in PAGES[page], (name, page)
    for name in launch_configs():
        assert f"| `{name}` | `accelerate_configs/{name}.yaml` |" in PAGES["docs/distributed.md"]


def test_links_lead_somewhere() -> None:
    count = 0
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("https://"):
                continue
            path, _, heading = target.partition("#")
            file = (PROJECT / page).parent / path if path else PROJECT / page
            assert file.exists(), (page, target)
            if heading:
                assert heading in headings(file.read_text()), (page, target)
            count += 1
    assert count > 30
    assert [file.name for file in DOCS if f"(docs/{file.name})" not in README] == []


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_project_speaks_of_itself() -> None:
    """No path of a machine, no package registry's host."""
    hosts = "|".join(
        ("python" + "hosted", "pypi" + r"\.org", "registry" + r"\.npmjs")
    )  # in pieces: not to be found here
    forbidden = re.compile(rf"/home/|/root/|/Users/|{hosts}")
    files = [
        file
        for pattern in (
            "*.md", "docs/*.md", "benchmarks/*.*", "examples/*", "*.toml", "accel_flowers/**/*.*", "scripts/*",
            "accelerate_configs/*", "tests/*.py",
        )
        for file in PROJECT.glob(pattern)
        if file.is_file() and file.suffix != ".pyc" and file != Path(__file__)
    ]  # fmt: skip
    assert len(files) > 60
    assert {file.name for file in files} >= {"README.md", "extending.md", "RESULTS.md", "my_parts.py"}
    assert [file for file in files if forbidden.search(file.read_text())] == []
