"""The download, against a real HTTP server on the loopback that can be told to misbehave."""

import errno
import gzip
import hashlib
import io
import os
import random
import re
import socket
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from accel_flowers.core.errors import UserError
from accel_flowers.samples import download as download_module
from accel_flowers.samples.download import FLOWER_PHOTOS, Archive, download

CLASSES = ("daisy", "roses", "tulips")
KIB = 1024


class Seen(NamedTuple):
    """One request as the server saw it, and how it answered."""

    range: str | None
    status: int
    body_bytes: int


class FlowerServer(ThreadingHTTPServer):
    """Serves `payload` under every path. The attributes below make it misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.payload = b""
        self.log: list[Seen] = []
        self.drops: list[int] = []  # for the next requests: after how many bytes of the body to stop
        self.reset = False  # drop with a reset instead of an orderly end
        self.statuses: list[int] = []  # for the next requests: the error to answer with
        self.ignore_range = False
        self.shift_range = 0  # send a part that starts so many bytes after the one asked for
        self.send_length = True
        self.endless = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/flower_photos.tgz"

    def shutdown_request(self, request: Any) -> None:
        """Without the polite end of the base class, if a reset is wanted."""
        if self.reset:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of these tests."""


class _Handler(BaseHTTPRequestHandler):
    server: FlowerServer

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        start = 0
        status = server.statuses.pop(0) if server.statuses else 200
        if status == 200 and asked and not server.ignore_range:
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            assert match
            start = int(match[1]) + server.shift_range
            status = 206 if start < len(server.payload) else 416
        if status >= 400:
            server.log.append(Seen(asked, status, 0))
            self.send_error(status)
            return
        body = server.payload[start:]
        self.send_response(status)
        if server.send_length:
            self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(server.payload) - 1}/{len(server.payload)}")
        self.end_headers()
        sent = body[: server.drops.pop(0)] if server.drops else body
        server.log.append(Seen(asked, status, len(sent)))
        self.wfile.write(sent)
        while server.endless:
            self.wfile.write(bytes(64 * KIB))
        if server.reset and len(sent) < len(body):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: that is where the progress bar is tested."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowerServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download_module, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    with FlowerServer() as flower_server:
        thread = threading.Thread(target=flower_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield flower_server
        flower_server.shutdown()
        thread.join()


def photos() -> dict[str, bytes]:
    """A tiny stand-in for the flower photos; random, so that the archive is as long as its content."""
    rng = random.Random(0)
    files = {f"flower_photos/{name}/{i}.jpg": rng.randbytes(40 * KIB) for name in CLASSES for i in range(3)}
    return {"flower_photos/LICENSE.txt": b"CC-BY", **files}


def tgz(add: Callable[[tarfile.TarFile], None] | None = None, files: dict[str, bytes] | None = None) -> bytes:
    """A gzipped tar file of `files` (the tiny photos unless told), with whatever `add` puts in at the end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        top = tarfile.TarInfo("flower_photos/")
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(top)
        for name, data in (photos() if files is None else files).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if add:
            add(tar)
    return buffer.getvalue()


def garbled_tgz() -> bytes:
    """The beginning of a good archive, then bytes that mean nothing to the decompressor."""
    compressor = zlib.compressobj(wbits=31)
    good = compressor.compress(gzip.decompress(tgz())[: 60 * KIB]) + compressor.flush(zlib.Z_FULL_FLUSH)
    return good + b"\xff" * KIB


def serve(server: FlowerServer, payload: bytes) -> Archive:
    """Make the server serve `payload`, and describe it truthfully."""
    server.payload = payload
    return Archive(server.url, len(payload), hashlib.sha256(payload).hexdigest(), "CC-BY")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, and what is in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXPECTED = {name.removeprefix("flower_photos/"): data for name, data in photos().items()}


def test_the_flower_photos_are_pinned() -> None:
    assert FLOWER_PHOTOS.url == "http://download.tensorflow.org/example_images/flower_photos.tgz"
    assert FLOWER_PHOTOS.num_bytes == 228813984
    assert FLOWER_PHOTOS.sha256 == "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
    assert "CC-BY" in FLOWER_PHOTOS.licence


def test_whole_download(server: FlowerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = serve(server, tgz())
    folder = download(tmp_path / "new" / "flowers", archive)
    assert folder == (tmp_path / "new" / "flowers").resolve()
    assert tree(folder) == EXPECTED
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(CLASSES)
    assert [path.name for path in folder.parent.iterdir()] == ["flowers"]  # neither archive nor temporary folder
    assert server.log == [Seen(None, 200, archive.num_bytes)]
    out, err = capsys.readouterr()
    assert out == ""
    assert "Downloading: 100%" in err


def test_no_progress_bar_when_told(server: FlowerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download(tmp_path / "flowers", serve(server, tgz()), progress=False)
    assert capsys.readouterr() == ("", "")


def test_download_without_content_length(server: FlowerServer, tmp_path: Path) -> None:
    server.send_length = False
    assert tree(download(tmp_path / "flowers", serve(server, tgz()), progress=False)) == EXPECTED


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_folder_has_ordinary_permissions(server: FlowerServer, tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    folder = download(tmp_path / "flowers", serve(server, tgz()), progress=False)
    assert folder.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_resume_asks_only_for_the_rest(
    server: FlowerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = serve(server, tgz())
    done = 200 * KIB
    server.drops, server.statuses = [done], [200, 503, 503, 503, 503, 503]
    with pytest.raises(UserError, match=rf"stopped at {done:,} of .* bytes: .*503.*run the same command again"):
        download(tmp_path / "flowers", archive, progress=False)
    assert not (tmp_path / "flowers").exists()
    assert (tmp_path / "flowers.tgz.part").read_bytes() == server.payload[:done]

    server.log.clear()
    server.statuses = []
    assert tree(download(tmp_path / "flowers", archive)) == EXPECTED
    assert server.log == [Seen(f"bytes={done}-", 206, archive.num_bytes - done)]
    first_line = re.search(r"Downloading: +(\d+)%", capsys.readouterr().err)
    assert first_line
    assert int(first_line[1]) == 100 * done // archive.num_bytes


def test_dropped_connection_is_taken_up_again(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    server.drops = [30 * KIB, 50 * KIB, 0, 0, 0, 70 * KIB]  # more failures than pauses, but progress in between
    assert tree(download(tmp_path / "flowers", archive, progress=False)) == EXPECTED
    starts = [f"bytes={n * KIB}-" for n in (30, 80, 80, 80, 80, 150)]
    assert [seen.range for seen in server.log] == [None, *starts]
    assert sum(seen.body_bytes for seen in server.log) == archive.num_bytes


def test_reset_connection_is_taken_up_again(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    server.reset = True
    server.drops = [150 * KIB, 10 * KIB]  # how much of it arrives before the reset is a matter of luck
    assert tree(download(tmp_path / "flowers", archive, progress=False)) == EXPECTED
    assert len(server.log) == 3


def test_reset_connection_is_named(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    server.reset = True
    server.drops = [1] * 20
    with pytest.raises(
        UserError, match=r"(connection broke|no connection to the server) \(.+\).*run the same command again"
    ):
        download(tmp_path / "flowers", archive, progress=False)


def test_range_ignored_starts_over(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    server.ignore_range = True
    (tmp_path / "flowers.tgz.part").write_bytes(server.payload[: 100 * KIB])
    assert tree(download(tmp_path / "flowers", archive, progress=False)) == EXPECTED
    assert server.log == [Seen(f"bytes={100 * KIB}-", 200, archive.num_bytes)]


def test_range_ignored_and_always_dropped_ends(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    server.ignore_range = True
    server.drops = [50 * KIB] * 20
    with pytest.raises(UserError, match=r"closed the connection early.*run the same command again"):
        download(tmp_path / "flowers", archive, progress=False)
    assert len(server.log) == 5  # the first one, which made progress, one more, and one after each pause


def test_wrong_range_starts_over(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    server.shift_range = 10
    (tmp_path / "flowers.tgz.part").write_bytes(server.payload[: 100 * KIB])
    assert tree(download(tmp_path / "flowers", archive, progress=False)) == EXPECTED
    assert [seen.range for seen in server.log] == [f"bytes={100 * KIB}-", None]


def test_range_not_satisfiable_starts_over(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    server.statuses = [416]
    (tmp_path / "flowers.tgz.part").write_bytes(server.payload[: 100 * KIB])
    assert tree(download(tmp_path / "flowers", archive, progress=False)) == EXPECTED
    assert [(seen.range, seen.status) for seen in server.log] == [(f"bytes={100 * KIB}-", 416), (None, 200)]


def test_part_that_is_too_long_starts_over(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    (tmp_path / "flowers.tgz.part").write_bytes(server.payload + b"more")
    assert tree(download(tmp_path / "flowers", archive, progress=False)) == EXPECTED
    assert server.log == [Seen(None, 200, archive.num_bytes)]


def test_wrong_hash_removes_the_part(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    (tmp_path / "flowers.tgz.part").write_bytes(b"x" * 1000)  # a beginning of some other file
    with pytest.raises(UserError, match=f"expected SHA-256 {archive.sha256}, found SHA-256 [0-9a-f]{{64}}"):
        download(tmp_path / "flowers", archive, progress=False)
    assert list(tmp_path.iterdir()) == []
    assert tree(download(tmp_path / "flowers", archive, progress=False)) == EXPECTED  # the next try starts over
    assert server.log[-1].range is None


@pytest.mark.parametrize("payload", [b"<html>log in</html>", bytes(500 * KIB)], ids=["short", "long"])
@pytest.mark.parametrize("part_bytes", [0, 10], ids=["new", "resumed"])
def test_wrong_size_removes_the_part(server: FlowerServer, tmp_path: Path, payload: bytes, part_bytes: int) -> None:
    archive = serve(server, tgz())
    server.payload = payload
    if part_bytes:
        (tmp_path / "flowers.tgz.part").write_bytes(bytes(part_bytes))
    with pytest.raises(UserError, match=f"expected {archive.num_bytes:,} bytes, found {len(payload):,} bytes"):
        download(tmp_path / "flowers", archive, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_endless_answer_is_cut_off(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    server.send_length, server.endless = False, True
    with pytest.raises(UserError, match=rf"expected {archive.num_bytes:,} bytes, found [\d,]+ bytes or more"):
        download(tmp_path / "flowers", archive, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_told_at_once(server: FlowerServer, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(UserError, match=r"flower_photos\.tgz: the server answered 404 Not Found"):
        download(tmp_path / "flowers", serve(server, tgz()), progress=False)
    assert len(server.log) == 1
    assert list(tmp_path.iterdir()) == []


def test_server_error_is_retried_then_told(server: FlowerServer, tmp_path: Path) -> None:
    server.statuses = [500] * 20
    with pytest.raises(UserError, match=r"the server answered 500 .*run the same command again"):
        download(tmp_path / "flowers", serve(server, tgz()), progress=False)
    assert len(server.log) == 4


def test_unreachable_port(server: FlowerServer, tmp_path: Path) -> None:
    with socket.socket() as reserved:  # bound but not listening: nobody else can take the port meanwhile
        reserved.bind(("127.0.0.1", 0))
        archive = Archive(f"http://127.0.0.1:{reserved.getsockname()[1]}/x.tgz", 1000, "0" * 64, "CC-BY")
        with pytest.raises(UserError, match=r"no connection to the server .*Check the network connection"):
            download(tmp_path / "flowers", archive, progress=False)


def test_silent_server_times_out(server: FlowerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "_TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        archive = Archive(f"http://127.0.0.1:{silent.getsockname()[1]}/x.tgz", 1000, "0" * 64, "CC-BY")
        with pytest.raises(UserError, match=r"timed out.*run the same command again"):
            download(tmp_path / "flowers", archive, progress=False)


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        info.size = 4 if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(b"evil"))

    return add


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (_member("flower_photos/../../evil.jpg"), "points outside"),
        (_member("../evil.jpg"), "points outside"),
        (_member("flower_photos\\..\\..\\evil.jpg"), "points outside"),
        (_member("/evil.jpg"), "points outside"),
        (_member("C:\\evil.jpg"), "points outside"),
        (_member("flower_photos/evil", tarfile.SYMTYPE, "../victim"), "link or a device"),
        (_member("flower_photos/evil", tarfile.SYMTYPE, "daisy/0.jpg"), "link or a device"),
        (_member("flower_photos/evil", tarfile.LNKTYPE, "flower_photos/daisy/0.jpg"), "link or a device"),
        (_member("flower_photos/evil", tarfile.CHRTYPE), "link or a device"),
        (_member("flower_photos/evil", tarfile.FIFOTYPE), "link or a device"),
        (_member("evil.jpg"), "not in one top folder"),
        (_member("other/evil.jpg"), "not in one top folder"),
    ],
)
def test_hostile_archive_leaves_nothing(
    server: FlowerServer, tmp_path: Path, add: Callable[[tarfile.TarFile], None], message: str
) -> None:
    (tmp_path / "victim").write_text("mine")
    with pytest.raises(UserError, match=f"not unpacked: its member .*{message}"):
        download(tmp_path / "flowers", serve(server, tgz(add)), progress=False)
    assert tree(tmp_path) == {"victim": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


def test_absolute_path_is_not_written(server: FlowerServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="points outside"):
        download(tmp_path / "flowers", serve(server, tgz(_member(f"{tmp_path}/evil.jpg"))), progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (tgz(files={"flower_photos/daisy/0.jpg": bytes(8 * KIB * KIB)}), "unpacks to more than"),
        (tgz(files={}), "it is empty"),
        (b"not an archive", "not a gzip file"),
        (tgz()[: 100 * KIB], "not unpacked: "),
        (gzip.compress(gzip.decompress(tgz()).rstrip(b"\0"))[:-8] + bytes(8), "CRC check failed"),
        (garbled_tgz(), "invalid block type"),
    ],
    ids=["bomb", "empty", "no gzip", "cut off", "wrong checksum", "garbled"],
)
def test_bad_archive_leaves_nothing(server: FlowerServer, tmp_path: Path, payload: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        download(tmp_path / "flowers", serve(server, payload), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_unpacking_leaves_only_the_archive(
    server: FlowerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = serve(server, tgz())
    extract = tarfile.TarFile.extract

    def interrupted(tar: tarfile.TarFile, member: tarfile.TarInfo, *args: object, **kwargs: object) -> None:
        if member.name.startswith("roses"):
            raise KeyboardInterrupt
        extract(tar, member, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download(tmp_path / "flowers", archive, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["flowers.tgz.part"]

    assert tree(download(tmp_path / "flowers", archive, progress=False)) == EXPECTED
    assert len(server.log) == 1  # the second call had nothing left to ask for


def test_folder_in_use_is_untouched(server: FlowerServer, tmp_path: Path) -> None:
    archive = serve(server, tgz())
    folder = download(tmp_path / "flowers", archive, progress=False)
    (folder / "daisy" / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"already exists and is not empty.*use it as it is.*name of a new folder"):
        download(folder, archive, progress=False)
    assert tree(tmp_path) == before
    assert len(server.log) == 1


def test_empty_folder_is_used(server: FlowerServer, tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    assert tree(download(tmp_path / "flowers", serve(server, tgz()), progress=False)) == EXPECTED


def test_file_in_place_of_the_folder(server: FlowerServer, tmp_path: Path) -> None:
    (tmp_path / "flowers").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        download(tmp_path / "flowers", serve(server, tgz()), progress=False)
    assert tree(tmp_path) == {"flowers": b"mine"}


def test_current_folder(server: FlowerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"current folder.*new folder inside it"):
        download(Path("."), serve(server, tgz()), progress=False)
    assert server.log == []


def test_root_folder() -> None:
    with pytest.raises(UserError, match="already exists and is not empty"):
        download(Path("/"), progress=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_full_disk(server: FlowerServer, tmp_path: Path) -> None:
    (tmp_path / "flowers.tgz.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC) + ".*Make room.*continues where it stopped"):
        download(tmp_path / "flowers", serve(server, tgz()), progress=False)
    assert not (tmp_path / "flowers").exists()
