"""What people watch a run with: W&B and TensorBoard. Curves, the confusion matrix, scores of each class, worst pictures.

A step that was shown once is not shown again: a run that is killed goes on from a checkpoint before that, and repeats
the steps between with the same numbers. W&B's own counter would drop what it thinks is old, also what is not there
yet; so steps are a value of their own, and a small file beside W&B's says what was given to it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker
from PIL import Image

from accel_flowers.config import TrackingConfig
from accel_flowers.data.batches import Pictures
from accel_flowers.data.decode import BadImageError
from accel_flowers.errors import UserError
from accel_flowers.files import write_text_durably
from accel_flowers.metrics import Predictions
from accel_flowers.progress import tell

WORST_PICTURES = 16
THUMBNAIL = 224
"""Pixels of the longer side."""
SECONDS_TO_CONNECT, SECONDS_TO_FINISH = 20.0, 60.0
"""How long a network that does not answer may keep a run from starting and from ending."""


@dataclass(frozen=True)
class Scored:
    """A look at one part: what dashboards show of it beside the curves."""

    part: str
    predictions: Predictions
    scores: dict[str, Any]
    """Of `summarize`."""
    class_names: tuple[str, ...]
    pictures: Pictures

    def worst(self, count: int) -> list[int]:
        """Sample numbers of the pictures with the highest loss, the worst first."""
        return [int(sample) for sample in np.argsort(-self.predictions.losses, kind="stable")[:count]]

    def thumbnail(self, sample: int) -> Image.Image:
        """A small copy of a picture; grey where it cannot be read any more."""
        try:
            picture = self.pictures.picture(sample).copy()
        except BadImageError:
            return Image.new("RGB", (THUMBNAIL, THUMBNAIL), "grey")
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        return picture

    def rows_of_worst(self, count: int) -> list[tuple[int, str, str, str, float, float]]:
        """(sample, file, class, predicted class, its probability, loss) of the worst pictures."""
        rows = []
        for sample in self.worst(count):
            predicted = int(self.predictions.predicted[sample])
            names = (self.class_names[int(self.predictions.labels[sample])], self.class_names[predicted])
            confidence = float(self.predictions.probabilities[sample, predicted])
            rows.append(
                (sample, self.pictures.files[sample], *names, confidence, float(self.predictions.losses[sample]))
            )
        return rows


class WandbTracker(GeneralTracker):
    """One W&B run for the whole job, also after a resume.

    Args:
        run_dir: holds W&B's local files, and the list of what was given to it.
        config: project, name and mode.
    """

    name = "wandb"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, run_dir: Path, config: TrackingConfig) -> None:
        super().__init__()
        self._run_dir, self._config = run_dir, config
        self._shown_file = run_dir / "wandb" / "shown.jsonl"
        self._shown: set[tuple[int, str]] = set()
        self.run: Any = None

    @property
    def tracker(self) -> Any:
        """The run, for those who want more of it."""
        return self.run

    def open(self, run_id: str) -> None:
        """Begin the run or go on with it; where the network does not answer, offline.

        Raises:
            UserError: W&B refuses, for example because nobody is logged in.
        """
        import wandb

        init = {
            "project": self._config.wandb_project,
            "name": self._config.wandb_name or self._run_dir.name,
            "id": run_id,
            "resume": "allow",
            "dir": str(self._run_dir),
            "settings": wandb.Settings(
                quiet=True, console="off", init_timeout=SECONDS_TO_CONNECT, finish_timeout=SECONDS_TO_FINISH
            ),
        }
        try:
            self.run = wandb.init(mode="online" if self._config.wandb == "online" else "offline", **init)
        except wandb.errors.CommError as error:
            if "401" in str(error) or "403" in str(error):
                raise UserError(f"W&B does not let you in: {error} Log in with `wandb login`.") from None
            tell(f"W&B does not answer ({str(error).splitlines()[0]}): the run is written for `wandb sync` instead")
            self.run = wandb.init(mode="offline", **init)
        except wandb.errors.Error as error:
            raise UserError(
                f"W&B does not start: {error} Log in with `wandb login`, or use --tracking.wandb offline and `wandb sync` later."
            ) from None
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("epoch", hidden=True)
        for group in ("train", "lr", "speed"):
            self.run.define_metric(f"{group}/*", step_metric="step")
        for group in ("val", "val_ema", "test"):
            self.run.define_metric(f"{group}/*", step_metric="epoch")
            for score, best in (("accuracy", "max"), ("macro_f1", "max"), ("loss", "min")):
                self.run.define_metric(f"{group}/{score}", step_metric="epoch", summary=best)
        self._shown_file.parent.mkdir(exist_ok=True)
        if self._shown_file.exists():
            lines = self._shown_file.read_text("utf-8").splitlines()
            with contextlib.suppress(ValueError):  # the last line of a run that was killed
                for line in lines:
                    step, what = json.loads(line)
                    self._shown.add((step, what))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the configuration, to search and compare runs by."""
        self.run.config.update(values, allow_val_change=True)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Show values once."""
        assert step is not None
        groups = sorted({name.partition("/")[0] for name in values if "/" in name})
        if self._is_new(step, ",".join(groups)):
            self.run.log({"step": step, **values})

    def show(self, scored: Scored, *, step: int, epoch: float) -> None:
        """Confusion matrix, scores of each class, and the worst pictures."""
        import wandb

        if not self._is_new(step, f"tables of {scored.part}"):
            return
        names = list(scored.class_names)
        per_class = wandb.Table(columns=["class", "precision", "recall", "F1", "pictures"])
        for name, row in scored.scores["per_class"].items():
            per_class.add_data(name, row["precision"], row["recall"], row["f1"], row["count"])
        worst = wandb.Table(columns=["picture", "file", "class", "predicted", "confidence", "loss"])
        for sample, *cells in scored.rows_of_worst(WORST_PICTURES):
            worst.add_data(wandb.Image(scored.thumbnail(sample), file_type="jpg"), *cells)
        matrix = wandb.plot.confusion_matrix(
            y_true=scored.predictions.labels.tolist(),
            preds=scored.predictions.predicted.tolist(),
            class_names=names,
            title=f"{scored.part}: true and predicted class",
        )
        tables = {"confusion_matrix": matrix, "per_class": per_class, "worst_pictures": worst}
        self.run.log({"step": step, "epoch": epoch, **{f"{scored.part}/{name}": t for name, t in tables.items()}})

    def keep_model(self, model_dir: Path, last_weights: Path | None) -> None:
        """The model as an artifact: alias best, and last for the last epoch's weights."""
        import wandb

        name = f"model-{self.run.id}"
        if last_weights is not None:
            last = wandb.Artifact(name, type="model", description="weights of the last epoch")
            last.add_file(str(model_dir / "config.json"))
            last.add_file(str(last_weights), name="model.safetensors")
            self.run.log_artifact(last, aliases=["last"])
        best = wandb.Artifact(name, type="model", description="weights of the best epoch")
        best.add_dir(str(model_dir))
        self.run.log_artifact(best, aliases=["best"] if last_weights is not None else ["best", "last"])

    def forget_after(self, step: int) -> None:
        """A rollback: later steps will be shown again, with other values."""
        self._shown = {(shown, what) for shown, what in self._shown if shown <= step}
        write_text_durably(self._shown_file, "".join(json.dumps(entry) + "\n" for entry in sorted(self._shown)))

    def finish(self) -> None:
        """End the run; what a dead network did not take stays on the disk."""
        self.run.finish()

    def _is_new(self, step: int, what: str) -> bool:
        if (step, what) in self._shown:
            return False
        self._shown.add((step, what))
        with self._shown_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, what]) + "\n")
        return True


class TensorBoardTracker(GeneralTracker):
    """Event files for TensorBoard.

    Args:
        directory: where they go.
    """

    name = "tensorboard"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._writer: Any = None

    @property
    def tracker(self) -> Any:
        """The `SummaryWriter`."""
        return self._writer

    def open(self, next_step: int) -> None:
        """Begin, or go on: what was written of `next_step` and later ones is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory), purge_step=next_step)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Show the configuration as text."""
        self._writer.add_text("configuration", "```json\n" + json.dumps(values, indent=1) + "\n```")

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def show(self, scored: Scored, *, step: int, epoch: float) -> None:
        """The confusion matrix and the worst pictures, as images."""
        del epoch
        matrix = draw_matrix(np.asarray(scored.scores["confusion_matrix"]), scored.class_names)
        self._writer.add_image(f"{scored.part}/confusion_matrix", matrix, global_step=step, dataformats="HWC")
        squares = []
        for sample in scored.worst(WORST_PICTURES):
            square = Image.new("RGB", (THUMBNAIL, THUMBNAIL))
            square.paste(scored.thumbnail(sample))
            squares.append(np.asarray(square))
        self._writer.add_images(
            f"{scored.part}/worst_pictures", np.stack(squares), global_step=step, dataformats="NHWC"
        )
        rows = ["| file | class | predicted | confidence | loss |", "|---|---|---|---|---|"]
        for _, file, true, predicted, confidence, loss in scored.rows_of_worst(WORST_PICTURES):
            rows.append(f"| {file} | {true} | {predicted} | {confidence:.3f} | {loss:.3f} |")
        self._writer.add_text(f"{scored.part}/worst_pictures", "\n".join(rows), global_step=step)
        self._writer.flush()

    def finish(self) -> None:
        """Close the files."""
        self._writer.close()


def draw_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """A confusion matrix as a picture, uint8 [H, W, 3]: rows are true classes, columns predicted ones."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = 2.5 + 0.6 * len(class_names)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(class_names)), class_names, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for row, column in np.ndindex(*matrix.shape):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
