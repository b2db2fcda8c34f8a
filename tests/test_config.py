"""Recipes and flags: every mistake in one message, nothing but Config or UserError, and what is written is read back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from accel_flowers.cli.common import expand_home
from accel_flowers.config.habits import _ALIASES, as_ours
from accel_flowers.config.loading import config_from_flags, config_from_yaml, load_recipe, recipe_names
from accel_flowers.config.paths import with_absolute_paths
from accel_flowers.config.schema import Config, config_to_dict
from accel_flowers.core.errors import UserError
from accel_flowers.core.yaml_text import dump_yaml
from accel_flowers.data.transforms.build import build_transform
from accel_flowers.models.preprocessing import settle_preprocessing

SOURCE = "my.yaml"
OFTEN = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def read(text: str) -> Config:
    return config_from_yaml(text, source=SOURCE)


def mistakes_in(text: str) -> str:
    """The message of a recipe with mistakes."""
    with pytest.raises(UserError) as caught:
        read(text)
    return str(caught.value)


def read_or_refuse(text: str) -> Config | str:
    """The configuration, or the message for the user; anything else is a bug."""
    try:
        return read(text)
    except UserError as error:
        return str(error)


def flags(*words: str, recipe: Config | None = None) -> Config:
    return config_from_flags(recipe or Config(), words, program="accel-flowers train RECIPE")


# Reading a recipe


def test_a_recipe_without_sections_is_the_defaults() -> None:
    assert read("{}") == Config()


@pytest.mark.parametrize("text", ["", "null", "# nothing but a remark"])
def test_an_empty_file_is_no_recipe(text: str) -> None:
    with pytest.raises(UserError, match="is empty"):
        read(text)


def test_values_arrive_in_their_types() -> None:
    config = read(
        """
        data: {path: photos, mean: [0, 0.5, 1], train_transforms: [Resize: {size: [64, 64]}]}
        model: {freeze: 3}
        optim: {lr: 1e-4}
        schedule: {milestones: [1, 2.5]}
        train: {early_stopping_epochs: null, micro_batch_size: 8}
        """
    )
    assert config.optim.lr == 0.0001
    assert config.data.mean == (0.0, 0.5, 1.0)
    assert config.data.train_transforms == ({"Resize": {"size": [64, 64]}},)
    assert config.model.freeze == 3
    assert config.schedule.milestones == (1.0, 2.5)
    assert config.train.early_stopping_epochs is None
    assert config.train.micro_batch_size == 8


@pytest.mark.parametrize("nothing", ["null", "None", "~"])
@pytest.mark.parametrize(
    "field", ["run_dir", "data.path", "data.num_workers", "model.dropout", "optim.max_grad_norm", "tracking.wandb_name"]
)
def test_an_optional_field_takes_null_and_none(field: str, nothing: str) -> None:
    *section, name = field.split(".")
    text = f"{section[0]}: {{{name}: {nothing}}}" if section else f"{name}: {nothing}"
    assert read(text) == Config()


def test_none_is_a_word_where_a_field_is_not_optional() -> None:
    assert read("model: {weights: None}").model.weights == "None"
    assert "train.epochs" in mistakes_in("train: {epochs: None}")


def test_the_environment_of_an_earlier_run_is_ignored() -> None:
    assert read("environment: {torch: 2.0, gpus: []}\ntrain: {epochs: 3}").train.epochs == 3
    assert "train.environment: there is no such field" in mistakes_in("train: {environment: {}}")


def test_a_configuration_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.run_dir = "elsewhere"  # type: ignore[misc]


# Mistakes in a recipe


def test_all_mistakes_come_in_one_message() -> None:
    message = mistakes_in(
        """
        optmi: {lr: 1}
        data: {std: [1, 0, 1], mean: [1, 2], on_bad_image: ignore}
        model: {freeze: 0, name: 5}
        optim: {lr: -1, learning_rate: 1}
        schedule: {milestones: [1, x]}
        train: {epochs: 0, epoch: 3, seed: many, global_batch_size: 2.5}
        """
    )
    first, *lines = message.splitlines()
    assert first == f"{SOURCE} has mistakes:"
    assert {line.strip().partition(": ")[0] for line in lines} == {
        "optmi", "data.std", "data.mean", "data.on_bad_image", "model.freeze", "model.name", "optim.lr",
        "optim.learning_rate", "schedule.milestones[1]", "train.epochs", "train.epoch", "train.seed",
        "train.global_batch_size",
    }  # fmt: skip
    assert len(lines) == 13, "one line for each mistake"


@pytest.mark.parametrize(
    ("text", "field", "told"),
    [
        ("optmi: {}", "optmi", ["no such field", "Did you mean 'optim'?", "Allowed here: about, checkpoint, data"]),
        ("train: {epoch: 3}", "train.epoch", ["no such field", "Did you mean 'epochs'?", "seed"]),
        ("train: {xyz: {a: 1}}", "train.xyz", ["no such field", "Allowed here: best_metric"]),
        ("train: {epochs: [3]}", "train.epochs", ["integer", "[3]"]),
        ("train: {epochs: true}", "train.epochs", ["true and false are not allowed", "True"]),
        ("model: {freeze: true}", "model.freeze", ["true and false are not allowed", "True"]),
        ("train: {epochs: 1.5}", "train.epochs", ["integer", "1.5"]),
        ("train: {epochs: 0}", "train.epochs", ["greater than or equal to 1", "given: 0"]),
        ("train: {seed: 9223372036854775808}", "train.seed", ["less than 9223372036854775808"]),
        ("train: {best_metric: f1}", "train.best_metric", ["Allowed: accuracy, loss, macro_f1", "given: 'f1'"]),
        ("optim: {lr: .nan}", "optim.lr", ["finite", "nan"]),
        ("optim: {lr: .inf}", "optim.lr", ["finite", "inf"]),
        (
            "optim: {nesterov: true, name: adam}",
            "optim",
            ["nesterov goes with name: sgd", "not with adam and 0.9", "--optim.no-nesterov"],
        ),
        ("optim: {nesterov: true, momentum: 0}", "optim", ["nesterov goes with", "a momentum above 0"]),
        ("loss: {class_weights: no}", "loss.class_weights", ["'none' or 'balanced'", "given: 'no'"]),
        ("data: {std: [0, 1, 1]}", "data.std", ["above 0", "given: [0, 1, 1]"]),
        ("data: {std: [1, 1]}", "data.std", ["three numbers", "given: [1, 1]"]),
        ("data: {mean: [.nan, 0, 0]}", "data.mean", ["three numbers", "nan"]),
        ("data: {train_transforms: Resize}", "data.train_transforms", ["must be a list", "given: 'Resize'"]),
        ("data: {eval_transforms: [Resize, 7]}", "data.eval_transforms[1]", ["name of a transform", "given: 7"]),
        ("data: {eval_transforms: [{Resize: {size: 2000-01-01}}]}", "data.eval_transforms[0]", ["name of a transform"]),
        ("schedule: {milestones: [3, 2]}", "schedule.milestones", ["rising epochs above 0", "given: [3, 2]"]),
        ("schedule: {milestones: []}", "schedule.milestones", ["rising epochs above 0", "given: []"]),
        ("model: {freeze: some}", "model.freeze", ["none, backbone, or a number", "given: 'some'"]),
        ("model: {dropout: 1}", "model.dropout", ["less than 1", "given: 1"]),
        ("train: 5", "train", ["must be a section", "epochs", "given: 5"]),
        ("train:", "train", ["must be a section", "epochs", "given: None"]),
        ("train: {1: 2}", "train", ["Keys should be strings", "given: 1"]),
        ("3: 4", "configuration", ["Keys should be strings", "given: 3"]),
    ],
)
def test_a_mistake_names_field_given_and_allowed(text: str, field: str, told: list[str]) -> None:
    header, line = mistakes_in(text).splitlines()
    assert header == f"{SOURCE} has mistakes:"
    assert line.startswith(f"  {field}: ")
    for words in told:
        assert words in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: {epochs: 1,\n  epochs: 2}", ["line 2, column 3", 'duplicate key "epochs"']),
        ("train: [1", ["line 1", "while parsing a flow sequence", "expected ',' or ']'"]),
        ("a: b: c", ["line 1, column 5", "mapping values are not allowed here"]),
        ("a: 1\n---\nb: 2", ["line 2", "expected a single document"]),
        ("train: {epochs: 2000-13-45}", ["month must be in 1..12"]),
        ("train: {epochs: !!int many}", ["many"]),
        ("train: !!python/object:os.system x", ["line 1", "could not determine a constructor"]),
        ("a: \x00", ["special characters are not allowed"]),
        ("a: " + "[" * 1000, ["nested too deeply"]),
    ],
    ids=["repeated key", "open bracket", "two colons", "two documents", "date", "number", "tag", "control", "depth"],
)
def test_what_is_no_yaml_is_told_with_its_place(text: str, told: list[str]) -> None:
    message = mistakes_in(text)
    assert message.startswith(f"{SOURCE} is not valid YAML: ")
    for words in told:
        assert words in message
    assert "http" not in message, "no advice of the YAML library's"


@pytest.mark.parametrize("text", ["[1, 2]", "words", "5", "!!set {a}"])
def test_a_recipe_that_holds_no_sections(text: str) -> None:
    assert re.fullmatch(f"{SOURCE} must hold sections such as 'data:' and 'train:', not (list|str|int|set)\\.", mistakes_in(text))  # fmt: skip


# Any text, any values

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.binary()
SECTION_TYPES = [type(section) for _, section in Config() if isinstance(section, BaseModel)]
KEYS = st.sampled_from([name for section in (Config, *SECTION_TYPES) for name in section.model_fields])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
SECTIONS = st.dictionaries(KEYS | st.integers(), TREES | st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=3)))
YAML_PIECES = [
    *"data train epochs path : - , [ ] { } & &a * *a ! ? | > ' \" % @ # ~ < << = . 0 1 _ x e 0o9 0x 1:2 --- ...".split(),  # noqa: SIM905
    *"!! !!set !!omap !!pairs !!binary !!int !!float !!bool !!null !!timestamp 2000-01-01T99:00".split(),  # noqa: SIM905
    *(" ", "  ", "\n", "\t", "\ufeff", "%YAML 9", "%TAG ! x:"),
]
YAMLISH = st.lists(st.sampled_from(YAML_PIECES), max_size=25).map("".join)


@pytest.mark.holds("No recipe and no words on the command line end in a traceback")
@settings(OFTEN)
@given(text=st.text(max_size=40) | YAMLISH)
@example(text="data: &a {train_transforms: [*a]}")
@example(text="data: {train_transforms: &a [RandomApply: {transforms: *a}]}")
@example(text="%YAML 1.1\n---\ntrain: {epochs: 1_0}")
@example(text="\ud800")
def test_any_text_ends_in_a_config_or_a_user_error(text: str) -> None:
    outcome = read_or_refuse(text)
    assert isinstance(outcome, Config) or SOURCE in outcome


@pytest.mark.holds("No recipe and no words on the command line end in a traceback")
@settings(OFTEN)
@given(values=SECTIONS)
def test_any_values_end_in_a_config_or_a_user_error(values: dict[Any, Any]) -> None:
    try:
        text = dump_yaml(values)
    except Exception:  # noqa: BLE001 - not every tree can be written
        text = repr(values)
    outcome = read_or_refuse(text)
    if isinstance(outcome, Config):
        assert read(dump_yaml(config_to_dict(outcome))) == outcome
    else:
        assert SOURCE in outcome


# Writing and reading back

# All text but NUL, which is refused, and NEL, a control character that ruamel.yaml writes as it is and reads as the end
# of a line.
TEXT = st.text(st.characters(exclude_characters="\0\x85", codec="utf-8"), max_size=12)
ARGUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
TRANSFORMS = st.lists(TEXT | st.dictionaries(TEXT, ARGUMENTS, max_size=2), max_size=3)
LONG = "x" * 110
TRICKY = [
    *(
        "no",
        "yes",
        "null",
        "~",
        "1e-4",
        "0x10",
        "2000-01-01",
        "a: b",
        "- a",
        "# x",
        " a",
        "a ",
        "'",
        '"',
        "%",
        "ä\n\tß",
    ),
    f"{LONG} {LONG}",
    f"{LONG},\t[}} &{{0 {LONG}",
]
WORDS = TEXT.filter(lambda text: text != "None") | st.sampled_from(TRICKY)
POSITIVE = st.floats(1e-300, 1e300)
CONFIGS = st.builds(
    lambda **values: Config.model_validate(values),
    run_dir=st.none() | WORDS,
    about=st.fixed_dictionaries({"summary": TEXT, "not_told": WORDS}),
    data=st.fixed_dictionaries(
        {
            "path": st.none() | WORDS,
            "train_transforms": TRANSFORMS,
            "std": st.tuples(POSITIVE, POSITIVE, POSITIVE),
            "num_workers": st.none() | st.integers(0, 9),
        }
    ),
    model=st.fixed_dictionaries({"name": WORDS, "freeze": st.sampled_from(["none", "backbone", 1, 7])}),
    optim=st.fixed_dictionaries({"lr": POSITIVE, "decay_norms_and_biases": st.booleans()}),
    schedule=st.fixed_dictionaries({"milestones": st.sets(POSITIVE, min_size=1, max_size=4).map(sorted)}),
    train=st.fixed_dictionaries({"seed": st.integers(0, 2**63 - 1)}),
)


@settings(OFTEN)
@given(config=CONFIGS)
def test_what_is_written_is_read_back(config: Config) -> None:
    assert read(dump_yaml(config_to_dict(config))) == config


@settings(OFTEN, max_examples=20)
@given(config=CONFIGS)
def test_no_flags_leave_a_recipe_as_it_is(config: Config) -> None:
    assert flags(recipe=config) == config


# Flags


def test_flags_go_over_the_recipe_and_the_rest_of_it_stays() -> None:
    recipe = read("train: {epochs: 3, seed: 7}\ndata: {train_transforms: [Resize: {size: [9, 9]}]}")
    config = flags("--train.epochs", "4", "--data.path", "photos", recipe=recipe)
    assert (config.train.epochs, config.train.seed, config.data.path) == (4, 7, "photos")
    assert config.data.train_transforms == recipe.data.train_transforms


@pytest.mark.parametrize(
    ("words", "value_of", "expected"),
    [
        (["--train.global-batch-size", "8"], lambda c: c.train.global_batch_size, 8),
        (["--train.global_batch_size", "8"], lambda c: c.train.global_batch_size, 8),
        (["--train.global-batch-size=8"], lambda c: c.train.global_batch_size, 8),
        (["--run-dir", "there"], lambda c: c.run_dir, "there"),
        (["--run_dir", "there"], lambda c: c.run_dir, "there"),
        (["--train.early-stopping-epochs", "None"], lambda c: c.train.early_stopping_epochs, None),
        (["--train.early_stopping_epochs", "5"], lambda c: c.train.early_stopping_epochs, 5),
        (["--optim.lr", "1e-4"], lambda c: c.optim.lr, 1e-4),
        (["--optim.nesterov"], lambda c: c.optim.nesterov, True),
        (["--optim.no-decay-norms-and-biases"], lambda c: c.optim.decay_norms_and_biases, False),
        (["--model.freeze", "2"], lambda c: c.model.freeze, 2),
        (["--model.freeze", "backbone"], lambda c: c.model.freeze, "backbone"),
        (["--schedule.milestones", "1", "2.5"], lambda c: c.schedule.milestones, (1.0, 2.5)),
        (["--data.std", "1", "2", "3"], lambda c: c.data.std, (1.0, 2.0, 3.0)),
        (
            ["--data.train-transforms", "[Resize: {size: [32, 48]}, RandomHorizontalFlip]"],
            lambda c: c.data.train_transforms,
            ({"Resize": {"size": [32, 48]}}, "RandomHorizontalFlip"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_flag_sets_its_field(words: list[str], value_of: Callable[[Config], Any], expected: Any) -> None:
    recipe = read("train: {early_stopping_epochs: 3}")
    assert value_of(flags(*words, recipe=recipe)) == expected


def test_all_values_that_are_not_allowed_come_in_one_message() -> None:
    with pytest.raises(UserError) as caught:
        flags("--train.epochs", "0", "--optim.lr", "-1", "--model.freeze", "0", "--data.train-transforms", "[3]",
              "--schedule.milestones", "3", "2", "--optim.momentum", "nan")  # fmt: skip
    first, *lines = str(caught.value).splitlines()
    assert first == "The command line has mistakes:"
    assert [line.partition(":")[0].strip() for line in lines] == [
        "data.train_transforms[0]", "model.freeze", "optim.lr", "optim.momentum", "schedule.milestones", "train.epochs",
    ]  # fmt: skip
    assert lines[2] == "  optim.lr: Input should be greater than 0 (given: -1.0)"


@pytest.mark.holds("No recipe and no words on the command line end in a traceback")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.path"], ["--data.path", "Missing value"]),
        (["--train.epochs", "many"], ["--train.epochs", "many", "Passes over the training images"]),
        (["--loss.class-weights", "all"], ["--loss.class-weights", "all", "balanced"]),
        (["--data.train-transforms", "[Resize"], ["the list of transforms is not valid", "line 1"]),
        (["stray"], ["stray"]),
    ],
    ids=lambda value: " ".join(value[:1]),
)
def test_a_flag_that_cannot_be_read_exits_with_2(
    words: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        flags(*words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    for part in told:
        assert part in " ".join(err.replace("│", " ").split())


# The recipes of the package

RECIPES = recipe_names()


def test_there_are_recipes() -> None:
    assert "quickstart" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_the_package_loads_and_its_transforms_build(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.about.summary, "`accel-flowers recipes` shows it"
    assert flags(recipe=recipe) == recipe
    images = settle_preprocessing(recipe)[0].data.preprocessing()
    sizes = [
        build_transform(specs, field=field)[1]
        for field, specs in (
            ("data.train_transforms", images.train_transforms),
            ("data.eval_transforms", images.eval_transforms),
        )
    ]
    assert all(min(size) > 0 for size in sizes)


def test_a_recipe_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 3}\n")
    assert load_recipe(str(file)).train.epochs == 3
    file.write_text("train: {epochs: 0}\n")
    with pytest.raises(UserError, match=re.escape(str(file))):
        load_recipe(str(file))


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xff")
    causes: Sequence[tuple[Path, str]] = [
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "There is no recipe"),
        (binary, "can't decode"),
    ]
    for path, cause in causes:
        with pytest.raises(UserError, match=cause) as caught:
            load_recipe(str(path))
        assert str(path) in str(caught.value)


def test_an_unknown_recipe_gets_a_hint() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("quikstart")
    message = str(caught.value)
    assert "There is no recipe 'quikstart'. Did you mean 'quickstart'?" in message
    assert all(name in message for name in RECIPES)


def test_paths_mean_the_same_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somebody")
    given = {
        "run_dir": "runs/first",
        "data": {"path": "photos", "split": "split.json", "cache_dir": "~/cache"},
        "model": {"weights": "../first.safetensors"},
    }
    config = with_absolute_paths(Config.model_validate(given))
    assert (config.run_dir, config.data.path) == (f"{tmp_path}/runs/first", f"{tmp_path}/photos")
    assert (config.data.split, config.data.cache_dir) == (f"{tmp_path}/split.json", "/somebody/cache")
    assert config.model.weights == f"{tmp_path.parent}/first.safetensors"
    monkeypatch.chdir("/")
    assert with_absolute_paths(config) == config


def test_what_is_no_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.model_validate({"data": {"path": "hub:owner/flowers"}})
    assert with_absolute_paths(config) == config


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--out=~/x.csv", "--out=/me/x.csv"),
        ("~/x", "/me/x"),
        ("--a=b~/c", "--a=b~/c"),
        ("~", "/me"),
        ("-", "-"),
    ],
)
def test_a_home_directory_is_found_behind_a_flag(word: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/me")
    assert expand_home(word) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "photos", "--epochs", "3"], ["--data.path", "photos", "--train.epochs", "3"]),
        (["--lr=0.1", "--batch_size", "8"], ["--optim.lr=0.1", "--train.global-batch-size", "8"]),
        (["--output_dir", "x", "--seed", "1"], ["--run-dir", "x", "--train.seed", "1"]),
        (["--train.no-compile", "--run_dir", "-x", "--resume", "auto"], None),
        (["--debug.fast_dev_run", "--optim.options", "{a: 1}", "--help"], None),
    ],
)
def test_habits_from_elsewhere_are_taken(words: list[str], expected: list[str] | None) -> None:
    assert as_ours(words) == (expected or words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device", "cuda:0"], "There is no flag --device here: .*CUDA_VISIBLE_DEVICES=0"),
        (["--report_to", "wandb"], "--tracking.wandb online"),
        (["--resume", "runs/first"], "--run-dir runs/first --resume auto"),
        (["--resume"], "--run-dir DIR --resume auto"),
        (["--resume=x"], "--run-dir x --resume auto"),
        (["--train.epoch", "3"], "Did you mean '--train.epochs'"),
        (["--about.summary", "x"], "There is no flag --about.summary"),
    ],
)
def test_habits_without_a_flag_of_ours_are_answered_in_a_line(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told) as answered:
        as_ours(words)
    assert len(str(answered.value)) < 140
    assert "\n" not in str(answered.value)


def test_every_alias_names_a_flag() -> None:
    words = [word for flag in _ALIASES.values() for word in (flag, "1")]
    assert as_ours(words) == words
