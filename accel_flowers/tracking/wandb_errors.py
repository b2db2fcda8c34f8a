"""Reasons of W&B's own why a run cannot start, as sentences for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from accel_flowers.core.errors import UserError, error_text

_WITHOUT = "or go without it: --tracking.wandb offline, or off"
LOG_IN = f"Log in with `wandb login`, {_WITHOUT}."
"""What to do where W&B refuses the key, or has none."""
_REFUSED = ("401", "403", "not logged in", "invalid", "api key", "permission")
"""Words of W&B's errors about the key, in contrast to a network that does not answer."""


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Reasons of W&B's own why a run cannot start, each as a sentence.

    Raises:
        UserError: one of them; what else goes wrong is W&B's bug, which ends no run.
    """
    import wandb

    try:
        yield
    except UserError:
        raise
    except wandb.errors.UsageError as error:
        advice = LOG_IN if is_refusal(error) else f"Mend that, {_WITHOUT}."
        raise UserError(f"W&B does not start: {error_text(error)}. {advice}") from None
    except ValueError as error:  # pydantic's: of a setting that the environment gives
        said = "; ".join(f"{mistake['loc'][-1]}: {mistake['msg']}" for mistake in _mistakes(error)) or error_text(error)
        raise UserError(
            f"W&B does not take its settings ({said}). Mend WANDB_... of the environment, {_WITHOUT}."
        ) from None
    except (wandb.errors.Error, RuntimeError, OSError) as error:  # a home directory that is not there, a full disk
        raise UserError(f"W&B does not start: {error_text(error)}. Mend that, {_WITHOUT}.") from None


def _mistakes(error: ValueError) -> list[Any]:
    return list(error.errors()) if isinstance(error, ValidationError) else []


def is_refusal(error: Exception) -> bool:
    """Whether an error of W&B's is about the key, and not about a network that does not answer."""
    return any(word in str(error).lower() for word in _REFUSED)
