"""What the files of a zip are called: by the book, by what Windows tools write instead, or not at all.

The book says: forward slashes, and UTF-8 where a flag says so, else the code page of the first PCs. Tools on Windows write
backslashes, and names in whatever code page the system has, without a word. A class of a wrong name is worse than none, so
names that make no sense in the first PCs' code page are refused, with what they may mean.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from pathlib import Path

from accel_flowers.core.errors import UserError

_UTF8_FLAG = 0x800
_MADE_ON_WINDOWS = (0, 10, 14)  # FAT, NTFS, VFAT: the systems that a zip may name
_UNICODE_PATH = 0x7075
_CODE_PAGES = ("gbk", "cp932", "big5", "cp949", "cp1251", "cp866", "cp1252")
_WESTERN = re.compile(r"[ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜáíóúñÑß]{1,2}")


def name_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Give each member of a zip the name that it was meant to have, with forward slashes.

    Raises:
        UserError: names in a code page that the zip does not tell.
    """
    members = archive.infolist()
    for member in members:
        member.filename = _in_unicode(path, member)
    by_backslash = not any("/" in member.filename for member in members)
    for member in members:
        if by_backslash or member.create_system in _MADE_ON_WINDOWS:
            member.filename = member.filename.replace("\\", "/")


def _in_unicode(path: Path, member: zipfile.ZipInfo) -> str:
    if member.flag_bits & _UTF8_FLAG or member.orig_filename.isascii():
        return member.filename
    raw = member.orig_filename.encode("cp437")  # as which zipfile has read it
    if (told := _unicode_path(member.extra, raw)) is not None:
        return told
    try:
        return raw.decode()  # macOS and many others write UTF-8 without the flag
    except UnicodeDecodeError:
        pass
    if all(_is_western(part) for part in re.split(r"[/\\]", member.filename)):
        return member.filename
    raise UserError(
        f"The zip '{path}' has names in a code page that it does not tell (encoding unknown): '{member.filename}' may mean "
        f"{_readings(raw)}. Make it anew with names in UTF-8, or unpack it with a program that asks for the code page "
        "(unzip -O gbk FILE.zip -d photos), and give the folder."
    )


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name in UTF-8 that some tools write beside the other, if it belongs to it."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and len(content) > 5 and content[0] == 1:
            try:
                name = content[5:].decode()
            except UnicodeDecodeError:
                return None
            return name if struct.unpack_from("<L", content, 1)[0] == zlib.crc32(raw) else None
    return None


def _is_western(part: str) -> bool:
    """Whether a name makes sense as it stands: single accented letters within words of plain ones."""
    odd: list[str] = re.findall(r"[^\x00-\x7f]+", part)
    return not odd or (
        all(map(_WESTERN.fullmatch, odd)) and re.search("[A-Za-z]", part.rpartition(".")[0] or part) is not None
    )


def _readings(raw: bytes) -> str:
    """What the bytes say in the code pages of the world, for a person who knows which is right."""
    told = []
    for page in _CODE_PAGES:
        try:
            told.append(f"'{raw.decode(page)}' ({page})")
        except UnicodeDecodeError:
            continue
    return ", ".join(told) or "anything"
