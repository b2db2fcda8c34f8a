"""Bring the public flower photos to this machine: download, verify, unpack.

What this is for: turning one known archive (fixed address, size and SHA-256) into a folder of class folders.
The transfer can be interrupted at any point and continued later; nothing appears under the final name
before the whole archive has been verified and unpacked.

What this is not for: other data sets, several processes that download to the same folder at once, and reading
the photos afterwards.
"""

import gzip
import hashlib
import http.client
import os
import re
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

from accel_flowers.core.errors import UserError
from accel_flowers.core.files import replace_folder

_CHUNK_BYTES = 64 * 1024
_TIMEOUT_SECONDS = 30.0
# The pauses before each further request. Requests that bring the download forward are not counted as failures.
_PAUSES_SECONDS = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Archive:
    """A gzipped tar file with one top folder, and what its content is known to be.

    The size and the hexadecimal SHA-256 are those of the file at `url`; the licence is in words, for the reader.
    """

    url: str
    num_bytes: int
    sha256: str
    licence: str


FLOWER_PHOTOS = Archive(
    url="http://download.tensorflow.org/example_images/flower_photos.tgz",
    num_bytes=228_813_984,
    sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
    licence="CC-BY, each photo by the author named in LICENSE.txt",
)


class _Dropped(Exception):
    """One request ended before the whole file had come, in a way that another request may mend."""


def download(directory: Path, archive: Archive = FLOWER_PHOTOS, *, progress: bool = True) -> Path:
    """Download `archive` and unpack it as `directory`, without the archive's own top folder.

    The data is collected in `<directory>.tgz.part` next to `directory`; a download that was interrupted continues
    from that file. It is removed once the photos are in place.

    Args:
        directory: The folder to make. It must not exist yet, or be empty.
        archive: What to download.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The absolute path of the folder: one folder of photos for each class, and the licence as `LICENSE.txt`.

    Raises:
        UserError: The folder is in use, the server or the disk failed, or the file is not the expected one.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("Unpacking safely needs Python 3.11.4 or newer. Update Python, then run the command again.")
    directory = directory.expanduser().resolve()
    try:
        _refuse_folder_in_use(directory)
        part = directory.with_name(f"{directory.name}.tgz.part")
        directory.parent.mkdir(parents=True, exist_ok=True)
        _fetch(archive, part, progress)
        _verify(archive, part)
        _unpack(archive, part, directory)
        part.unlink()
    except OSError as error:  # Those of the network never come here: `_request` and `_receive` deal with them.
        raise UserError(
            f"Cannot write the download next to or into {directory}: {error}. The photos need about "
            f"{2 * archive.num_bytes / 1e6:.0f} MB of free disk space while they are unpacked. Make room or choose "
            "another folder, then run the command again; for the same folder it continues where it stopped."
        ) from error
    return directory


def _refuse_folder_in_use(directory: Path) -> None:
    """Raise a `UserError` unless a finished folder can be moved to `directory` without touching anything."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file. Give the name of a new folder to download to.")
    if any(directory.iterdir()):
        raise UserError(
            f"{directory} already exists and is not empty, so nothing was downloaded or changed. If an earlier "
            "download made it, it is complete: use it as it is. Otherwise give the name of a new folder."
        )
    # Neither can be replaced by the unpacked folder; better to say so before the long download than after it.
    if directory == Path.cwd() or os.path.ismount(directory):
        raise UserError(
            f"{directory} is the current folder or a mounted disk. "
            f"Give the name of a new folder inside it, for example {directory / 'flower_photos'}."
        )


def _fetch(archive: Archive, part: Path, progress: bool) -> None:
    """Make `part` as long as the archive, with as many requests as it takes within reason."""
    if _size(part) > archive.num_bytes:  # Not a beginning of this archive, whatever it is.
        part.unlink()
    furthest = _size(part)
    failures = 0
    bar = tqdm(
        total=archive.num_bytes, initial=furthest, unit="B", unit_scale=True, desc="Downloading", disable=not progress
    )
    with bar:
        while _size(part) < archive.num_bytes:
            try:
                with _request(archive, part) as response:
                    _receive(archive, response, part, bar)
            except _Dropped as drop:
                # Compared with the furthest point and not with the last one: a server that ignores Range and
                # always drops at the same place would otherwise count as making progress for ever.
                failures = 0 if _size(part) > furthest else failures + 1
                furthest = max(furthest, _size(part))
                if failures > len(_PAUSES_SECONDS):
                    raise UserError(
                        f"The download of {archive.url} stopped at {_size(part):,} of {archive.num_bytes:,} bytes: "
                        f"{drop}. Check the network connection (and the proxy settings, if there is a proxy), then "
                        "run the same command again: it continues where it stopped."
                    ) from drop
                time.sleep(_PAUSES_SECONDS[max(failures - 1, 0)])


def _request(archive: Archive, part: Path) -> http.client.HTTPResponse:
    """Ask for what `part` still lacks; answers that cannot lead to the archive become exceptions."""
    offset = _size(part)
    # No If-Range: should the file change on the server between two requests, the SHA-256 tells.
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answered {error.code} {error.reason}"
        if error.code == 416:  # Range not satisfiable: what we have is no beginning of what the server has.
            part.unlink(missing_ok=True)
            raise _Dropped(answer) from error
        if error.code in (408, 429) or error.code >= 500:
            raise _Dropped(answer) from error
        raise UserError(
            f"Cannot download {archive.url}: {answer}. Check that the address opens in a browser; if it does not, "
            "get the archive elsewhere, unpack it and use its folder."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _Dropped(f"no connection to the server ({str(reason) or type(reason).__name__})") from error
    return response


def _receive(archive: Archive, response: http.client.HTTPResponse, part: Path, bar: tqdm) -> None:
    """Append the body of `response` to `part`, or start `part` anew if the server sends the file from its start."""
    offset = _size(part) if response.status == 206 else 0
    length = response.headers.get("Content-Length", "")
    announced = offset + int(length) if length.isdecimal() else None
    if response.status == 206:
        content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if content_range is None or int(content_range[1]) != offset:
            part.unlink(missing_ok=True)  # So that the next request asks for the whole file, without a Range.
            raise _Dropped("the server sent another part of the file than it was asked for")
        announced = int(content_range[2]) if content_range[2] != "*" else announced
    if announced is not None and announced != archive.num_bytes:
        raise _wrong_file(archive, part, f"{archive.num_bytes:,} bytes", f"{announced:,} bytes")

    bar.n = offset
    bar.refresh()
    with part.open("ab" if offset else "wb") as file:
        while offset <= archive.num_bytes:  # A server that never stops must not fill the disk.
            try:
                chunk = response.read(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _Dropped(f"the connection broke ({str(error) or type(error).__name__})") from error
            if not chunk:
                break
            offset += file.write(chunk)
            bar.update(len(chunk))
    if offset < archive.num_bytes:
        raise _Dropped("the server closed the connection early")


def _verify(archive: Archive, part: Path) -> None:
    """Raise a `UserError` and remove `part` unless it is exactly the archive."""
    if (found_bytes := _size(part)) != archive.num_bytes:
        raise _wrong_file(archive, part, f"{archive.num_bytes:,} bytes", f"{found_bytes:,} bytes or more")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise _wrong_file(archive, part, f"SHA-256 {archive.sha256}", f"SHA-256 {found}")


def _wrong_file(archive: Archive, part: Path, expected: str, found: str) -> UserError:
    """Remove `part` and word the error, for the caller to raise."""
    part.unlink(missing_ok=True)
    return UserError(
        f"{archive.url} is not the expected file: expected {expected}, found {found}. What was downloaded has been "
        "removed. Run the same command again to start over; if the error stays, a proxy or a login page may be "
        "answering in place of the server."
    )


def _unpack(archive: Archive, part: Path, directory: Path) -> None:
    """Unpack next to `directory`, then rename: whatever interrupts it, `directory` is complete or not there."""
    with replace_folder(directory) as unpacked:
        try:
            with tarfile.open(part, "r:gz") as tar:
                # Photos hardly compress, so an honest archive stays far below; the constant is for tar headers.
                _extract_members(tar, unpacked, 4 * archive.num_bytes + 1024 * 1024)
        # What tarfile raises for files that are no tar, no gzip, cut off or garbled.
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            part.unlink()
            raise UserError(
                f"The archive from {archive.url} was not unpacked: {error}. It has been removed, and nothing was "
                "written elsewhere. Get the photos elsewhere and use their folder."
            ) from error
        if directory.exists():
            directory.rmdir()  # It was empty; if that has changed, this fails and touches nothing.


def _extract_members(tar: tarfile.TarFile, target: Path, max_bytes: int) -> None:
    """Extract regular files and folders only, each without its first folder, which must be the same for all.

    The `data` filter of tarfile is the second line of defence: it would quietly mend some of what is refused here.
    """
    tops: set[str] = set()
    total = 0
    for member in tar:
        # Windows paths know both kinds of slashes and drives, so the same names are refused on every system.
        path = PureWindowsPath(member.name)
        if path.anchor or ".." in path.parts:
            raise tarfile.ReadError(f"its member {member.name!r} points outside the folder")
        if not (member.isreg() or member.isdir()):
            raise tarfile.ReadError(f"its member {member.name!r} is a link or a device, not a file or a folder")
        total += tarfile.BLOCKSIZE + member.size
        if total > max_bytes:
            raise tarfile.ReadError(f"it unpacks to more than {max_bytes:,} bytes")
        tops.update(path.parts[:1])
        if len(tops) > 1 or (len(path.parts) == 1 and not member.isdir()):
            raise tarfile.ReadError(f"its member {member.name!r} is not in one top folder with all others")
        if len(path.parts) > 1:
            tar.extract(member.replace(name="/".join(path.parts[1:])), target, filter="data")
    if not any(target.iterdir()):
        raise tarfile.ReadError("it is empty")


def _size(path: Path) -> int:
    """The size of a file in bytes, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
