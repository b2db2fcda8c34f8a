"""All that `accel-flowers serve` does, in its order: see that it may, take the port, read the model, answer until told to stop."""

from __future__ import annotations

import asyncio
import io
import logging
import os
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accel_flowers.core.console import log_json_lines, results, write_result
from accel_flowers.core.errors import UserError
from accel_flowers.core.machine import available_cores
from accel_flowers.core.plural import number_of
from accel_flowers.serving.limits import Limits

if TYPE_CHECKING:
    import socket

    from accel_flowers.serving.security import Door
    from accel_flowers.serving.subject import Model

_log = logging.getLogger(__name__)


def serve_model(
    path: Path,
    limits: Limits,
    *,
    host: str,
    port: int,
    token: str | None,
    allow_hosts: Sequence[str],
    proxies: Sequence[str],
    num_workers: int | None,
    json_log: bool,
) -> int:
    """Serve a model until a signal comes.

    Args:
        path: a run's `model/`, or an exported file.
        limits: what is taken from clients.
        host, port: where; port 0 = one that is free.
        token: what clients have to show; "auto" = one is made; None = that of the environment, or none on loopback.
        allow_hosts: more names by which the server may be called.
        proxies: addresses of reverse proxies, whose word on clients is believed.
        num_workers: threads that decode; None = the cores of this machine.
        json_log: whether the log is lines of JSON.

    Returns:
        Exit code: 0, or 1 where requests were cut off because they took longer than the server may take to stop.

    Raises:
        UserError: a mistake in the words, a model that cannot be read, an address that cannot be had.
    """
    _check_installed()
    limits.check()
    if num_workers is not None and num_workers < 1:
        raise UserError(f"--num-workers {num_workers} is not allowed: it is 1 or more.")
    from accel_flowers.serving.security import AUTO, Door, allowed_hosts, choose_token, is_loopback
    from accel_flowers.serving.server import address_of, bind

    chosen = choose_token(token, host=host)
    if json_log:
        log_json_lines()
    with closing(bind(host, port)) as opened:
        address = address_of(opened, host=host)
        door = Door(chosen, hosts=allowed_hosts(host, allow_hosts), port=opened.getsockname()[1])
        if not is_loopback(host):
            _log.warning(
                "the traffic is not encrypted: whoever is in this network can read photos, answers and the token. Put a proxy "
                "with TLS before it where that matters. (Taking a photo on a phone works without.)"
            )
        shown = f"{address}/?token={chosen}" if chosen is not None and token == AUTO else f"{address}/"
        return _serve(
            path, limits, door, opened, shown=shown, proxies=proxies, num_workers=num_workers, json_log=json_log
        )


def _serve(
    path: Path,
    limits: Limits,
    door: Door,
    opened: socket.socket,
    *,
    shown: str,
    proxies: Sequence[str],
    num_workers: int | None,
    json_log: bool,
) -> int:
    from prometheus_client import disable_created_metrics
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    from accel_flowers.core.allocator import freed_memory_is_kept
    from accel_flowers.serving.app import build_app
    from accel_flowers.serving.batching import Batcher
    from accel_flowers.serving.guard import Guard
    from accel_flowers.serving.metrics import Metrics
    from accel_flowers.serving.page import build_login_page, build_page
    from accel_flowers.serving.server import build_server, run
    from accel_flowers.serving.subject import load_subject

    disable_created_metrics()  # the time of each counter's making, as a metric of its own: twice the lines
    with freed_memory_is_kept(in_any_thread=True):
        subject = load_subject(path)
        input_size = warm_up(subject.model)
        metrics = Metrics()
        metrics.serves(subject.name, subject.digest)
        batchers: list[Batcher] = []

        def open_batcher(loop: asyncio.AbstractEventLoop) -> None:
            workers = num_workers or available_cores()
            batchers.append(Batcher(subject, limits, metrics, num_workers=workers, loop=loop))
            metrics.watch(
                queue=lambda: batchers[0].num_under_way, connections=lambda: len(server.server_state.connections)
            )
            _log.info(
                f"serving {subject.name} ({subject.spec.architecture}, {number_of(len(subject.spec.class_names), 'class', many='classes')}, "
                f"on {subject.device}, digest {subject.digest}); Ctrl-C stops it"
            )
            write_result(shown)
            results.flush()

        page = build_page(subject, limits, input_size=input_size)
        app = build_app(
            subject,
            lambda: batchers[0],
            page,
            limits,
            metrics,
            is_stopping=lambda: server.is_stopping,
            has_token=door.has_token,
        )
        guarded = Guard(app, door, limits, metrics, login=build_login_page(), as_json=json_log)
        outermost: Any = ProxyHeadersMiddleware(cast(Any, guarded), list(proxies)) if proxies else guarded
        server = build_server(outermost, limits, metrics)
        run(server, opened, before=open_batcher)
        if server.num_cut_off:
            _log.warning(
                f"{number_of(server.num_cut_off, 'request was', many='requests were')} cut off: not answered within "
                f"{limits.drain_seconds:g} s (--drain-seconds)"
            )
            results.flush()
            os._exit(1)  # a thread that decodes a large picture cannot be stopped, and would be waited for
        for batcher in batchers:
            batcher.stop()
    _log.info("stopped")
    return 0


def warm_up(model: Model) -> tuple[int, int] | None:
    """Ask a model once, so that the first client does not wait for what is made on first use.

    Returns:
        Height and width of what the network sees; None where the model takes pictures of any size.
    """
    from PIL import Image

    width, height = 331, 257  # that no network has
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(stream, "JPEG")
    pixels = model.read(stream.getvalue(), "warm-up")
    model.probabilities([pixels])
    seen = (int(pixels.shape[1]), int(pixels.shape[2]))
    return seen if pixels.shape[0] == 3 and seen != (height, width) else None


def _check_installed() -> None:
    missing = [
        name for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client") if find_spec(name) is None
    ]
    if missing:
        raise UserError(f"Serving needs {', '.join(missing)}: pip install 'accel-flowers[serve]'.")
