#!/usr/bin/env python3
"""Requests a second of `accel-flowers serve`, and how long they take, beside the rate of `predict` on the same photos.

  python benchmarks/serve.py MODEL_DIR --photos DIR [--clients 1 8 32] [--rounds 3] [--seconds 8] [--json]

A round asks `predict` and each number of clients in turn, so that what slows the machine slows all. Clients send one photo a
request over a connection that stays open, each the next one when it has its answer; they run in a process of their own on the same
cores, whose processor time is told: with a client elsewhere the server has that, too. Processor time a photo is told as well: what
else a machine does disturbs it less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.common import machine, ratio, spread  # noqa: E402 - from the line above

WARM_UP = 2.0
"""Seconds before a round's measurement."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--num-photos", type=int, default=256)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="for the server; the last one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ask", metavar="PORT", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    photos = photos_of(asked.photos, asked.num_photos)
    if asked.ask:
        print(json.dumps(asyncio.run(ask_all(photos, asked.ask, asked.clients[0], asked.seconds))))
        return
    measured = measure(asked, photos)
    print(json.dumps(measured, indent=1) if asked.json else in_words(measured))


def photos_of(folder: Path, count: int) -> list[Path]:
    """Some of them, from all classes."""
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        sys.exit(f"There are no photos in {folder}.")
    return found[:: max(1, len(found) // count)][:count]


def measure(asked: argparse.Namespace, photos: list[Path]) -> dict[str, Any]:
    """The rounds."""
    from accel_flowers.core.allocator import freed_memory_is_kept
    from accel_flowers.inference.image_classifier import load_model

    model = load_model(asked.model)
    program = [sys.executable, "-m", "accel_flowers", "serve", str(asked.model), "--port", "0", *asked.flags]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    rounds: list[dict[str, Any]] = []
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        if not address:
            sys.exit("The server does not start: run it by itself to see why.")
        port = address.rstrip("/").rpartition(":")[2]
        for _ in range(asked.rounds):
            with freed_memory_is_kept():  # as the command does
                told: dict[str, Any] = {"predict": predict_rate(model, photos, asked.seconds)}
            for count in asked.clients:
                words = [sys.executable, __file__, str(asked.model), "--photos", str(asked.photos)]
                words += ["--num-photos", str(asked.num_photos), "--clients", str(count)]
                words += ["--seconds", str(asked.seconds), "--ask", port]
                used = processor_seconds(server.pid)
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                told[str(count)] = json.loads(done.stdout)
                told[str(count)]["processor_ms"] = (
                    1000 * (processor_seconds(server.pid) - used) / told[str(count)]["answered"]
                )
            rounds.append(told)
        server.terminate()
    packages = ("torch", "fastapi", "uvicorn", "h11")
    return {"machine": machine(*packages), "clients": asked.clients, "photos": len(photos), "rounds": rounds}


def processor_seconds(process: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def predict_rate(model: Any, photos: list[Path], seconds: float) -> dict[str, float]:
    """Photos a second of `predict_each`, which is what `accel-flowers predict` runs."""
    begun = None
    count = 0
    used = 0.0
    for _ in model.predict_each(cycle(photos)):
        now = time.perf_counter()
        if begun is None:
            if count == 0:
                first = now
            if now - first > WARM_UP and count % model.spec.eval_batch_size == 0:
                begun, count, used = now, 0, time.process_time()
        elif now - begun > seconds and count % model.spec.eval_batch_size == 0:
            return {
                "rate": count / (now - begun),
                "processor_ms": 1000 * (time.process_time() - used) / count,
            }
        count += 1
    raise AssertionError("cycle ends")


async def ask_all(photos: list[Path], port: int, num_clients: int, seconds: float) -> dict[str, Any]:
    """What the clients of one process see."""
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    requests = [head.format(len(data)).encode() + data for data in (photo.read_bytes() for photo in photos)]
    begin = time.perf_counter() + WARM_UP
    end = begin + seconds
    taken: list[float] = []
    answered = 0

    async def client(place: int) -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in islice(cycle(requests), place * len(requests) // num_clients, None):
            asked = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode())
            await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
            now = time.perf_counter()
            answered += 1
            if now > end:
                break
            if asked >= begin:
                taken.append(now - asked)
        writer.close()

    used = time.process_time()
    await asyncio.gather(*(client(place) for place in range(num_clients)))
    taken.sort()
    return {
        "answered": answered,
        "rate": len(taken) / seconds,
        "p50_ms": 1000 * taken[len(taken) // 2],
        "p99_ms": 1000 * taken[len(taken) * 99 // 100],
        "client_cores": (time.process_time() - used) / (seconds + WARM_UP),
    }


def in_words(measured: dict[str, Any]) -> str:
    """A table."""
    rounds = measured["rounds"]

    def values(who: str, name: str) -> list[float]:
        return [each[who][name] for each in rounds]

    head = (
        "",
        "photos a second",
        "of `predict`",
        "p50 ms",
        "p99 ms",
        "processor ms a photo",
        "`predict`'s / that",
        "client, of a core",
    )
    lines = [measured["machine"], "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    rate, cost = values("predict", "rate"), values("predict", "processor_ms")
    lines.append(f"| `predict` | {spread(rate, 1)} | | | | {spread(cost, 1)} | | |")
    for count in map(str, measured["clients"]):
        row = [
            f"{count} client{'' if count == '1' else 's'}",
            spread(values(count, "rate"), 1),
            ratio(values(count, "rate"), rate),
            spread(values(count, "p50_ms"), 0),
            spread(values(count, "p99_ms"), 0),
            spread(values(count, "processor_ms"), 1),
            ratio(cost, values(count, "processor_ms")),
            spread(values(count, "client_cores"), 2),
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
