"""Accelerate's own trackers (MLflow, Comet, ...) by their names there: numbers and the configuration, as far as they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from accel_flowers.config.schema import Config, flat_fields
from accel_flowers.core.errors import UserError
from accel_flowers.tracking.tracker import Tracker


class AcceleratesTracker(Tracker):
    """One of Accelerate's trackers.

    A resumed run begins a new one there, unless its options name the old one (`{mlflow: {run_id: ...}}`).

    Args:
        name: in Accelerate, such as "mlflow".
        run_dir: files go to the folder of this name in it, where the tracker writes any.
        project: what runs are grouped by there.
        options: arguments of the tracker, as `accelerator.init_trackers(init_kwargs=...)` takes them.

    Raises:
        UserError: it is not installed, or this version of Accelerate does not have it.
    """

    def __init__(self, name: str, run_dir: Path, *, project: str, options: dict[str, Any]) -> None:
        self.name = name
        super().__init__()
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"tracking.also: Accelerate {accelerate.__version__} has no tracker '{name}'.")
        if name not in map(str, get_available_trackers()):
            raise UserError(f"tracking.also: {name} is not installed: pip install {name.replace('_', '-')}")
        self._run_dir, self._project, self._options = run_dir, project, options
        self._inner: GeneralTracker | None = None

    @property
    def tracker(self) -> Any:
        """What Accelerate's tracker hands out."""
        return self._inner.tracker if self._inner else None

    def open(self, run_id: str, next_step: int) -> None:
        """Begin.

        Raises:
            UserError: it does not take the options.
        """
        del run_id, next_step
        made = LOGGER_TYPE_TO_CLASS[self.name]
        # Those that write files name a folder after the run; the others send it as their project.
        place = (self._run_dir.name, self._run_dir / self.name) if made.requires_logging_directory else (self._project,)
        try:
            self._inner = made(*place, **self._options)
            self._inner.start()
        except TypeError as error:
            raise UserError(f"tracking.also: {self.name} does not take {self._options}: {error}") from error

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the configuration flat ("optim.lr"), because they take plain values alone."""
        assert self._inner is not None
        flat = flat_fields(Config.model_validate(values)).items()
        self._inner.store_init_configuration(
            {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in flat}
        )

    def log(self, values: dict[str, Any], step: int | None = None, **words: Any) -> None:
        """Pass the numbers on."""
        assert self._inner is not None
        self._inner.log(values, step=step, **words)

    def finish(self) -> None:
        """End it."""
        assert self._inner is not None
        self._inner.finish()
