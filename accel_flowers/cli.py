"""The command line: words → configuration → one function → exit code. No logic, and no torch before it is needed.

Exit codes: 0 done; 1 done, but some pictures could not be read, or another process was lost; 2 a mistake of the user's, told in one message;
75 stopped by a signal after a checkpoint: resume me.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from accel_flowers import __version__
from accel_flowers.config import Config
from accel_flowers.config_reading import config_from_flags, load_recipe, recipe_names
from accel_flowers.errors import Interrupted, PeerLost, UserError, did_you_mean, printable

_LONGEST_MESSAGE = 20_000
"""Characters; a name inside a stranger's file may have millions."""


def _train(words: Sequence[str]) -> int:
    program = "accel-flowers train RECIPE"
    if words and words[0] in ("-h", "--help"):
        config_from_flags(Config(), ["--help"], program=program)
    if not words or words[0].startswith("-"):
        rest = f" {words[0]} ..." if words else " --data.path DIR"
        raise UserError(f"RECIPE comes first: accel-flowers train RECIPE{rest} Recipes: {', '.join(recipe_names())}.")
    recipe = words[0]
    config = config_from_flags(load_recipe(recipe), words[1:], program=program, speaks=_is_main_process())
    if config.run_dir is None:
        config = config.model_copy(update={"run_dir": _default_run_dir(Path(recipe).stem, config)})
    from accel_flowers.train import train

    train(config)
    return 0


def _default_run_dir(recipe: str, config: Config) -> str:
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if sweep and run:
        return f"runs/sweep-{sweep}/{run}"  # a W&B sweep runs one recipe many times
    return f"runs/{recipe}" + ("-fast-dev-run" if config.debug.fast_dev_run else "")


@dataclass(frozen=True)
class _BenchmarkWords:
    """Measure how fast a recipe trains here: loading alone, computing alone, both; what the bottleneck is, and what else was tried.

    All flags of `train` can follow. It takes a minute or two; nothing of what is learned is kept.
    """

    json: bool = False
    """Print all numbers as one JSON object."""
    seconds: float = 3.0
    """Length of each measurement."""


def _benchmark(words: Sequence[str]) -> int:
    program = "accel-flowers benchmark RECIPE"
    if words and words[0] in ("-h", "--help"):
        tyro.cli(_BenchmarkWords, args=["--help"], prog=program)
    if not words or words[0].startswith("-"):
        raise UserError(f"RECIPE comes first: {program} --data.path DIR. Recipes: {', '.join(recipe_names())}.")
    asked, rest = tyro.cli(_BenchmarkWords, args=words[1:], prog=program, return_unknown_args=True)
    if not 0 < asked.seconds <= 600:
        raise UserError(f"--seconds {asked.seconds:g} is not allowed: a measurement takes more than 0 and at most 600.")
    config = config_from_flags(load_recipe(words[0]), rest, program=program, speaks=_is_main_process())
    from accel_flowers.benchmark import benchmark

    found = benchmark(config, seconds=asked.seconds)
    print(json.dumps(found.as_json(), indent=1) if asked.json else found.in_words())
    return 0


@dataclass(frozen=True)
class _EvaluateWords:
    """Score a model on a folder of pictures; every picture counts once, on any number of processes."""

    model_dir: tyro.conf.Positional[Path]
    """Model folder: RUN_DIR/model."""
    data: str
    """Folder with one sub-folder per class, a .zip of one, or hub:OWNER/NAME."""
    split: Path | None = None
    """A run's split.json: score only its files of --part."""
    part: Literal["train", "val", "test"] | None = None
    """Part to score; None = test, else val; all pictures where there are no parts."""
    json: bool = False
    """Print all scores as one JSON object."""
    num_workers: int | None = None
    """Loader worker processes; None = choose from the cores of this machine."""


def _evaluate(words: Sequence[str]) -> int:
    asked = tyro.cli(_EvaluateWords, args=words, prog="accel-flowers evaluate")
    from accel_flowers.evaluate import evaluate_folder

    scores = evaluate_folder(
        asked.model_dir, asked.data, split_file=asked.split, part=asked.part, num_workers=asked.num_workers
    )
    if _is_main_process():
        print(json.dumps(scores, indent=1, ensure_ascii=False) if asked.json else _scores_in_words(scores))
    return 0


def _scores_in_words(scores: dict[str, object]) -> str:
    per_class = scores["per_class"]
    assert isinstance(per_class, dict)
    width = max(len(printable(name)) for name in per_class)
    lines = [
        f"{scores['num_images']} pictures ({scores['part']}): accuracy {scores['accuracy']:.4f}, loss {scores['loss']:.4f}, "
        f"macro F1 {scores['macro_f1']:.4f}",
        f"{'':<{width}}  precision  recall      F1  pictures",
    ]
    lines += [
        f"{printable(name):<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['count']:8d}"
        for name, row in per_class.items()
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _InspectWords:
    """Look at all pictures before any of them costs training time.

    Exit code 1 tells of what harms training: files that cannot be read, and copies (identical files or near duplicates)
    under two classes or in two parts. All else that is found is for a person to judge and leaves the exit code 0: other
    copies, pictures far from every other, classes of very different size, small and long pictures, EXIF turns, unusual
    colour modes. 2 is a mistake in the words or in the folder's layout.
    """

    source: tyro.conf.Positional[str]
    """Folder with one sub-folder per class (or train, val and test of such), a .zip of one, or hub:OWNER/NAME."""
    json: bool = False
    """Print all findings as one JSON object."""
    html: Path | None = None
    """Also write a page with the pictures to look at; it stands alone."""
    split: Path | None = None
    """A run's split.json: tell of copies across its parts."""
    near: int = 8
    """Near duplicates differ in at most so many bits of a 64-bit perceptual hash (0 to 16)."""
    show_transforms: str | None = None
    """Recipe (name or file) whose augmentations are drawn on a sheet, as the network sees them in the first epochs."""
    transforms_out: Path = Path("transforms.png")
    """Where that sheet goes."""
    num_workers: int | None = None
    """Processes that look at pictures; None = the cores of this machine, 0 = this one alone."""


def _inspect(words: Sequence[str]) -> int:
    asked = tyro.cli(_InspectWords, args=words, prog="accel-flowers inspect")
    if not _is_main_process():
        return 0  # inspection is for one process: started on several, the first does it
    from accel_flowers.inspection.command import inspect_source
    from accel_flowers.inspection.words import as_json, in_words

    findings = inspect_source(
        asked.source,
        split_file=asked.split,
        max_bits=asked.near,
        num_workers=asked.num_workers,
        html=asked.html,
        recipe=asked.show_transforms,
        sheet=asked.transforms_out,
    )
    print(json.dumps(as_json(findings), indent=1, ensure_ascii=False) if asked.json else in_words(findings))
    if asked.html:
        print(f"the pictures to look at: {asked.html}", file=sys.stderr)
    if asked.show_transforms:
        print(f"augmentations of {asked.show_transforms}: {asked.transforms_out}", file=sys.stderr)
    return 1 if findings.harmful else 0


@dataclass(frozen=True)
class _PredictWords:
    """Say what is on pictures; a file that cannot be read gets its own row, and the exit code is 1.

    Probabilities are calibrated where the model has a temperature; the output says whether they are. They do not depend on
    the size of the batches or the number of threads, but for the last digits.
    """

    model_dir: tyro.conf.Positional[Path]
    """Model folder: RUN_DIR/model."""
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, folders of them, or patterns in quotes: 'new/**/*.jpg' looks into folders of any depth."""
    top_k: int = 1
    """Classes to tell for each picture."""
    format: Literal["table", "csv", "json", "parquet"] | None = None
    """table for people, the others for programs; None = by the suffix of --out, else table."""
    out: Path | None = None
    """File for the rows: .csv, .json, .parquet, or .txt for a table; None = standard output."""
    html: Path | None = None
    """Also write a page with the pictures and what they were taken for; it stands alone."""
    tta: bool = False
    """Average the probabilities of each picture and its mirror image; takes twice the time."""
    batch_size: int | None = None
    """Pictures in one forward pass; None = what the model was scored with."""
    num_workers: int | None = None
    """Threads that decode pictures; None = the cores of this machine."""


def _predict(words: Sequence[str]) -> int:
    asked = tyro.cli(_PredictWords, args=words, prog="accel-flowers predict")
    if not asked.paths:
        raise UserError("Which pictures? Type accel-flowers predict MODEL_DIR PATH...")
    if not _is_main_process():
        return 0  # prediction is for one process: started on several, the first does it
    from accel_flowers.prediction_command import predict_to_outputs

    num_bad = predict_to_outputs(
        asked.model_dir,
        asked.paths,
        top_k=asked.top_k,
        tta=asked.tta,
        batch_size=asked.batch_size,
        num_workers=asked.num_workers,
        how=asked.format,
        out=asked.out,
        html=asked.html,
    )
    return 1 if num_bad else 0


@dataclass(frozen=True)
class _ReportWords:
    """Draw a run as one page (RUN_DIR/report.html) with its plots (RUN_DIR/plots/): scores, mistakes, labels, data."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of a run, finished or going on."""
    data: str | None = None
    """Where the photos are now; None = where the run had them."""


def _report(words: Sequence[str]) -> int:
    asked = tyro.cli(_ReportWords, args=words, prog="accel-flowers report")
    if not _is_main_process():
        return 0
    from accel_flowers.report.draw import draw_report

    print(draw_report(asked.run_dir, asked.data))
    return 0


@dataclass(frozen=True)
class _CompareWords:
    """Compare runs on the held-out pictures that all of them have: a table, a page, and whether the gain could be luck."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of finished runs; the others are compared with the first."""
    out: Path = Path("compare.html")
    """The page."""
    data: str | None = None
    """Where the photos are now; None = where the first run had them."""
    json: bool = False
    """Print all numbers as one JSON object instead of the table."""


def _compare(words: Sequence[str]) -> int:
    asked = tyro.cli(_CompareWords, args=words, prog="accel-flowers compare")
    if not _is_main_process():
        return 0
    from accel_flowers.report.compare import compare_runs, in_words

    found = compare_runs(asked.run_dirs, out=asked.out, data=asked.data)
    print(
        json.dumps(found.as_json(), indent=1, ensure_ascii=False) if asked.json else f"{in_words(found)}\n\n{asked.out}"
    )
    return 0


@dataclass(frozen=True)
class _RecipesWords:
    """List the recipes that come with the package."""


def _recipes(words: Sequence[str]) -> int:
    tyro.cli(_RecipesWords, args=words, prog="accel-flowers recipes")
    rows = [("recipe", "model", "published", "what it does")]
    for name in recipe_names():
        recipe = load_recipe(name)
        rows.append((name, recipe.model.name, recipe.about.published, recipe.about.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3], sep="  ")
    return 0


@dataclass(frozen=True)
class _SampleWords:
    """Draw five kinds of flowers to try the program on; the same pictures for the same seed."""

    directory: tyro.conf.Positional[Path]
    """New folder for the pictures."""
    images_per_class: int = 200
    """Pictures of each kind."""
    image_size: int = 96
    """Width and height in pixels."""
    seed: int = 0
    """Another seed draws other pictures."""


def _sample(words: Sequence[str]) -> int:
    asked = tyro.cli(_SampleWords, args=words, prog="accel-flowers sample")
    from accel_flowers.sample import draw_sample

    drawn = draw_sample(
        asked.directory, images_per_class=asked.images_per_class, image_size=asked.image_size, seed=asked.seed
    )
    print(f"{asked.images_per_class} pictures of each of five kinds of flowers in {drawn}")
    return 0


@dataclass(frozen=True)
class _DownloadWords:
    """Fetch 3,670 flower photos (218 MiB, CC-BY); an interrupted download goes on where it stopped."""

    directory: tyro.conf.Positional[Path]
    """New folder for the photos."""


def _download(words: Sequence[str]) -> int:
    asked = tyro.cli(_DownloadWords, args=words, prog="accel-flowers download")
    from accel_flowers.download import download

    print(f"photos in {download(asked.directory)}, one folder per class; their licence is in LICENSE.txt there")
    return 0


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_train, "RECIPE [--data.path DIR] [--run-dir DIR] [--section.field VALUE ...]"),
    "benchmark": (_benchmark, "RECIPE --data.path DIR [--json] [--seconds S] [--section.field VALUE ...]"),
    "inspect": (_inspect, "DIR [--json] [--html FILE] [--split SPLIT_JSON] [--show-transforms RECIPE]"),
    "evaluate": (_evaluate, "MODEL_DIR --data DIR [--json]"),
    "predict": (_predict, "MODEL_DIR PATH... [--top-k K] [--tta] [--out FILE] [--html FILE]"),
    "report": (_report, "RUN_DIR [--data DIR]"),
    "compare": (_compare, "RUN_DIR RUN_DIR... [--out compare.html] [--json]"),
    "recipes": (_recipes, ""),
    "sample": (_sample, "DIR"),
    "download": (_download, "DIR"),
}


def _usage() -> str:
    lines = [f"accel-flowers {__version__}: fine-tune image classifiers on your own photos", ""]
    lines += [f"  accel-flowers {name} {rest}".rstrip() for name, (_, rest) in _COMMANDS.items()]
    lines += ["", "accel-flowers COMMAND --help tells every flag. On several processes:",
              "  accelerate launch --config_file accelerate_configs/multi_gpu.yaml -m accel_flowers train ..."]  # fmt: skip
    return "\n".join(lines)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def main(words: Sequence[str] | None = None) -> None:
    """Run a command; ends the process with its exit code."""
    words = sys.argv[1:] if words is None else words
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: no name of a file or class ends a program
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` has seen enough: nothing more to say
        sys.exit(1)
    except Interrupted as stop:
        if _is_main_process():
            print(f"accel-flowers: {stop}", file=sys.stderr)
        sys.exit(Interrupted.RESUME_ME)
    except KeyboardInterrupt:
        print("accel-flowers: stopped by the keyboard; what was saved is kept", file=sys.stderr)
        sys.exit(130)
    except PeerLost as lost:
        print(f"accel-flowers: process {os.environ['RANK']}: {lost}", file=sys.stderr)
        sys.exit(1)
    except UserError as error:
        if _is_main_process():
            print(f"accel-flowers: {_message(error)}", file=sys.stderr)
        _let_main_speak()
        sys.exit(2)


def _message(error: UserError) -> str:
    """What the error says, fit for a terminal."""
    words = "\n".join([str(error), *getattr(error, "__notes__", [])])
    return printable(words[:_LONGEST_MESSAGE], lines=True)


def _let_main_speak() -> None:
    """A launcher ends all processes as soon as one ends: the main one must have told the mistake before."""
    if not _is_main_process():
        time.sleep(3)


def _dispatch(words: Sequence[str]) -> int:
    if not words:
        raise UserError(f"Which command?\n\n{_usage()}")
    if words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    if words[0] not in _COMMANDS:
        raise UserError(
            f"There is no command '{words[0]}'.{did_you_mean(words[0], tuple(_COMMANDS))} "
            f"Commands: {', '.join(_COMMANDS)}."
        )
    return _COMMANDS[words[0]][0](words[1:])
