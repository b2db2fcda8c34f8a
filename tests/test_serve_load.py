"""A drill of `accel-flowers serve`: a crowd for a minute, clients that never finish, a kill in the middle, and again."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import CLASSES, draw_image
from tests.served import Served, counted, serve
from tests.test_serve import HEAD, TOKEN, agree, as_told, form, slow_picture, write_model

SECONDS = 60


@pytest.mark.slow
@pytest.mark.holds("What a server is sent ends in an answer, and the server goes on")
def test_a_crowd_with_clients_that_never_finish(tmp_path: Path) -> None:
    """Thirty-two clients for a minute, a quarter of whose pictures are bad, who leave early now and then; slow ones beside them;
    SIGKILL in the middle of it all; the next server on the same port answers as the first did."""
    model = write_model(tmp_path / "model")
    pictures = []
    for number in range(8):
        draw_image(CLASSES[number % 3], number, (200, 150)).save(tmp_path / f"{number}.jpg")
        pictures.append((tmp_path / f"{number}.jpg").read_bytes())
    environment = {"ACCEL_FLOWERS_TOKEN": TOKEN}
    words = ("--body-seconds", "3", "--header-seconds", "3", "--max-connections", "200")
    with serve(model, tmp_path / "one", *words, environment=environment) as server:
        expected = answers(server, pictures)
        resting = open_files(server)
        end = time.monotonic() + SECONDS
        with ThreadPoolExecutor(64) as threads:
            clients = [threads.submit(ask_until, server, pictures, expected, end, seed) for seed in range(32)]
            slow = [threads.submit(never_finish, server, end, seed) for seed in range(12)]
            told = sum((client.result() for client in clients), Counter())
            closed = sum(one.result() for one in slow)
        assert set(told) <= {"200", "422", "left"}
        assert min(told["200"], told["422"], told["left"]) > 50, told
        assert closed > 12, "slow clients were let go, again and again"
        assert answers(server, pictures) == expected
        with server.client(token=TOKEN) as client:
            numbers = counted(client.get("/metrics").text)
        assert numbers["accel_flowers_queue_pictures"] == 0
        assert numbers["accel_flowers_batch_pictures_sum"] > numbers["accel_flowers_batch_pictures_count"], "they met"
        assert not [name for name in numbers if 'status="5' in name]
        wait_for(lambda: open_files(server) <= resting + 2)
        with ThreadPoolExecutor(8) as threads:
            cut = [threads.submit(ask_once, server, slow_picture()) for _ in range(4)]
            time.sleep(1)
            server.process.send_signal(signal.SIGKILL)
            assert {each.result() for each in cut} == {"cut"}
        assert server.process.wait(5) == -signal.SIGKILL
        assert list(server.temporary.iterdir()) == []
    again = ("--port", str(server.port), *words)
    with serve(model, tmp_path / "two", *again, environment=environment) as server:
        assert answers(server, pictures) == expected
        assert server.stop() == 0


Told = list[tuple[tuple[str, float], ...]]


def answers(server: Served, pictures: list[bytes]) -> Told:
    with server.client(token=TOKEN) as client:
        rows = [client.post("/predict?top_k=4", files=form(data)).json()["predictions"][0] for data in pictures]
    return [tuple(as_told(row)) for row in rows]


def ask_until(server: Served, pictures: list[bytes], expected: Told, end: float, seed: int) -> Counter[str]:
    """What one client sees of its requests."""
    chance, told = random.Random(seed), Counter[str]()
    with server.client(token=TOKEN) as client:
        while time.monotonic() < end:
            kind = chance.random()
            place = chance.randrange(len(pictures))
            if kind < 0.1:
                leave(server, pictures[place], chance)
                told["left"] += 1
                continue
            data = pictures[place] if kind < 0.75 else pictures[place][: chance.randrange(200)]
            answer = client.post("/predict?top_k=4", files=form(data))
            told[str(answer.status_code)] += 1
            if answer.status_code == 200:
                assert agree(as_told(answer.json()["predictions"][0]), expected[place])
    return told


def leave(server: Served, data: bytes, chance: random.Random) -> None:
    """Ask, and go before the answer comes."""
    with server.connect() as connection:
        whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data
        connection.sendall(whole[: chance.randrange(1, len(whole) + 1)])
        time.sleep(chance.random() / 50)


def never_finish(server: Served, end: float, seed: int) -> int:
    """Drip a request until the server has enough of it, again and again; how often it had."""
    chance, count = random.Random(1000 + seed), 0
    whole = HEAD + b"Content-Length: 1000000\r\n\r\n"
    start = whole[: chance.choice((0, 5, len(HEAD) - 3, len(whole)))]
    while time.monotonic() < end:
        with server.connect() as connection:
            begun = time.monotonic()
            try:
                connection.sendall(start)
                connection.settimeout(0.3)
                while time.monotonic() < begun + 15:
                    try:
                        connection.recv(4096)
                        break
                    except TimeoutError:
                        connection.sendall(b"x")
                else:
                    raise AssertionError("it was never let go")
            except (BrokenPipeError, ConnectionResetError):
                pass
            count += 1
    return count


def ask_once(server: Served, data: bytes) -> str:
    try:
        with server.client(token=TOKEN) as client:
            return str(client.post("/predict", files=form(data)).status_code)
    except httpx.HTTPError:
        return "cut"


def open_files(server: Served) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 15
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.1)
