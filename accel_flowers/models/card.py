"""The model card: `README.md` of a model folder, as the Hugging Face hub reads it.

What it says follows from the spec alone, so it can be written anew from a folder's `config.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from accel_flowers.config.paths import HUB_PREFIX
from accel_flowers.core.errors import printable
from accel_flowers.core.plural import number_of
from accel_flowers.core.yaml_text import dump_yaml
from accel_flowers.metrics.intervals import accuracy_interval
from accel_flowers.models.ecosystem import form_of, lost
from accel_flowers.models.spec import ModelSpec, TrainingRecord

_METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "map": ("mean_average_precision", "Mean average precision"),
    "micro_f1": ("f1", "Micro F1"),
    "exact_match": ("exact_match", "Exact match"),
}
"""Our name of a score → the hub's kind of metric, and what people call it."""
_PARTS = {"val": "validation", "test": "test"}
_MOST_CLASSES = 100
"""That a card lists; config.json has them all."""
_FEW = 10
"""Training images of a class below which a card warns of it: the report, too, judges no class by fewer."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def model_card(spec: ModelSpec, *, licence: str | None = None) -> str:
    """The text of the card.

    Args:
        spec: of the model.
        licence: as the hub names it ("apache-2.0"); None = not told, for weights and photos decide about it.
    """
    source = spec.training.source if spec.training else None
    dataset = source.removeprefix(HUB_PREFIX) if source else "the user's own images"
    on_hub = source is not None and source.startswith(HUB_PREFIX)
    data = ModelCardData(
        license=licence,
        library_name="timm" if form_of(spec) else "accel-flowers",
        pipeline_tag="image-classification",
        tags=["image-classification", "accel-flowers"],
        datasets=[dataset] if on_hub else None,
        metrics=sorted({_METRICS[name][0] for _, name, _ in _measured(spec)}) or None,
        model_name=_title(spec),
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset if on_hub else "imagefolder",
                dataset_name=dataset,
                dataset_split=_PARTS[part],
                metric_type=_METRICS[name][0],
                metric_name=_METRICS[name][1],
                metric_value=round(value, 4),
            )
            for part, name, value in _measured(spec)
        ]
        or None,
    )
    body = "\n".join(_lines(spec))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _lines(spec: ModelSpec) -> Iterator[str]:
    yield from (f"# {_text(_title(spec))}", "")
    shown = ", ".join(_text(name) for name in spec.class_names[:12])
    several = (
        "each image may have several of them, or none" if spec.several_labels else "each image is taken for one of them"
    )
    yield f"Tells {number_of(len(spec.class_names), 'class', many='classes')} apart ({shown}{', ...' if len(spec.class_names) > 12 else ''}); {several}."
    yield f"The network is `{_code(spec.architecture)}`, trained with accel-flowers {spec.accel_flowers}."
    yield from ("", "## Measured", "", *_figures(spec))
    yield from ("", "## Use", "", *_use(spec))
    if missing := lost(spec):
        yield from ("", "### What timm and transformers do not know", "", *(f"- {_text(each)}" for each in missing))
    if spec.training:
        yield from ("", "## Data", "", *_data(spec.training, spec.class_names))
    yield from ("", "## Limits", "", *(f"- {each}" for each in _limits(spec)))
    if spec.training and spec.training.settings:
        yield from ("", "## How it was trained", "", *_training(spec.training))
    yield ""


def _title(spec: ModelSpec) -> str:
    what = printable(spec.training.source.rpartition("/")[2]) if spec.training else "images"
    return f"{what}, {number_of(len(spec.class_names), 'class', many='classes')} ({spec.architecture})"


def _measured(spec: ModelSpec) -> list[tuple[str, str, float]]:
    """Part, name and value of each score that has a name on the hub."""
    return [
        (part, name, scores[name])
        for part, scores in spec.scores.items()
        if part in _PARTS and isinstance(scores, Mapping)
        for name in _METRICS
        if isinstance(scores.get(name), (int, float))
    ]


def _figures(spec: ModelSpec) -> Iterator[str]:
    if not _measured(spec):
        yield "No figure was recorded."
        return
    yield "| part | images | score | 95 % interval |"
    yield "|---|---|---|---|"
    for part, name, value in _measured(spec):
        number = spec.scores[part].get("num_images")
        interval = ""
        if name in ("accuracy", "exact_match") and isinstance(number, int) and number > 0:
            found = accuracy_interval(round(value * number), number)
            interval = f"{found.low:.1%} to {found.high:.1%}"
        shown = "" if number is None else f"{number:,}"
        yield f"| {_PARTS[part]} | {shown} | {_METRICS[name][1]} {value:.1%} | {interval} |"
    yield ""
    if "test" in spec.scores:
        yield "The test images were scored once, at the end. Validation chose the best epoch, so its figures are optimistically biased."
    else:
        yield "Validation chose the best epoch, so its figures are optimistically biased; no image was kept apart for a test."


def _use(spec: ModelSpec) -> Iterator[str]:
    yield from ("```bash", "accel-flowers predict MODEL_DIR photo.jpg", "```")
    if form_of(spec) is None:
        return
    yield from (
        "",
        "With transformers (and timm), MODEL_DIR being this folder or its name on the hub:",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'classify = pipeline("image-classification", model="MODEL_DIR")',
        'print(classify("photo.jpg"))',
        "```",
        "",
        'With timm alone: `timm.create_model("local-dir:MODEL_DIR", pretrained=True)`, from the hub `"hf-hub:OWNER/NAME"`.',
    )


def _data(record: TrainingRecord, class_names: Sequence[str]) -> Iterator[str]:
    parts = list(record.images)
    yield (
        f"From `{_code(record.source)}`: "
        + ", ".join(f"{number_of(sum(record.images[part].values()), 'image')} of {part}" for part in parts)
        + "."
    )
    yield from ("", f"| class | {' | '.join(parts)} |", f"|---|{'---|' * len(parts)}")
    for name in class_names[:_MOST_CLASSES]:
        counts = " | ".join(f"{record.images[part].get(name, 0):,}" for part in parts)
        yield f"| {_text(name)} | {counts} |"
    if more := len(class_names) - _MOST_CLASSES:
        yield from ("", f"and {number_of(more, 'class', many='classes')} more.") if more > 0 else ()


def _limits(spec: ModelSpec) -> Iterator[str]:
    if spec.several_labels:
        yield "It knows its classes only: of what else an image shows it says nothing."
    else:
        yield "It names one of its classes for any image, also for one that shows none of them."
    yield "The figures are of images like those that it was trained on; light, cameras and places that differ may lower them."
    if spec.temperature is None and not spec.several_labels:
        yield "Its probabilities are not calibrated."
    record = spec.training
    if record and (train := record.images.get("train")):
        few = [name for name in spec.class_names if train.get(name, 0) < _FEW]
        if few:
            named = ", ".join(_text(name) for name in few[:12]) + (", ..." if len(few) > 12 else "")
            yield f"{number_of(len(few), 'class', many='classes')} had fewer images to learn from than {_FEW} ({named}): do not rely on them."


def _training(record: TrainingRecord) -> Iterator[str]:
    yield "With these settings as `recipe.yaml` and the same images, the same run again, on any number of processes:"
    yield from ("", "```bash", "accel-flowers train recipe.yaml --data.path IMAGES --run-dir runs/again", "```", "")
    yield from ("```yaml", *dump_yaml(record.settings).replace("```", "'''").splitlines(), "```")


def _text(text: str) -> str:
    """A name inside a sentence or a table: nothing in it is markup."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def _code(text: str) -> str:
    """A name between backticks."""
    return printable(text).replace("`", "'")
