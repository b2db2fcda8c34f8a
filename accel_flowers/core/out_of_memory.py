"""A lack of memory, in the words of whichever library met it, as one message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accel_flowers.core.errors import OutOfMemory

_WORDS_FOR_IT = (
    "out of memory",
    "can't allocate memory",  # torch on a CPU
    "CUDNN_STATUS_NOT_SUPPORTED",  # what cuDNN says of a workspace that it did not get
    "unable to find an engine",  # cuDNN, where it searched and none of its ways had room
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "could not create a primitive",  # oneDNN
    "std::bad_alloc",
)
_WHILE_TRAINING = (
    "Leave more memory free and go on with --resume auto, or begin anew with a smaller --train.micro-batch-size."
)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error is one: of a device, of a library of its own words, of Python or C++."""
    # torch's own kind by its name: who serves an exported file has no torch.
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS_FOR_IT)


def first_line(error: BaseException) -> str:
    """Of its message; its name where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def oom_as_user_error(
    advice: str = _WHILE_TRAINING, *, of_workers: str = "(--data.num-workers 0), and go on with --resume auto"
) -> Iterator[None]:
    """Turn a lack of memory in the middle of the work into a message.

    Args:
        advice: what to do where it is a device's memory.
        of_workers: where it is the machine's, how to have fewer workers, and what else.

    Raises:
        OutOfMemory: what to change.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        if isinstance(error, MemoryError):  # the machine's, which pictures, workers and scores take, no forward pass
            raise OutOfMemory(
                f"Out of this machine's memory: {first_line(error)}. Leave more of it free, or give it to fewer workers "
                f"{of_workers}."
            ) from None
        raise OutOfMemory(f"Out of memory: {first_line(error)}. {advice}") from None
