"""One walk over folders of images, with one set of rules, for training, inspection, evaluation and prediction.

- An image is what is named like one (.jpg, .png, ... in any case), also of a kind that is not read here (HEIC, raw): it is
  refused by name, for what is passed over without a word is lost. Of a name without a suffix, or with one that a browser
  has spoilt ("1.jpg_large"), the first bytes decide.
- What this program itself has written is no data: run directories and `model/` folders, and W&B's folder, are passed over.
- Hidden files and folders (".name", "__MACOSX") are passed over.
- A link to a file is that file. A link to a folder is followed where classes or their parts may lie, so in the folder
  itself and one level below, and not where it leads back up, for nothing lies below that is not here already.
- What is named like an image and is no regular file (a broken link, a pipe, an empty folder) is told with its cause.
- A folder that cannot be listed is an error: nobody can say what is missing.

Images are not decoded here.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accel_flowers.core.errors import UserError, printable
from accel_flowers.core.plural import number_of
from accel_flowers.core.reading import read_start
from accel_flowers.data.decoding.kinds import IMAGE_EXTENSIONS, START, begins_like_image

HIDDEN, NO_IMAGE, FAR_LINK = "hidden", "not named like a picture", "links to folders that are not followed"
OWN = "folders that this program wrote (runs, models)"
"""Why something is left out."""
_SPOILT_SUFFIX = re.compile(r"(\.(jpe?g|png|webp|gif|tiff?|bmp|heic|avif))[^A-Za-z0-9.].*$", re.IGNORECASE)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name == "__MACOSX"


def looks_like_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _has_no_telling_name(name: str) -> bool:
    """Whether what a file is called says neither that it is an image nor that it is none."""
    return not os.path.splitext(name)[1] or _SPOILT_SUFFIX.search(name) is not None


def _holds_image(path: str) -> bool:
    try:
        return begins_like_image(read_start(path, START))
    except OSError:
        return False


def is_own_output(folder: str) -> bool:
    """Whether this program (or W&B for it) wrote a folder: a run directory, a `model/`, or `wandb/`."""

    def has(*names: str) -> bool:
        return all(os.path.lexists(os.path.join(folder, name)) for name in names)

    is_run = has("config.yaml") and any(map(has, ("split.json", "metrics.jsonl", "checkpoints")))
    begun = has("checkpoints", ".lock")
    is_model = has("config.json", "model.safetensors")
    is_wandb = os.path.basename(folder) == "wandb" and any(map(has, ("latest-run", "debug.log", "debug-internal.log")))
    return is_run or begun or is_model or is_wandb


@dataclass
class Walk:
    """What was found below a folder; names are relative to it, with forward slashes.

    Attributes:
        files: images, in no order that matters.
        unreadable: what is named like an image and is no file, with the cause.
        ignored: files that are no images by name, and links to folders that are not followed.
        empty_folders: folders without anything that is named like an image.
        left_out: reason → how many; a hidden folder counts as one.
    """

    files: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    empty_folders: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def walk(root: str | Path) -> Walk:
    """Walk a folder, in sorted order.

    Raises:
        UserError: a folder that cannot be listed, or folders nested hundreds of levels deep.
    """
    found = Walk()
    try:
        _visit(str(root), "", found)
    except OSError as error:
        raise UserError(f"The folder '{error.filename}' cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise UserError(f"'{root}' holds folders nested hundreds of levels deep. Move the pictures up.") from None
    return found


def _visit(folder: str, prefix: str, found: Walk) -> bool:
    """Returns whether anything that looks like an image lies below, or was passed over as none of the data."""
    holds_images = False
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    in_class = any(looks_like_image(entry.name) for entry in entries)
    for entry in entries:
        if is_hidden(entry.name):
            found.left_out[HIDDEN] += 1
            continue
        name = prefix + entry.name
        named_like_image = looks_like_image(entry.name)
        linked = entry.is_symlink()
        # `entry` knows without asking the disk, but raises for a link that leads to itself.
        is_folder = os.path.isdir(entry.path) if linked else entry.is_dir()
        if is_folder and linked and not _is_followed(folder, entry.path, prefix.count("/"), in_class=in_class):
            found.ignored.append(name)
            found.left_out[FAR_LINK] += 1
        elif is_folder and is_own_output(entry.path):
            found.left_out[OWN] += 1
            holds_images = True  # so that a folder of runs is no class without images
        elif is_folder:
            below = _visit(entry.path, name + "/", found)
            if named_like_image and not below:
                found.unreadable[name] = "a folder, not a picture"
            elif not below:
                found.empty_folders.append(name)
            holds_images |= below or named_like_image
        elif not named_like_image and not (_has_no_telling_name(entry.name) and _holds_image(entry.path)):
            found.ignored.append(name)
            found.left_out[NO_IMAGE] += 1
        elif os.path.isfile(entry.path) if linked else entry.is_file():
            found.files.append(name)
            holds_images = True
        else:
            found.unreadable[name] = "a link to a file that is not there" if linked else "not a regular file"
            holds_images = True
    return holds_images


def _is_followed(folder: str, link: str, depth: int, *, in_class: bool) -> bool:
    """Whether a link to a folder is followed; deeper, folders linked into each other would be walked in every order.

    One that leads from a class to another folder of the data set would give images of another class this one's label.
    """
    target = Path(os.path.realpath(link))
    if depth > 1 or Path(os.path.realpath(folder)).is_relative_to(target):
        return False
    return depth == 0 or not in_class or not target.is_relative_to(os.path.realpath(os.path.dirname(folder)))


def left_out_in_words(left_out: Mapping[str, int]) -> str:
    """For a log: "left out: 3 not named like a picture, 1 hidden"; empty where nothing was."""
    told = ", ".join(f"{number:,} {reason}" for reason, number in sorted(left_out.items()))
    return f"left out: {told}" if told else ""


def describe_left_out(ignored: Sequence[str], left_out: Mapping[str, int]) -> list[str]:
    """What every command tells of what it passes over in a data set, a line each; none where nothing was.

    Args:
        ignored: files that are no images by name, and links to folders that are not followed.
        left_out: reason → how many.
    """
    lines = []
    if others := left_out.get(NO_IMAGE):
        lines.append(
            f"{number_of(others, 'file that is no picture', many='files that are no pictures')} by name, for example {printable(ignored[0])}"
        )
    rest = left_out_in_words({reason: number for reason, number in left_out.items() if reason != NO_IMAGE})
    return [*lines, rest] if rest else lines


@dataclass
class Found:
    """Files of images that a person named, one by one, by their folders or by patterns.

    Attributes:
        files: in the order in which they were named, those of a folder or pattern sorted.
        left_out: reason → how many, in the folders that were looked into.
    """

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def left_out_in_words(self) -> str:
        """For a log; empty where nothing was."""
        return left_out_in_words(self.left_out)


def find_files(paths: Sequence[Path]) -> Found:
    """Files as given, what is named like an image below folders, and what patterns match.

    A pattern (`*`, `?`, `[a-z]`, `**` for folders of any depth) is one that names no file; of what it matches, files named
    like images are taken, and folders are looked into. What is not there or no file at all (a broken link, an empty
    folder called 1.jpg) is among them: it gets its row, as any image that cannot be read.

    Raises:
        UserError: a pattern that matches no image, nothing at all, or a folder that cannot be walked.
    """
    found = Found()
    for path in paths:
        if os.path.isdir(path):  # unlike Path's methods, it answers for any name
            found.files += _below(path, found)
        elif glob.has_magic(str(path)) and not os.path.lexists(path):
            found.files += _matches(str(path), found)
        else:
            found.files.append(path)
    if not found.files:
        left_out = found.left_out_in_words()
        raise UserError(
            f"No pictures in {', '.join(map(repr, map(str, paths)))}{f' ({left_out})' if left_out else ''}."
        )
    return found


def _below(folder: Path, found: Found) -> list[Path]:
    inside = walk(folder)
    found.left_out += inside.left_out
    return sorted(folder / name for name in (*inside.files, *inside.unreadable))


def _matches(pattern: str, found: Found) -> list[Path]:
    matched = [Path(name) for name in glob.iglob(os.path.expanduser(pattern), recursive=True)]
    folders = {path for path in matched if path.is_dir()}
    images = set()
    # What lies below a folder that is matched, too, comes by its walk or not at all.
    for path in sorted(path for path in matched if folders.isdisjoint(path.parents)):
        if path in folders and is_own_output(str(path)):
            found.left_out[OWN] += 1
        elif path in folders:
            images.update(_below(path, found))
        elif looks_like_image(path.name) and _is_meant(path, pattern):
            images.add(path)
    if not images:
        others = (
            f"{number_of(len(matched), 'file')}, but none with the name of a picture (.jpg, .png, ...)"
            if matched
            else "nothing"
        )
        raise UserError(
            f"The pattern '{pattern}' matches {others}. '**' stands for folders of any depth: 'new/**/*.jpg'."
        )
    return sorted(images)


def _is_meant(path: Path, pattern: str) -> bool:
    """Whether a file that a pattern matches is one that a walk would find: `**` goes through every link and folder."""
    written = Path(os.path.expanduser(pattern)).parts
    below = [folder for folder in (path, *path.parents) if folder.name not in written]
    if any(is_hidden(place.name) or (place is not path and is_own_output(str(place))) for place in below):
        return False
    return "**" not in written or not any(
        folder.is_symlink() and Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder))
        for folder in path.parents
    )
