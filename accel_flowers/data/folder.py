"""An image folder, a zip of one, or a dataset of the hub → rows, labels and class names, the same on every process.

`datasets` holds the rows. A folder is walked here and not by its imagefolder loader: that answers a stray picture by
silently dropping every label, takes some class names for splits, follows no linked folders, unpacks whatever zip lies
about, and takes 0.3 ms a file. Pictures are not opened here.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import pkgutil
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from accel_flowers.data.decode import IMAGE_EXTENSIONS, MAX_BYTES
from accel_flowers.errors import UserError
from accel_flowers.reading import read_file

HUB_PREFIX = "hub:"
_ALWAYS_UNPACKED, _MAX_GROWTH = 2**30, 20
"""Bytes that any zip may unpack to, and how many times its own size a larger one may."""
SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_LAYOUT = (
    "Pictures belong in one sub-folder per class (DIR/rose/1.jpg), or in DIR/train/rose, DIR/val/rose, DIR/test/rose."
)


@dataclass(frozen=True)
class ImageTable:
    """The pictures of a data set, sorted by name.

    Attributes:
        source: what the user gave.
        dataset: one row a picture: `image` (a dict of `bytes` and `path`, not decoded) and `label`.
        files: name of each row, relative to the folder, with forward slashes.
        labels: class of each row, int64 [N].
        class_names: sorted, or in the order of the hub's dataset; a label is the index into them.
        given_parts: part of each row where the data set comes with train, val and test; else None.
        unreadable: files that look like pictures but are not files (broken links, folders), with the cause.
        ignored: files that are no pictures by their name.
    """

    source: str
    dataset: datasets.Dataset
    files: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    given_parts: tuple[str, ...] | None
    unreadable: dict[str, str]
    ignored: tuple[str, ...]


def read_bytes(image: dict[str, Any]) -> bytes:
    """The encoded picture of a row: its bytes where the row holds them, else the file it names.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger than any picture.
    """
    data: bytes | None = image["bytes"]
    return data if data is not None else read_file(image["path"], max_bytes=MAX_BYTES)


def content_digest(data: bytes) -> str:
    """Digest of an encoded picture."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def load_images(source: str) -> ImageTable:
    """Load a folder, a .zip or `hub:OWNER/NAME`.

    Raises:
        UserError: nothing there, or a layout whose labels would be wrong; the message says what to change.
    """
    if source.startswith(HUB_PREFIX):
        return _load_hub(source)
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):  # unlike Path's methods, those of os.path answer for any name
        return _load_folder(source, path)
    if os.path.isfile(path) and path.suffix.lower() == ".zip":
        return _load_folder(source, _inner_folder(_unzip(path)))
    if os.path.exists(path):
        raise UserError(f"'{source}' is a file that is no .zip. {_LAYOUT}")
    named_like_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None
    hub = f" For a dataset of the Hugging Face hub type {HUB_PREFIX}{source}." if named_like_hub else ""
    raise UserError(f"There is no folder '{source}'.{hub} {_LAYOUT}")


@dataclass
class _Scan:
    """What a walk over the folder found."""

    files: list[str]
    unreadable: dict[str, str]
    ignored: list[str]
    empty_folders: list[str]


def _load_folder(source: str, root: Path) -> ImageTable:
    root = root.absolute()
    try:
        scan = _scan(root)
    except OSError as error:
        raise UserError(f"The folder '{error.filename}' cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise UserError(f"'{source}' holds folders nested hundreds of levels deep. {_LAYOUT}") from None
    depth, given = _check_layout(source, scan)
    if not scan.files:
        raise UserError(f"'{source}' holds no readable picture. {_LAYOUT}")
    _check_names([str(root), *scan.files, *scan.unreadable])
    files = tuple(sorted(scan.files))
    class_names = tuple(sorted({name.split("/")[depth - 1] for name in [*files, *scan.unreadable]}))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [label_of[name.split("/")[depth - 1]] for name in files]
    return ImageTable(
        source=source,
        dataset=_rows_of([f"{root}/{name}" for name in files], labels, class_names),
        files=files,
        labels=np.array(labels, dtype=np.int64),
        class_names=class_names,
        given_parts=tuple(given[name.split("/")[0]] for name in files) if given else None,
        unreadable=scan.unreadable,
        ignored=tuple(scan.ignored),
    )


def _rows_of(paths: Sequence[str], labels: Sequence[int], class_names: Sequence[str]) -> datasets.Dataset:
    """The rows that the imagefolder loader would make: paths, not pictures, so that a million of them fit."""
    features = datasets.Features(
        {"image": datasets.Value("string"), "label": datasets.ClassLabel(names=list(class_names))}
    )
    rows = datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)
    # A cast, because to be given pictures `from_dict` would go through them one by one.
    return rows.cast_column("image", datasets.Image(decode=False))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _looks_like_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _scan(root: Path) -> _Scan:
    """Walk the folder and what is linked into it: pictures by their ending, in sorted order; hidden files are passed over.

    Raises:
        OSError: a folder that cannot be listed.
    """
    scan = _Scan([], {}, [], [])

    def visit(folder: str, prefix: str) -> bool:
        """Returns whether anything that looks like a picture lies below."""
        found = False
        with os.scandir(folder) as entries:
            ordered = sorted((entry for entry in entries if not _hidden(entry.name)), key=lambda entry: entry.name)
        for entry in ordered:
            name = prefix + entry.name
            looks_like_picture = _looks_like_picture(entry.name)
            linked = entry.is_symlink()
            # `entry` knows without asking the disk, but raises for a link that leads to itself.
            is_folder = os.path.isdir(entry.path) if linked else entry.is_dir()
            if is_folder and linked and not _leads_to_a_class(folder, entry.path, prefix.count("/")):
                scan.ignored.append(name)
            elif is_folder:
                below = visit(entry.path, name + "/")
                if looks_like_picture and not below:
                    scan.unreadable[name] = "a folder, not a picture"
                elif not below:
                    scan.empty_folders.append(name)
                found |= below or looks_like_picture
            elif not looks_like_picture:
                scan.ignored.append(name)
            elif os.path.isfile(entry.path) if linked else entry.is_file():
                scan.files.append(name)
                found = True
            else:
                cause = "a link to a file that is not there" if linked else "not a regular file"
                scan.unreadable[name] = cause
                found = True
        return found

    visit(str(root), "")
    return scan


def _leads_to_a_class(folder: str, link: str, depth: int) -> bool:
    """Whether a link to a folder is followed: not where it leads back up, for nothing lies below that is not here already.

    And not deeper than classes lie, for folders linked into each other would be walked through in every order.
    """
    return depth < 2 and not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _check_names(names: Iterable[str]) -> None:
    """`datasets` keeps paths as UTF-8 text, takes "::" for a member of an archive and "$HOME" for what it stands for."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"The name {name!r} is not UTF-8. Rename it.") from None
        if "::" in name or os.path.expandvars(name) != name:
            held = "'::'" if "::" in name else "'$' and the name of an environment variable"
            raise UserError(f"The name '{name}' holds {held}, which `datasets` takes for another file. Rename it.")


def _check_layout(source: str, scan: _Scan) -> tuple[int, dict[str, str] | None]:
    """See that every picture lies at class depth.

    Returns:
        The depth of the class folder (1, or 2 under split folders) and the part that each split folder stands for.
    """
    if not scan.files and not scan.unreadable:
        raise UserError(f"'{source}' holds no pictures. {_LAYOUT}")
    names = [*scan.files, *scan.unreadable]
    tops = sorted({name.split("/")[0] for name in names if "/" in name} | {f.split("/")[0] for f in scan.empty_folders})
    split_like = {top: SPLIT_FOLDERS[top.lower()] for top in tops if top.lower() in SPLIT_FOLDERS}
    all_split_like = bool(split_like) and len(split_like) == len(tops)
    depth = 2 if all_split_like and any(name.count("/") >= 2 for name in names) else 1
    if split_like and depth == 1:
        raise UserError(
            f"'{source}' holds folders that look like parts of a split ({_quoted(split_like)}) "
            f"{'with pictures of no class' if all_split_like else 'beside classes (' + _quoted(set(tops) - set(split_like)) + ')'}. "
            f"{_LAYOUT} If these really are classes, rename them."
        )
    stray = [name for name in names if name.count("/") != depth]
    if stray:
        inner = tops[0] if len(tops) == 1 and all(name.count("/") >= 2 for name in names) else None
        hint = f" Did you mean {Path(source) / inner}?" if inner else ""
        raise UserError(
            f"{len(stray)} pictures of '{source}' do not lie in a class folder, for example '{stray[0]}'.{hint} {_LAYOUT} "
            "Move or remove them: with one of them the labels of all pictures would be lost."
        )
    empty = [folder for folder in scan.empty_folders if folder.count("/") < depth]
    if empty:
        raise UserError(f"'{source}' has folders without a picture: {_quoted(empty)}. Fill or remove them.")
    classes = sorted({name.split("/")[depth - 1] for name in names})
    if len(classes) < 2:
        raise UserError(
            f"'{source}' has one class only ({_quoted(classes)}); a classifier needs two or more. {_LAYOUT}"
        )
    if depth == 1:
        return depth, None
    return depth, _check_split_folders(source, names, split_like, classes)


def _check_split_folders(
    source: str, names: Sequence[str], split_like: dict[str, str], classes: Sequence[str]
) -> dict[str, str]:
    parts = sorted(split_like.values())
    if len(set(parts)) < len(parts):
        raise UserError(f"'{source}' has two folders for one part of the split: {_quoted(split_like)}. Join them.")
    if "train" not in parts or len(parts) < 2:
        raise UserError(f"'{source}' has {_quoted(split_like)}: it needs train, and val or test beside it.")
    for folder, part in sorted(split_like.items()):
        here = {name.split("/")[1] for name in names if name.startswith(folder + "/")}
        lacking = sorted(set(classes) - here)
        if lacking and part == "train":
            raise UserError(f"'{source}/{folder}' lacks the classes {_quoted(lacking)}, so they could not be learned.")
    return split_like


def _quoted(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(f"'{name}'" for name in shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")


def _unzip(path: Path) -> Path:
    """Unpack next to the caches of `datasets`, once for each state of the file."""
    state = path.stat()
    key = hashlib.blake2b(f"{path.absolute()}|{state.st_size}|{state.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    target = Path(datasets.config.HF_DATASETS_CACHE) / "accel_flowers_zip" / f"{path.stem}-{key}"
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_unpacked_size(path, archive)
            for member in _visible_members(path, archive):
                archive.extract(member, partial)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
        UnicodeError,
    ) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"The zip '{path}' cannot be unpacked: {str(error).rstrip('.') or 'it is cut short'}."
        ) from None
    if not partial.exists():
        raise UserError(f"The zip '{path}' holds no pictures. {_LAYOUT}")
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(partial)  # another run was quicker
    return target


def _check_unpacked_size(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse a zip that would fill the disk; pictures hardly get smaller in a zip. No member unpacks to more than it says.

    Raises:
        UserError: with both sizes.
    """
    packed, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if unpacked > max(_MAX_GROWTH * packed, _ALWAYS_UNPACKED):
        raise UserError(
            f"The zip '{path}' has {packed:,} bytes and would unpack to {unpacked:,}: that is no zip of pictures. Where "
            "you trust it, unpack it yourself and give the folder."
        )


def _visible_members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files inside, without hidden ones.

    Raises:
        UserError: a name that leads out of the folder, or that stands there twice; nothing is unpacked then.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"The zip '{path}' holds '{member.filename}', which leads out of its folder. Make it anew.")
        if not member.is_dir() and not any(_hidden(part) for part in name.parts):
            if str(name) in members:
                raise UserError(f"The zip '{path}' holds '{name}' twice, of which one would be lost. Make it anew.")
            members[str(name)] = member
    return list(members.values())


def _inner_folder(folder: Path) -> Path:
    """People zip the folder itself: step into it where nothing else holds pictures."""
    while True:
        entries = list(folder.iterdir())
        inner = [entry for entry in entries if entry.is_dir()]
        if len(inner) != 1 or any(_looks_like_picture(entry.name) for entry in [*entries, *inner[0].iterdir()]):
            return folder
        folder = inner[0]


def _load_hub(source: str) -> ImageTable:
    name = source.removeprefix(HUB_PREFIX)
    if not name.strip("/"):
        raise UserError(f"'{source}' names no dataset: type {HUB_PREFIX}OWNER/NAME.")
    if name in {module.name for module in pkgutil.iter_modules(datasets.packaged_modules.__path__)}:
        # It would take the files of the folder we stand in for that data set.
        raise UserError(f"'{source}' is a loader of the library datasets, no dataset: type {HUB_PREFIX}OWNER/NAME.")
    try:
        loaded = datasets.load_dataset(name)
    # RuntimeError: a dataset that is a script, which is not run.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"The dataset '{name}' of the Hugging Face hub cannot be loaded: {error}. Check the name and the network, "
            "or give a folder of your own: --data.path DIR."
        ) from None
    features = next(iter(loaded.values())).features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"The dataset '{name}' needs one column of pictures and one of class labels, it has "
            f"{len(images)} and {len(labels)}: {', '.join(features)}."
        )
    parts = {split: SPLIT_FOLDERS.get(split.lower()) for split in loaded}
    known = {split: part for split, part in parts.items() if part is not None}
    if len(set(known.values())) < len(known) or "train" not in known.values():
        raise UserError(
            f"The dataset '{name}' has the parts {_quoted(parts)}; train is needed, val and test are known."
        )
    columns = {images[0]: "image", labels[0]: "label"}
    tables = [
        loaded[split]
        .select_columns(list(columns))
        .rename_columns(columns)
        .cast_column("image", datasets.Image(decode=False))
        for split in known
    ]
    rows = datasets.concatenate_datasets(tables)
    given = tuple(part for (_, part), table in zip(known.items(), tables, strict=True) for _ in range(len(table)))
    label_column = rows.with_format("arrow")["label"].to_pylist()
    unknown = sum(label is None or label < 0 for label in label_column)
    if unknown:
        raise UserError(f"{unknown} pictures of the dataset '{name}' have no label.")
    return ImageTable(
        source=source,
        dataset=rows,
        files=tuple(
            f"{split}/{row:08d}" for split, table in zip(known, tables, strict=True) for row in range(len(table))
        ),
        labels=np.array(label_column, dtype=np.int64),
        class_names=tuple(features[labels[0]].names),
        given_parts=given if len(known) > 1 else None,
        unreadable={},
        ignored=(),
    )
