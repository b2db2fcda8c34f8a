"""The photos that a run names: found again, decoded, made small. One that is gone is told, never an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from accel_flowers.core.errors import UserError
from accel_flowers.data.decoding.pillow import BadImageError, decode_image, verify_image

MAX_MEASURED = 5000
"""Images whose size is looked at; of more, evenly spread ones."""


class Photos:
    """Where the photos of a run are.

    Args:
        source: the run's data.path, or where they are now: a folder, a .zip, or hub:OWNER/NAME.

    Attributes:
        problem: why there is none at all; empty where there is something.
    """

    def __init__(self, source: str | None) -> None:
        self.source = source or ""
        self.problem = ""
        self._root: Path | None = None
        self._rows: Mapping[str, bytes | Path] = {}
        path = Path(self.source).expanduser()
        if self.source and path.is_dir():
            self._root = path
        elif self.source:
            self._load_archive()
        else:
            self.problem = "the run does not say where its pictures were"

    def _load_archive(self) -> None:
        from accel_flowers.data.sources.load import load_images  # seconds of import that a folder does not need

        try:
            table = load_images(self.source)
        except UserError as error:
            self.problem = str(error)
            return
        images = table.dataset.with_format("arrow")["image"].to_pylist()
        self._rows = {
            name: image["bytes"] if image["bytes"] is not None else Path(image["path"])
            for name, image in zip(table.files, images, strict=True)
        }

    def _place(self, file: str) -> bytes | Path | None:
        """Where an image should be, or its bytes; None for a name that leads out of the folder."""
        if self._root is None:
            return self._rows.get(file)
        leads_out = Path(file).is_absolute() or ".." in Path(file).parts
        return None if leads_out else self._root / file

    def has(self, file: str) -> bool:
        """Whether the image is there."""
        place = self._place(file)
        return isinstance(place, bytes) or (place is not None and place.is_file())

    def read(self, file: str) -> bytes:
        """The encoded image.

        Raises:
            OSError: it is not there.
        """
        place = self._place(file)
        if place is None:
            raise FileNotFoundError(file)
        return place if isinstance(place, bytes) else place.read_bytes()

    def open(self, file: str) -> Image.Image | None:
        """The upright RGB image; None where it is gone or can no longer be read."""
        try:
            return decode_image(self.read(file), file)
        except (OSError, BadImageError):
            return None

    def open_all(self, files: Sequence[str]) -> dict[str, Image.Image | None]:
        """Several at once; reading and decoding leave Python's lock."""
        wanted = list(dict.fromkeys(files))
        with ThreadPoolExecutor(4) as pool:
            return dict(zip(wanted, pool.map(self.open, wanted), strict=True))

    def sizes(self, files: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Width and height in pixels of each image that can be read, upright; of many, `MAX_MEASURED` of them."""
        step = max(1, -(-len(files) // MAX_MEASURED))
        wanted = files[::step]

        def measure(file: str) -> tuple[int, int] | None:
            try:
                info = verify_image(self.read(file), file)
            except (OSError, BadImageError):
                return None
            return info.width, info.height

        with ThreadPoolExecutor(4) as pool:
            found = zip(wanted, pool.map(measure, wanted), strict=True)
            return {file: size for file, size in found if size is not None}
