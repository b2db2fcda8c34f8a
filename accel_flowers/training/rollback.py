"""What is done about a loss that is no number: stop, or go back to the last checkpoint with half the learning rate."""

from __future__ import annotations

from accel_flowers.core.errors import Diverged, UserError
from accel_flowers.distributed.collectives import broadcast_from_main
from accel_flowers.tracking.jsonl import forget_after
from accel_flowers.tracking.run_dir import METRICS_FILE
from accel_flowers.tracking.trackers import forget_shown, warn
from accel_flowers.training.run import Session

MAX_ROLLBACKS = 3


def roll_back(session: Session, diverged: Diverged) -> None:
    """Go back to the last checkpoint, with half the learning rate; collective.

    Raises:
        UserError: that is not what the recipe says, or it was done often enough.
    """
    run = session.run
    rollbacks = run.state.rollbacks
    if run.config.train.on_nan == "stop" or rollbacks == MAX_ROLLBACKS:
        tried = f" That was after {rollbacks} rollbacks." if rollbacks else ""
        raise UserError(
            f"{diverged}{tried} What was saved before is untouched. Try a lower --optim.lr, --optim.max-grad-norm 1, "
            "a warm-up (--schedule.warmup-epochs 1)" + ("." if tried else " or --train.on-nan rollback.")
        )
    newest, _ = broadcast_from_main(run.accelerator, session.checkpoints.find_newest)
    assert newest is not None, "one is written before the first step"
    session.restore(newest)
    run.optimizer.zero_grad()
    run.state.rollbacks = rollbacks + 1
    broadcast_from_main(
        run.accelerator,
        lambda: forget_after(session.run_dir / METRICS_FILE, run.state.step, scored=run.is_scored()),
    )
    forget_shown(run.accelerator, run.state.step)
    warn(run.accelerator, diverged)
    run.accelerator.log({"rollbacks": run.state.rollbacks, "diverged_at": diverged.step}, step=run.state.step)
    # As it was saved, with the losses that no line of the log holds yet.
    session.checkpoints.save(run.network, run.optimizer, run.state, run.averaged_network)
    session.progress.line(
        f"{diverged} Going back to step {run.state.step}, with the rate times {run.state.lr_factor:g}."
    )
