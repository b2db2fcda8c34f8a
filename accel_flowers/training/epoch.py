"""What happens when an epoch or the run ends: score, remember the best, save, show; every function is collective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from accel_flowers.core.errors import Interrupted
from accel_flowers.core.plural import number_of
from accel_flowers.distributed.collectives import broadcast_from_main
from accel_flowers.distributed.ddp import average_buffers
from accel_flowers.inference.loop import predict_loader
from accel_flowers.metrics.classification import Predictions, Scores, headline, in_short, lower_is_better, summarize
from accel_flowers.metrics.intervals import accuracy_interval
from accel_flowers.metrics.predictions import PREDICTIONS_FILE, save_predictions
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.models.saved import WEIGHTS, save_model
from accel_flowers.models.views import MeanOfViews
from accel_flowers.tracking.run_dir import METRICS_FILE, MODEL_DIR, read_metrics
from accel_flowers.tracking.scored import Scored
from accel_flowers.tracking.trackers import prefixed, show, show_model, shows_more, write_summary
from accel_flowers.training.checkpoint import AVERAGED, weights_to_save
from accel_flowers.training.choose import Choice, choose
from accel_flowers.training.debugging import describe_overfitting
from accel_flowers.training.meter import Meter
from accel_flowers.training.run import Session


class SeenEnough(Exception):
    """Whoever watches a run ends it with this epoch; a checkpoint was written."""


def save(
    session: Session, meter: Meter | None = None, *, on_saved: Callable[[dict[str, Tensor]], None] | None = None
) -> None:
    """Begin to write a checkpoint of where the run stands.

    Args:
        session: the run in its directory.
        meter: holds losses that are in no line of the log yet.
        on_saved: see `Checkpoints.save`.

    Raises:
        UserError: the one before it cannot be written.
    """
    run = session.run
    run.state.pending_losses = meter.pending() if meter else []
    run.state.pending_parts = meter.pending_parts() if meter else []
    session.checkpoints.save(run.network, run.optimizer, run.state, run.averaged_network, on_saved=on_saved)
    session.preemption.saved()


def end_epoch(session: Session) -> str:
    """Score the validation part, save, remember whether this is the best so far.

    Returns:
        The line for people.

    Raises:
        Interrupted: a signal; a checkpoint was written, and the evaluation will be done again.
        SeenEnough: whoever watches the run has.
    """
    run = session.run
    state, metric = run.state, run.config.train.best_metric
    epoch = run.plan.epochs_completed_at(state.step)
    try:
        scored_parts = {"val": _score(session, "val", run.network)}
        if run.ema:
            scored_parts["val_ema"] = _score(session, "val", run.ema.network)
    except Interrupted:
        save(session)
        session.checkpoints.wait()
        raise
    kept = scored_parts.get("val_ema", scored_parts["val"])
    is_best = state.update_best(
        kept.scores[metric],
        loss=kept.scores["loss"],
        epoch=epoch,
        lower_is_better=lower_is_better(metric),
        keep_ranked=run.config.soup.epochs or 0,
    )
    values: dict[str, float] = {"epoch": run.plan.epoch_at(state.step)}
    for name, scored in scored_parts.items():
        values |= prefixed(name, headline(scored.scores))
    run.accelerator.log(values, step=state.step)
    save(session, on_saved=_model_writer(session, {"val": kept.scores}) if is_best else None)
    if shows_more(run.accelerator):
        session.checkpoints.wait()  # nothing that a tracker draws, and fails at, comes before it
        show(run.accelerator, kept, step=state.step, epoch=values["epoch"])
    if session.watch:
        value = float(kept.scores[metric])
        if broadcast_from_main(run.accelerator, lambda: session.watch is not None and session.watch(epoch, value)):
            session.checkpoints.wait()
            raise SeenEnough
    averaged = f"  averaged {_as_text(kept.scores)}" if run.ema else ""
    best = "  best so far" if is_best else ""
    return f"epoch {epoch}/{run.plan.epochs}  val {_as_text(scored_parts['val'].scores)}{averaged}{best}"


def finish(session: Session) -> dict[str, Scores]:
    """Score the best weights: validation again, and the test part for the first and only time.

    Returns:
        Part → scores.

    Raises:
        Interrupted: a signal; the last checkpoint is that of the last epoch's end.
    """
    run, progress = session.run, session.progress
    state, network = run.state, run.eval_network
    last = session.checkpoints.weights_of(state.step, AVERAGED if run.ema else WEIGHTS)
    choice = choose(session, network, partial(_score, session, "val"))
    scored_parts = {"val": choice.val}
    if "test" in run.loaders:
        scored_parts["test"] = _score(session, "test", MeanOfViews(network, choice.tta))
    fitted = broadcast_from_main(run.accelerator, lambda: _fit(session, choice.val.predictions))
    scored_parts = {part: scored.served_with(fitted) for part, scored in scored_parts.items()}
    results: dict[str, Any] = {part: scored.scores for part, scored in scored_parts.items()}
    where = {"epoch": state.best_epoch, "step": state.best_step}
    summary = {f"best/{run.config.train.best_metric}": state.best_value, **prefixed("best", where)}
    if "test" in scored_parts:
        epoch = run.plan.epoch_at(state.step)
        summary |= prefixed("test", headline(results["test"]))
        run.accelerator.log({"epoch": epoch, **prefixed("test", headline(results["test"]))}, step=state.step)
    broadcast_from_main(run.accelerator, lambda: _keep_predictions(session, scored_parts))
    ends_with = {"tta": choice.tta, **fitted}
    weights = weights_to_save(network, run.accelerator)
    # Anew: a run killed after its best checkpoint may not have come to it.
    broadcast_from_main(run.accelerator, lambda: _model_writer(session, results, choice, **ends_with)(weights))
    if "test" in scored_parts:
        show(run.accelerator, scored_parts["test"], step=state.step, epoch=run.plan.epoch_at(state.step))
    write_summary(run.accelerator, summary)
    show_model(
        run.accelerator, session.run_dir / MODEL_DIR, last_weights=None if state.best_step == state.step else last
    )

    count = state.evaluations or state.epochs_scored
    if run.config.debug.overfit_batches:
        count = 1  # of what was learnt no choice is biased
    biased = f"  (best of {count} validation evaluations: optimistically biased)" if count > 1 else ""
    for line in [*choice.told, *(scored_parts["val"].predictions.describe_fit(run.spec.class_names) if fitted else [])]:
        progress.line(line)
    progress.line(f"best epoch {state.best_epoch}: val {_as_text(results['val'])}{biased}")
    if "test" in results:
        progress.line(f"test (evaluated once): {_as_text(results['test'])}  ({_how_sure(results['test'])})")
    scores = {
        part: scored.predictions.scores_class.from_summary(part, scored.scores) for part, scored in scored_parts.items()
    }
    progress.line(scores["test" if "test" in scores else "val"].baseline_in_words())
    if run.config.debug.overfit_batches and run.accelerator.is_main_process:
        losses = [line["train/loss"] for line in read_metrics(session.run_dir / METRICS_FILE) if "train/loss" in line]
        progress.line(
            describe_overfitting(
                losses[-1] if run.config.loss.is_plain else None,
                results["val"]["loss"],
                scored_parts["val"].predictions.loss_of_a_guess,
            )
        )
    progress.line(f"model: {session.run_dir / MODEL_DIR}")
    return scores


def _score(session: Session, part: str, network: nn.Module) -> Scored:
    run = session.run
    set_training_mode(network)  # it says whose statistics move
    average_buffers(network, run.accelerator)
    predictions: Predictions = predict_loader(
        network,
        run.loaders[part],
        run.input_of(part),
        run.accelerator,
        num_images=len(run.parts[part]),
        after_round=session.preemption.while_scoring(run.state.step),
    )
    names = run.spec.class_names
    return Scored(part, predictions, summarize(predictions, names), names, run.parts[part])


def _keep_predictions(session: Session, scored_parts: Mapping[str, Scored]) -> None:
    """Write what the report reads."""
    run = session.run
    save_predictions(
        session.run_dir / PREDICTIONS_FILE,
        {part: scored.predictions for part, scored in scored_parts.items()},
        {part: run.parts[part].files for part in scored_parts},
        run.spec.class_names,
    )


def _fit(session: Session, val: Predictions) -> dict[str, Any]:
    """What makes the model's answers truthful, by the name that it has in `model/`: a temperature, or thresholds."""
    if session.run.config.debug.overfit_batches:
        return {}  # validation is what it was trained on
    return val.fit()


def _how_sure(scores: Mapping[str, Any]) -> str:
    """How many images a score is of, and the interval that follows for the accuracy."""
    count = scores["num_images"]
    told = number_of(count, "picture")
    if "accuracy" not in scores or not count:
        return told
    interval = accuracy_interval(round(scores["accuracy"] * count), count)
    return f"{told}; 95 % interval of the accuracy {interval.low:.4f} to {interval.high:.4f}"


def _as_text(scores: dict[str, Any]) -> str:
    return in_short(scores, joint="  ")


def _model_writer(
    session: Session, results: dict[str, Any], choice: Choice | None = None, **ends_with: Any
) -> Callable[[dict[str, Tensor]], None]:
    """Weights → `model/`, with these scores, what they are a mean of where they are one, and with more fields of its spec."""
    run = session.run
    where: dict[str, Any] = {"epoch": run.state.best_epoch, "step": run.state.best_step}
    if choice and len(choice.epochs) > 1:
        where["mean_of_epochs"] = list(choice.epochs)
    if choice and choice.start:
        where["share_of_start"] = choice.start
    described = {part: {**scores, **where} for part, scores in results.items()}
    spec = run.spec.model_copy(update={"scores": described, **ends_with})
    return lambda weights: save_model(session.run_dir / MODEL_DIR, weights, spec, seen=run.seen)
