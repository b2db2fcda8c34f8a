"""Drawn flower images, so that a newcomer can train a first model without downloading anything.

`draw_sample` writes five kinds of flowers as JPEG files, one folder per kind. The kinds differ in shape, not in
colour: a model has to look at petals to tell them apart, as it would have to with photographs. The images are for
trying the product and for tests; a model trained on them knows nothing about photographs of real flowers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import replace_folder

Colour: TypeAlias = tuple[int, int, int]
Points: TypeAlias = npt.NDArray[np.complex128]  # x + iy, because turning a shape is then one multiplication

_SMALLEST_IMAGE = 32  # below this the petals are no longer visible
_LARGEST_IMAGE = 2048
_OVERSAMPLING = 3  # drawn this much larger and then reduced: Pillow's shapes have hard edges
_ALONG = np.linspace(0, 1, 16)  # the way from one end of a petal or a stem to the other
# Half the width of a petal on that way.
_BLUNT = np.sqrt(_ALONG * (1 - _ALONG**4))
_POINTED = 1.4 * np.sqrt(_ALONG) * (1 - _ALONG) + 0.15 * _BLUNT
_BELLIED = np.sin(np.pi * _ALONG**0.75) ** 0.65
_CIRCLE: Points = np.exp(1j * np.linspace(0, 2 * np.pi, 33))
_GOLDEN_ANGLE = np.pi * (3 - 5**0.5)
_JPEG_QUALITY = 90

_WHITE, _CREAM, _YELLOW, _ORANGE = (246, 243, 236), (250, 232, 176), (250, 207, 44), (243, 137, 34)
_RED, _PINK, _MAGENTA, _LILAC = (203, 32, 44), (241, 148, 182), (196, 44, 122), (168, 124, 206)
_BROWN, _GREEN = (74, 45, 26), (92, 138, 58)


def draw_sample(directory: Path, *, images_per_class: int = 200, image_size: int = 96, seed: int = 0) -> Path:
    """Draw `images_per_class` square images of every kind of flower into `directory` and return it.

    The files are `directory/<class>/<class>_0001.jpg` and so on. An image depends on the seed, its class and its
    number only: asking for more images later gives the same first ones. The directory must be new or empty; it is
    filled at the very end, so that an interrupted run leaves nothing behind that looks like a data set.
    """
    if images_per_class < 1:
        raise UserError(f"Cannot draw {images_per_class} images per class; ask for 1 or more.")
    if not _SMALLEST_IMAGE <= image_size <= _LARGEST_IMAGE:
        raise UserError(
            f"Cannot draw pictures of {image_size} pixels; ask for {_SMALLEST_IMAGE} or more, up to {_LARGEST_IMAGE}."
        )
    target = directory.resolve()
    try:
        if target.exists() and any(target.iterdir()):
            raise UserError(
                f"'{directory}' is not empty, and sample pictures never overwrite anything. "
                "Name a new folder, or empty this one first."
            )
        with ExitStack() as aside:
            if target.exists():
                # The folder may be the one the user stands in, so it is filled rather than replaced.
                folders = {name: aside.enter_context(replace_folder(target / name)) for name in _FLOWERS}
            else:
                whole = aside.enter_context(replace_folder(target))
                folders = {name: whole / name for name in _FLOWERS}
            for class_name, folder in folders.items():
                folder.mkdir(exist_ok=True)
                for number in range(1, images_per_class + 1):
                    image = _draw_image(class_name, image_size, _generator(seed, class_name, number))
                    image.save(folder / f"{class_name}_{number:04d}.jpg", quality=_JPEG_QUALITY)
    except OSError as error:
        raise UserError(
            f"Cannot write sample pictures to '{directory}': {error.strerror}. Name another folder."
        ) from error
    return directory


def _generator(seed: int, class_name: str, number: int) -> np.random.Generator:
    """The source of chance of one image, independent of every other image's."""
    key = (seed % 2**64) << 64 | list(_FLOWERS).index(class_name) << 32 | number
    return np.random.Generator(np.random.Philox(key=key))


def _draw_image(class_name: str, image_size: int, rng: np.random.Generator) -> Image.Image:
    """One flower in front of a backdrop with some clutter, as if taken with a simple camera."""
    # What lies behind is out of focus, so it needs no oversampling.
    behind = _draw_backdrop(image_size, rng)
    _draw_leaves(behind, rng)
    if rng.random() < 0.4:
        _draw_distant_flower(behind, rng)
    behind = behind.filter(ImageFilter.GaussianBlur(image_size * rng.uniform(0.004, 0.016)))
    size = image_size * _OVERSAMPLING
    canvas = behind.resize((size, size), Image.Resampling.BICUBIC)
    _draw_flower(class_name, canvas, rng)
    if rng.random() < 0.5:
        _draw_grass(canvas, rng)
    return _develop(canvas.resize((image_size, image_size), Image.Resampling.BOX), rng)


def _develop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Vary exposure, warmth of the light, focus and sensor noise, none of which tell one flower from another."""
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(image.width * rng.uniform(0.003, 0.008)))
    warmth = rng.uniform(-0.12, 0.12)
    gains = rng.uniform(0.7, 1.2) * np.array([1 + warmth, 1.0, 1 - warmth])
    pixels = np.asarray(image, dtype=np.float64) * gains
    pixels += rng.normal(0, rng.uniform(0, 6), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------------------- drawing tools


@dataclass(frozen=True)
class _Pen:
    """Draws shapes given in a flower's own coordinates, where the flower fills the unit circle."""

    canvas: Image.Image
    centre: complex = 0  # as a fraction of the canvas, as is the scale
    scale: float = 1.0
    turn: complex = 1
    squash: float = 1.0  # less than 1 for a flower that is seen from the side

    def fill(self, shape: Points, colour: Colour, opacity: float = 1.0) -> None:
        self._draw.polygon(self._pixels(shape), fill=(*colour, round(255 * opacity)))

    def stroke(self, shape: Points, colour: Colour, width: float, opacity: float = 1.0) -> None:
        pixels = max(1, round(width * self.scale * self.canvas.width))
        self._draw.line(self._pixels(shape), fill=(*colour, round(255 * opacity)), width=pixels, joint="curve")

    @cached_property
    def _draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.canvas, "RGBA")  # this mode mixes colours by their opacity

    def _pixels(self, shape: Points) -> list[float]:
        placed = self.centre + self.scale * self.turn * (shape.real + 1j * self.squash * shape.imag)
        return list((self.canvas.width * placed).view(np.float64).tolist())


def _direction(angle: float) -> complex:
    return complex(np.cos(angle), np.sin(angle))


def _turn(rng: np.random.Generator) -> complex:
    return _direction(rng.uniform(0, 2 * np.pi))


def _place(rng: np.random.Generator, margin: float = 0.0) -> complex:
    return complex(*rng.uniform(margin, 1 - margin, 2))


def _shade(colour: Colour, amount: float) -> Colour:
    """The colour mixed with white (amount up to 1) or with black (amount down to -1)."""
    goal = 255 if amount > 0 else 0
    red, green, blue = (round(part + (goal - part) * min(abs(amount), 1)) for part in colour)
    return red, green, blue


def _vary(colour: Colour, spread: float, rng: np.random.Generator) -> Colour:
    brightness = rng.normal(0, spread)
    red, green, blue = (int(part) for part in np.clip(rng.normal(colour, spread / 2) + brightness, 0, 255))
    return red, green, blue


def _choose(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    return _vary(colours[rng.integers(len(colours))], 12, rng)


def _disc(radius: float, centre: complex = 0) -> Points:
    return centre + radius * _CIRCLE


def _petal(length: float, width: float, profile: npt.NDArray[np.float64]) -> Points:
    """The outline of a petal or a leaf along the x axis."""
    side: Points = length * _ALONG + 0.5j * width * profile
    return np.concatenate([side, side[::-1].conj()])


def _curve(start: complex, bend: complex, end: complex) -> Points:
    curve: Points = start * (1 - _ALONG) ** 2 + 2 * bend * _ALONG * (1 - _ALONG) + end * _ALONG**2
    return curve


# ---------------------------------------------------------------------------------------------- surroundings


@dataclass(frozen=True)
class _Backdrop:
    """A texture between two colours; the grains are its patches, counted down and across the image."""

    dark: Colour
    light: Colour
    grains: tuple[tuple[int, int], ...]


_BACKDROPS = (
    _Backdrop((38, 66, 24), (142, 176, 84), ((3, 3), (40, 10))),  # meadow
    _Backdrop((18, 38, 22), (112, 150, 74), ((6, 6), (12, 12))),  # foliage
    _Backdrop((96, 150, 214), (236, 242, 250), ((3, 2), (7, 5))),  # sky
    _Backdrop((48, 32, 22), (146, 108, 78), ((8, 8), (60, 60))),  # soil
    _Backdrop((92, 60, 36), (198, 158, 112), ((8, 1), (80, 4))),  # wood
    _Backdrop((54, 34, 62), (246, 170, 128), ((3, 1), (5, 5))),  # dusk
    _Backdrop((84, 86, 90), (190, 188, 182), ((5, 6), (50, 50))),  # stone
)


def _draw_backdrop(size: int, rng: np.random.Generator) -> Image.Image:
    backdrop = _BACKDROPS[rng.integers(len(_BACKDROPS))]
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, grain, dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        for grain in backdrop.grains
    )
    texture = ImageChops.blend(coarse, fine, rng.uniform(0.2, 0.5))
    return ImageOps.colorize(texture, _vary(backdrop.dark, 12, rng), _vary(backdrop.light, 12, rng))


def _draw_leaves(canvas: Image.Image, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(0, 7)):
        pen = _Pen(canvas, _place(rng), rng.uniform(0.15, 0.4), _turn(rng))
        colour = _vary(_GREEN, 22, rng)
        pen.fill(_petal(1, rng.uniform(0.25, 0.6), _POINTED), colour)
        pen.stroke(np.array([0, 0.9 + 0j]), _shade(colour, 0.25), 0.03)


def _draw_grass(canvas: Image.Image, rng: np.random.Generator) -> None:
    """A few blades in front of everything."""
    pen = _Pen(canvas)
    for _ in range(rng.integers(2, 7)):
        root = complex(rng.uniform(0, 1), 1.02)
        tip = root + complex(rng.uniform(-0.2, 0.2), -rng.uniform(0.15, 0.5))
        bend = complex(root.real, tip.imag)
        blade = np.concatenate([_curve(root - 0.008, bend, tip), _curve(tip, bend, root + 0.008)])
        pen.fill(blade, _vary(_GREEN, 25, rng))


def _draw_distant_flower(canvas: Image.Image, rng: np.random.Generator) -> None:
    """A spot of petals far out of focus: colour without a shape that could be recognised."""
    colour = _choose((_WHITE, _YELLOW, _ORANGE, _RED, _PINK, _LILAC), rng)
    pen = _Pen(canvas, _place(rng), rng.uniform(0.06, 0.14))
    for radius in (1.0, 0.9, 0.8, 0.7, 0.6):
        pen.fill(_disc(radius), colour, 0.3)


def _draw_flower(class_name: str, canvas: Image.Image, rng: np.random.Generator) -> None:
    """The stem and the head of a flower; heads look at the viewer, except for the tulip's, which stands upright."""
    centre, radius, lean = _place(rng, margin=0.42), rng.uniform(0.31, 0.43), rng.uniform(-0.45, 0.45)
    stem = _curve(centre, centre + 0.4j, centre + 1.2j * _direction(lean))
    stem_colour = _vary(_GREEN, 18, rng)
    pen = _Pen(canvas)
    pen.stroke(stem, _shade(stem_colour, -0.25), 0.14 * radius)
    pen.stroke(stem - 0.004, stem_colour, 0.08 * radius)
    if class_name == "tulip":
        pen = _Pen(canvas, centre - 0.05j, 0.85 * radius, _direction(-0.6 * lean))
    else:
        pen = _Pen(canvas, centre, radius, _turn(rng), rng.uniform(0.72, 1))
    _FLOWERS[class_name](pen, rng)


# ---------------------------------------------------------------------------------------------- flower heads


def _draw_petal(
    pen: _Pen, turn: complex, outline: Points, colour: Colour, *, base: complex = 0, lean: float = 0.0
) -> None:
    """One petal with a darker edge and a lighter fold along its middle."""
    for length, width, tone, opacity in ((1, 1, -0.3, 1), (0.97, 0.8, 0, 1), (0.9, 0.28, 0.3, 0.55)):
        part = length * outline.real + 1j * (width * outline.imag + lean * np.sqrt(outline.real))
        pen.fill(base + turn * part, _shade(colour, tone), opacity)


def _draw_daisy(pen: _Pen, rng: np.random.Generator) -> None:
    """Many thin blunt petals around a small disc."""
    colour = _choose((_WHITE, _WHITE, _CREAM, _YELLOW, _ORANGE, _PINK, _MAGENTA, _LILAC), rng)
    petals = int(rng.integers(15, 27))
    for layer in (0.0, 0.5):
        for petal in range(petals):
            turn = _direction(2 * np.pi * (petal + layer + rng.normal(0, 0.1)) / petals)
            outline = _petal(rng.uniform(0.86, 1) - 0.1 * layer, rng.uniform(3.4, 4.4) / petals, _BLUNT)
            _draw_petal(pen, turn, outline, _shade(colour, rng.normal(0.1 * layer - 0.08, 0.05)))
    radius = rng.uniform(0.2, 0.28)
    heart = _choose((_YELLOW, _ORANGE, _GREEN, _BROWN), rng)
    pen.fill(_disc(radius), _shade(heart, -0.3))
    pen.fill(_disc(radius * 0.85, -0.02), heart)
    _draw_seeds(pen, radius * 0.8, 40, _shade(heart, 0.35))


def _draw_seeds(pen: _Pen, radius: float, count: int, colour: Colour) -> None:
    """Dots in the spirals in which composite flowers set their seeds."""
    for seed in range(count):
        distance = radius * np.sqrt((seed + 0.5) / count)
        place = distance * _direction(seed * _GOLDEN_ANGLE)
        pen.fill(_disc(0.6 * radius / np.sqrt(count), place), colour)


def _draw_sunflower(pen: _Pen, rng: np.random.Generator) -> None:
    """Pointed petals around a large dark disc full of seeds."""
    colour = _choose((_YELLOW, _YELLOW, _YELLOW, _ORANGE, _CREAM, _RED, _PINK), rng)
    petals = int(rng.integers(13, 20))
    for layer in (0.0, 0.5):
        for petal in range(petals):
            turn = _direction(2 * np.pi * (petal + layer + rng.normal(0, 0.1)) / petals)
            outline = _petal(rng.uniform(0.9, 1.06), rng.uniform(4.6, 5.8) / petals, _POINTED)
            _draw_petal(pen, turn, outline, _shade(colour, rng.normal(0.2 * layer - 0.15, 0.05)))
    radius = rng.uniform(0.46, 0.6)
    heart = _vary(_BROWN, 9, rng)
    pen.fill(_disc(radius), _shade(heart, -0.3))
    _draw_seeds(pen, radius * 0.95, 120, _shade(heart, 0.25))
    pen.fill(_disc(radius * 0.42), _shade(heart, -0.35), 0.7)
    _draw_seeds(pen, radius * 0.4, 40, _shade(_vary(_GREEN, 15, rng), -0.2))


def _draw_dandelion(pen: _Pen, rng: np.random.Generator) -> None:
    if rng.random() < 0.3:
        _draw_dandelion_clock(pen, rng)
        return
    colour = _choose((_YELLOW, _YELLOW, _YELLOW, _ORANGE, _ORANGE, _CREAM, _PINK), rng)
    # From the longest rays at the back to the shortest in front, every ring a little lighter.
    for reach in (1.0, 0.88, 0.74, 0.58, 0.42, 0.26):
        rays = int(20 + 50 * reach)
        for ray in range(rays):
            outline = _petal(reach * rng.uniform(0.84, 1.04), rng.uniform(0.05, 0.08), _BLUNT)
            turn = _direction(2 * np.pi * (ray + rng.uniform(-0.6, 0.6)) / rays)
            pen.fill(outline * turn, _shade(colour, rng.normal(0.16 - 0.42 * reach, 0.12)))


def _draw_dandelion_clock(pen: _Pen, rng: np.random.Generator) -> None:
    """The seed head: a see-through ball of parachutes."""
    colour = _choose((_WHITE, _WHITE, _CREAM), rng)
    pen.fill(_disc(0.92), colour, 0.25)
    seeds = int(rng.integers(60, 90))
    for seed in range(seeds):
        # Even spacing on a ball, seen from the front.
        end = np.sin(np.pi / 2 * np.sqrt((seed + 0.5) / seeds)) * _direction(seed * _GOLDEN_ANGLE)
        end *= rng.uniform(0.8, 0.92)
        pen.stroke(np.array([0.12 * end, end]), _shade(colour, -0.12), 0.012, 0.8)
        for angle in rng.uniform(0, 2 * np.pi, 8):
            hair = end + rng.uniform(0.1, 0.17) * _direction(angle)
            pen.stroke(np.array([end, hair]), colour, 0.012, 0.85)
    pen.fill(_disc(0.12), _vary((128, 108, 72), 12, rng))


def _draw_rose(pen: _Pen, rng: np.random.Generator) -> None:
    """A spiral of broad petals that overlap, from the open ones outside to the bud inside."""
    colour = _choose((_RED, _RED, _PINK, _PINK, _WHITE, _CREAM, _YELLOW, _ORANGE, _MAGENTA), rng)
    petals = int(rng.integers(17, 24))
    start = rng.uniform(0, 2 * np.pi)
    for petal in range(petals):
        closeness = petal / (petals - 1)
        distance = 0.56 * (1 - closeness) ** 0.9
        radius = 0.5 - 0.33 * closeness
        turn = _direction(start + petal * _GOLDEN_ANGLE)
        across = rng.uniform(1.05, 1.35)  # broader than long
        lobe = distance + radius * (_CIRCLE.real + 1j * across * _CIRCLE.imag)
        tone = rng.normal(0.12 - 0.3 * closeness, 0.04)
        pen.fill((lobe + 0.02) * turn, _shade(colour, tone - 0.4))
        pen.fill(lobe * turn, _shade(colour, tone + 0.22))
        pen.fill((lobe - 0.07) * turn, _shade(colour, tone))
    coil = np.linspace(0, 4.5 * np.pi, 40)
    pen.stroke(0.012 * coil * np.exp(1j * (coil + start)), _shade(colour, -0.5), 0.03)


def _draw_tulip(pen: _Pen, rng: np.random.Generator) -> None:
    """A cup of pointed petals seen from the side, on a stem with long leaves."""
    colour = _choose((_RED, _RED, _YELLOW, _YELLOW, _PINK, _WHITE, _ORANGE, _MAGENTA, _LILAC), rng)
    leaf_colour = _vary(_GREEN, 18, rng)
    for side in (-1.0, 1.0):
        if rng.random() < 0.75:
            leaf = _petal(rng.uniform(1.6, 2.3), rng.uniform(0.3, 0.5), _POINTED)
            outline = 2.6j + leaf * _direction(-np.pi / 2 + side * rng.uniform(0.15, 0.4))
            pen.fill(outline, leaf_colour)
    openness = rng.uniform(0.15, 0.55)
    # Back to front: two petals behind, one at either side, the one that faces the viewer.
    for side, width, tone in ((-0.5, 0.8, -0.3), (0.5, 0.8, -0.3), (-1, 0.8, -0.12), (1, 0.8, -0.04), (0, 0.9, 0.06)):
        length = rng.uniform(1.6, 1.85) - 0.15 * (side == 0)
        outline = _petal(length, width * rng.uniform(0.92, 1.08), _BELLIED)
        _draw_petal(pen, -1j, outline, _shade(colour, tone), base=0.85j, lean=side * openness)


_FLOWERS: dict[str, Callable[[_Pen, np.random.Generator], None]] = {
    "daisy": _draw_daisy,
    "dandelion": _draw_dandelion,
    "rose": _draw_rose,
    "sunflower": _draw_sunflower,
    "tulip": _draw_tulip,
}
