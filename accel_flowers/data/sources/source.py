"""What a data set is to the rest of the program: rows with a name and a label, whose bytes can be read in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.data.label_sets import Labels


class ImageSource(Protocol):
    """Images by the number of their row; a folder, a dataset of the hub, or another place with random access.

    Every process of a run makes its own, and all must find the same rows in the same order. It is pickled to loader workers
    and may be read by several threads at once, so it holds no open file whose position they would share.
    """

    @property
    def names(self) -> Sequence[str]:
        """Of each row, all different, with forward slashes: they stand in split.json and in messages."""
        ...

    @property
    def labels(self) -> Labels:
        """Class of each row, int64 [N]; or bool [N, C], for each class whether a row has it, where it may have several."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """A label is the index into them."""
        ...

    @property
    def given_parts(self) -> tuple[str, ...] | None:
        """ "train", "val" or "test" of each row, where the data set comes with parts; else None."""
        ...

    @property
    def digests(self) -> Sequence[str] | None:
        """`content_digest` of each row, where all images were validated when the data set was made; else None.

        Where they are there, a run does not read every image once before it begins.
        """
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def read(self, row: int) -> bytes:
        """The encoded image, as its file holds it.

        Raises:
            OSError: it cannot be read, or is larger than any image.
            BadImageError: there is none.
        """
        ...


def read_image(images: ImageSource, row: int) -> bytes:
    """The encoded image of a row: the one way to its bytes.

    Raises:
        BadImageError: it cannot be read; names the image and the cause.
    """
    try:
        return images.read(row)
    except OSError as error:
        raise BadImageError(images.names[row], error.strerror or str(error)) from None
