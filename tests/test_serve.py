"""`accel-flowers serve`: a real server is asked as `predict` is, by many at once, and by clients that mean it no good."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import re
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import jsonschema
import pytest
import torch
from PIL import Image

from accel_flowers.cli.commands import dispatch
from accel_flowers.cli.main import main
from accel_flowers.core.errors import UserError
from accel_flowers.inference.predict import predict_files
from accel_flowers.models.find import build_network
from accel_flowers.models.saved import load_spec, save_model
from accel_flowers.models.spec import ModelSpec
from accel_flowers.models.weights import clean_state_dict
from accel_flowers.serving.app import build_app
from accel_flowers.serving.batching import Batcher
from accel_flowers.serving.limits import MOST_CLIENTS, HeldBytes, Limits, TokenBuckets, client_key
from accel_flowers.serving.metrics import Metrics
from accel_flowers.serving.page import build_page
from accel_flowers.serving.security import Door, choose_token, host_name, is_loopback
from accel_flowers.serving.subject import load_subject
from tests.bad_images import ACCEPTED, REFUSED, write_corpus
from tests.conftest import CLASSES, draw_image
from tests.runs import PROJECT
from tests.served import Served, counted, serve

TOKEN = "the-token-of-these-tests"
MAX_BYTES = 1 << 20
HOSTILE = "<script>alert(1)</script>"


NAMES = (*CLASSES, HOSTILE)


def write_model(directory: Path, *, thresholds: tuple[float, ...] | None = None) -> Path:
    """A small model with random weights whose answers differ from picture to picture; with thresholds, of several labels."""
    several = thresholds is not None
    torch.manual_seed(1)
    network = build_network("squeezenet1_1", len(NAMES))[0].eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.2)
    spec = ModelSpec(
        architecture="squeezenet1_1",
        class_names=NAMES,
        transforms=({"Resize": {"size": [64, 64]}},),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        temperature=None if several else 1.5,
        several_labels=several,
        thresholds=thresholds,
        scores={"test": {"num_images": 40, "accuracy": 0.75, "map": 0.75}},
    )
    save_model(directory, clean_state_dict(network), spec)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("flowers") / "model")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With a token and narrow limits."""
    words = ("--max-mb", "1", "--max-files", "4", "--body-seconds", "1", "--header-seconds", "1", "--rate", "20")
    folder = tmp_path_factory.mktemp("server")
    with serve(model, folder, *words, environment={"ACCEL_FLOWERS_TOKEN": TOKEN}) as served:
        yield served
        served.stop()
        assert list(served.temporary.iterdir()) == [], "pictures stay in memory"
        assert TOKEN not in served.log.read_text()


_NUMBERS = itertools.count(2)


def new_address() -> str:
    """Of a client that has not asked yet, so that the rate of one test is not that of another."""
    return f"127.0.1.{next(_NUMBERS)}"


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with server.client(token=TOKEN, address=new_address()) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        draw_image(CLASSES[number % 3], number, (90 + number, 70)).save(folder / f"{number:02d}.jpg", quality=95)
    return sorted(folder.iterdir())


def form(*files: Path | bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Files as a form's; those of no file are called 1.jpg."""
    return [("file", ("1.jpg", file) if isinstance(file, bytes) else (file.name, file.read_bytes())) for file in files]


def slow_picture(side: int = 6000) -> bytes:
    """A PNG of a few kilobytes that takes half a second to decode and scale."""
    stream = io.BytesIO()
    Image.new("P", (side, side)).save(stream, "PNG", compress_level=9)
    return stream.getvalue()


def as_told(row: Any) -> list[tuple[str, float]]:
    return [(each["class"], each["probability"]) for each in row["top"]]


def agree(told: list[tuple[str, float]], expected: tuple[tuple[str, float], ...]) -> bool:
    return [name for name, _ in told] == [name for name, _ in expected] and [
        value for _, value in told
    ] == pytest.approx([value for _, value in expected], abs=2e-6)


# ---- what it answers ----


@pytest.mark.holds("A server says what `predict` says")
def test_it_answers_as_predict_does(client: httpx.Client, model: Path, pictures: list[Path]) -> None:
    expected = list(predict_files(model, pictures, top_k=4))
    assert len({row.top[0][1] for row in expected}) > 6, "the answers differ"

    def ask(places: range) -> list[tuple[int, Any]]:
        answer = client.post("/predict?top_k=4", files=form(*(pictures[place] for place in places)))
        assert answer.status_code == 200, answer.text
        return list(zip(places, answer.json()["predictions"], strict=True))

    chunks = [range(place, place + size) for size in (1, 2, 3, 4) for place in range(0, 12, size)]
    with ThreadPoolExecutor(8) as threads:
        told = [pair for pairs in threads.map(ask, chunks) for pair in pairs]
    assert len(told) == 48
    for place, row in told:
        assert agree(as_told(row), expected[place].top), pictures[place]
        assert row["name"] == pictures[place].name
        assert row["calibrated"] is True
        assert row.keys() == {"name", "top", "calibrated"}


def test_a_body_that_is_a_picture(client: httpx.Client, model: Path, pictures: list[Path]) -> None:
    (expected,) = predict_files(model, pictures[:1], top_k=None)
    for kind in ("image/jpeg", "image/png", "application/octet-stream"):  # the first bytes tell the kind
        answer = client.post("/predict", content=pictures[0].read_bytes(), headers={"content-type": kind})
        (row,) = answer.json()["predictions"]
        assert agree(as_told(row), expected.top)
        assert row["name"] == "picture"
    assert answer.json()["model"]["architecture"] == "squeezenet1_1"


@pytest.mark.holds("A server says what `predict` says")
def test_several_labels(tmp_path: Path, pictures: list[Path]) -> None:
    first = predict_files(write_model(tmp_path / "model", thresholds=(0,) * 4), pictures, top_k=4)
    said = [dict(row.top) for row in first]
    middle = {name: median(each[name] for each in said) for name in NAMES}
    directory = write_model(tmp_path / "model", thresholds=tuple(middle[name] for name in NAMES))
    for query, top_k in (("", None), ("?top_k=3", 3)):
        expected = list(predict_files(directory, pictures, top_k=top_k))
        answer = asked_here(directory, f"/predict{query}", form(*pictures))
        for row, wanted in zip(answer["predictions"], expected, strict=True):
            assert agree(as_told(row), wanted.top)
            assert tuple(row["labels"]) == wanted.labels
            assert row["calibrated"] is False
    assert len({row.labels for row in expected}) > 1, "the answers differ"


def asked_here(model: Path, path: str, files: list[Any]) -> Any:
    """The answer of the routes alone, in this process."""

    async def ask() -> Any:
        subject, limits, metrics = load_subject(model), Limits(), Metrics()
        batcher = Batcher(subject, limits, metrics, num_workers=1, loop=asyncio.get_running_loop())
        page = build_page(subject, limits, input_size=(64, 64))
        app = build_app(subject, lambda: batcher, page, limits, metrics, is_stopping=lambda: False, has_token=False)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            answer = await client.post(path, files=files)
        batcher.stop()
        return answer.json()

    return asyncio.run(ask())


def test_where_it_looked(client: httpx.Client, pictures: list[Path]) -> None:
    before = client.post("/predict?top_k=4", files=form(pictures[0])).json()
    answer = client.post("/predict?top_k=4&heatmap=true", files=form(*pictures[:2])).json()
    for row in answer["predictions"]:
        kind, _, data = row["heatmap"].partition(",")
        assert kind == "data:image/png;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (shown.size, shown.mode) == ((64, 64), "RGB")
    after = client.post("/predict?top_k=4", files=form(pictures[0])).json()
    assert before == after, "the network is as it was"


def test_the_model_is_described(client: httpx.Client, model: Path) -> None:
    told = client.get("/model").json()
    assert told["classes"] == list(load_spec(model).class_names)
    assert told["name"] == model.parent.name
    assert re.fullmatch("[0-9a-f]{16}", told["digest"])
    assert told["scores"] == {"test": {"num_images": 40, "accuracy": 0.75, "map": 0.75}}
    assert client.get("/health").json()["model"]["digest"] == told["digest"]
    page = client.get("/")
    assert page.status_code == 200
    assert HOSTILE not in page.text
    assert "&lt;script&gt;alert(1)" in page.text


# ---- bad pictures and bad forms ----


@pytest.mark.holds("What a server is sent ends in an answer, and the server goes on")
def test_every_bad_picture_gets_its_answer(server: Served, tmp_path: Path, pictures: list[Path]) -> None:
    verdicts = write_corpus(tmp_path)

    def send(data: bytes) -> httpx.Response:
        if sum(sent.values()) % 30 == 0:
            clients.append(server.client(token=TOKEN, address=new_address()))
        return clients[-1].post("/predict", content=data, headers={"content-type": "image/jpeg"})

    clients: list[httpx.Client] = []
    sent = {REFUSED: 0, ACCEPTED: 0}
    for name, verdict in verdicts.items():
        file = tmp_path / name
        if verdict.verdict not in sent or "/not files/" in name or not file.is_file():
            continue
        data = file.read_bytes()
        answer = send(data)
        if verdict.verdict == ACCEPTED:
            assert answer.status_code == 200, (name, answer.text)
        else:
            assert 400 <= answer.status_code < 500, (name, answer.text)
            if data and len(data) < MAX_BYTES:
                assert re.search(verdict.words, answer.json()["message"]), (name, answer.text)
        sent[verdict.verdict] += 1
    assert sent[REFUSED] > 60
    assert sent[ACCEPTED] > 60
    assert send(pictures[0].read_bytes()).status_code == 200
    for client in clients:
        client.close()


def test_a_bad_picture_among_good_ones(client: httpx.Client, pictures: list[Path]) -> None:
    answer = client.post("/predict", files=form(pictures[0], b"\xff\xd8\xff", pictures[1]))
    assert answer.status_code == 200
    assert [("error" in row, len(row["top"])) for row in answer.json()["predictions"]] == [
        (False, 1), (True, 0), (False, 1),
    ]  # fmt: skip
    answer = client.post("/predict", files=form(b"\xff\xd8\xff", b"nothing"))
    assert answer.status_code == 422
    assert answer.json()["error"] == "unreadable"
    assert "1.jpg: not a JPEG" in answer.json()["message"]
    assert len(answer.json()["predictions"]) == 2


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="1.jpg"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "multipart/form-data; boundary=x", 400),
        (b"no form", "multipart/form-data; boundary=x", 400),
        (FORM + b"data", "multipart/form-data; boundary=x", 400),
        (FORM + b"data\r\n--x--\r\n", "multipart/form-data; boundary=x", 422),
        (FORM + b"data\r\n--x--\r\n", "multipart/form-data; boundary=y", 400),
        (FORM + b"data\r\n--x--\r\n", "multipart/form-data", 400),
        (FORM.replace(b'"file"', b'"other"') + b"data\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (FORM.replace(b"filename", b"nothing") + b"data\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
        (FORM[:20] + b"y" * 50_000, "multipart/form-data; boundary=x", 400),
        (b"--x\r\n" + b"A: b\r\n" * 20_000, "multipart/form-data; boundary=x", 400),
        (b"--x\r\n\r\n\r\n" * 20_000, "multipart/form-data; boundary=x", 400),
        (b"\xff" * 500, "multipart/form-data; boundary=" + "x" * 500, 400),
        (b"", "image/jpeg", 400),
        (b"{}", "application/json", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"x", "", 415),
    ],
)
@pytest.mark.holds("What a server is sent ends in an answer, and the server goes on")
def test_a_form_that_is_none(client: httpx.Client, body: bytes, content_type: str, status: int) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": content_type})
    assert (answer.status_code, answer.json().keys() >= {"error", "message"}) == (status, True), answer.text


@pytest.mark.parametrize("query", ["top_k=0", "top_k=5", "top_k=-1", "top_k=x", "top_k=" + "9" * 30, "heatmap=perhaps"])
def test_numbers_out_of_range(client: httpx.Client, pictures: list[Path], query: str) -> None:
    answer = client.post(f"/predict?{query}", files=form(pictures[0]))
    assert answer.status_code == 422
    assert answer.json()["error"] == "parameter"


def raw(server: Served, *pieces: bytes, pause: float = 0) -> bytes:
    """All that the server answers to bytes, until it closes the connection."""
    with server.connect() as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break  # it has closed, and said why
            time.sleep(pause)
        answer = b""
        try:
            while piece := connection.recv(1 << 16):
                answer += piece
        except ConnectionResetError:
            pass
    return answer


HEAD = (
    f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: image/jpeg\r\n"
).encode()


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12])


@pytest.mark.holds("A server bounds what a client may take")
def test_a_body_that_is_too_large(server: Served, client: httpx.Client, pictures: list[Path]) -> None:
    large = bytes(MAX_BYTES + 1)
    answer = client.post("/predict", content=large, headers={"content-type": "image/jpeg"})
    assert (answer.status_code, answer.json()["error"]) == (413, "body_too_large")
    assert "1 MiB" in answer.json()["message"]

    def without_length() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 16)

    answer = client.post("/predict", content=without_length(), headers={"content-type": "image/jpeg"})
    assert (answer.status_code, answer.json()["error"]) == (413, "body_too_large")
    told = raw(server, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert status_of(told) == 413
    assert b"connection: close" in told
    assert client.post("/predict", files=form(*pictures[:5])).json()["error"] == "too_many_files"
    assert client.post("/predict", files=form(*pictures[:4])).status_code == 200


@pytest.mark.holds("A server bounds what a client may take")
def test_clients_that_never_finish(server: Served, client: httpx.Client, pictures: list[Path]) -> None:
    """A body that stops, one that drips, a head that stops, a second head that stops, nothing at all; all at once."""
    body = HEAD + b"Content-Length: 1000\r\n\r\n"
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    asked: dict[str, Callable[[], bytes]] = {
        "body": lambda: raw(server, body + b"abc"),
        "drip": lambda: raw(server, body, *[b"x"] * 30, pause=0.1),
        "head": lambda: raw(server, b"POST /predict HTTP/1.1\r\nHost: loc"),
        "second": lambda: raw(server, whole, b"GET /hea", pause=0.1),
        "nothing": lambda: raw(server),
    }
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        answers = {name: threads.submit(ask) for name, ask in asked.items()}
        time.sleep(0.2)
        assert client.post("/predict", files=form(pictures[0])).status_code == 200, "others are served meanwhile"
        told = {name: answer.result() for name, answer in answers.items()}
    assert time.monotonic() - begun < 6
    assert {name: status_of(answer) for name, answer in told.items() if name != "second"} == {
        "body": 408, "drip": 408, "head": 408, "nothing": 408,
    }  # fmt: skip
    assert status_of(told["second"]) == 200
    assert b"HTTP/1.1 408 " in told["second"]


@pytest.mark.holds("What a server is sent ends in an answer, and the server goes on")
@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"\0" * 1000,
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
    ],
)
def test_what_is_no_request(server: Served, text: bytes) -> None:
    assert 400 <= status_of(raw(server, text)) < 500
    assert httpx.get(f"{server.url}/health").status_code == 200


# ---- who may ask ----


@pytest.mark.holds("Nobody asks a server who may not")
def test_a_token_is_needed(server: Served, pictures: list[Path]) -> None:
    with server.client(address="127.0.0.3") as nobody:
        assert nobody.get("/health").json()["status"] == "ready"
        for path in ("/", "/model", "/metrics", "/openapi.json", "/nowhere"):
            answer = nobody.get(path)
            assert (answer.status_code, answer.json()["error"]) == (401, "token"), path
            assert answer.headers["www-authenticate"].startswith("Bearer")
        assert nobody.post("/predict", files=form(pictures[0])).status_code == 401
        page = nobody.get("/", headers={"accept": "text/html"})
        assert (page.status_code, 'name="token"' in page.text) == (401, True)
        assert nobody.get("/model", headers={"authorization": f"Basic {TOKEN}"}).status_code == 401
        for wrong in ("x", TOKEN[:-1], f"{TOKEN}x", "\xe9"):
            given = f"Bearer {wrong}".encode("latin-1")
            assert nobody.get("/model", headers={"authorization": given}).status_code == 401
        assert nobody.get("/?token=wrong").status_code == 401
    with server.client(address="127.0.0.4") as browser:
        entered = browser.get(f"/?token={TOKEN}")
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        assert browser.get("/").status_code == 200
        assert browser.post("/predict", files=form(pictures[0])).status_code == 200
    with server.client(address="127.0.0.4") as linked:
        entered = linked.get(f"/?token={TOKEN}", headers={"sec-fetch-site": "cross-site"})
        assert (entered.status_code, "url=/" in entered.text) == (200, True)


@pytest.mark.holds("Nobody asks a server who may not")
def test_tokens_cannot_be_tried_out(server: Served) -> None:
    with server.client(address="127.0.0.5", token="wrong") as guesser:
        told = [guesser.get("/model").status_code for _ in range(20)]
        assert told[:5] == [401] * 5
        assert told[-5:] == [429] * 5
        assert guesser.get("/model", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 429
    with server.client(address="127.0.0.6", token=TOKEN) as other:
        assert other.get("/model").status_code == 200


@pytest.mark.holds("Nobody asks a server who may not")
def test_a_foreign_name_or_page_is_refused(client: httpx.Client, pictures: list[Path]) -> None:
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.nip.io", ""):
        assert client.get("/health", headers={"host": host}).status_code == 421, host
    for host in ("localhost", "LOCALHOST:9", "127.0.0.1:1", "[::1]:8000"):
        assert client.get("/health", headers={"host": host}).status_code == 200, host
    for headers, status in (
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1"}, 200),
        ({"origin": "http://127.0.0.1:1234"}, 200),
    ):
        assert client.post("/predict", files=form(pictures[0]), headers=headers).status_code == status, headers


@pytest.mark.holds("A server bounds what a client may take")
def test_a_client_that_asks_too_often(server: Served) -> None:
    with server.client(address="127.0.0.7", token=TOKEN) as eager:
        statuses = [eager.post("/predict", content=b"x", headers={"content-type": "a/b"}) for _ in range(150)]
    told = {answer.status_code for answer in statuses}
    assert told == {415, 429}
    refused = next(answer for answer in statuses if answer.status_code == 429)
    assert (refused.json()["error"], refused.headers["retry-after"]) == ("rate", "1")
    with server.client(address="127.0.0.8", token=TOKEN) as other:
        assert other.post("/predict", content=b"x", headers={"content-type": "a/b"}).status_code == 415


def test_every_answer_tells_browsers_what_to_forbid(client: httpx.Client) -> None:
    for path, status in (("/", 200), ("/health", 200), ("/nowhere", 404), ("/predict", 405)):
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "server" not in answer.headers


# ---- what it tells of itself ----


def test_metrics_count_what_happened(client: httpx.Client, pictures: list[Path]) -> None:
    def numbers() -> dict[str, float]:
        return counted(client.get("/metrics").text)

    before = numbers()
    client.post("/predict", files=form(*pictures[:3]))
    client.post("/predict", files=form(b"none"))
    client.post("/predict", content=b"x", headers={"content-type": "a/b"})
    client.get("/somewhere/else")
    after = numbers()
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert grown['accel_flowers_requests_total{path="/predict",status="200"}'] == 1
    assert grown['accel_flowers_requests_total{path="/predict",status="422"}'] == 1
    assert grown['accel_flowers_requests_total{path="other",status="404"}'] == 1
    assert grown['accel_flowers_rejected_total{reason="content_type"}'] == 1
    assert grown['accel_flowers_rejected_total{reason="unreadable"}'] == 1
    assert grown['accel_flowers_pictures_total{became="answered"}'] == 3
    assert grown['accel_flowers_pictures_total{became="unreadable"}'] == 1
    assert grown["accel_flowers_request_seconds_count"] == 3
    assert grown["accel_flowers_batch_pictures_sum"] == 3
    assert after["accel_flowers_queue_pictures"] == 0


def test_openapi_describes_the_answers(client: httpx.Client, pictures: list[Path]) -> None:
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    text = json.dumps(described)
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', text))
    assert references
    assert references <= schemas.keys()
    assert {"401", "408", "413", "415", "422", "429", "503"} <= described["paths"]["/predict"]["post"][
        "responses"
    ].keys()
    assert described["security"] == [{"token": []}]

    def check(answer: httpx.Response, path: str, method: str = "post") -> None:
        content = described["paths"][path][method]["responses"][str(answer.status_code)]["content"]
        schema = {**content["application/json"]["schema"], "components": described["components"]}
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(answer.json(), schema)

    check(client.post("/predict?heatmap=true", files=form(pictures[0])), "/predict")
    check(client.post("/predict", files=form(b"none", b"")), "/predict")
    check(client.post("/predict", content=b""), "/predict")
    check(client.post("/predict?top_k=99", files=form(pictures[0])), "/predict")
    check(client.get("/model"), "/model", "get")
    check(client.get("/health"), "/health", "get")
    with pytest.raises(jsonschema.ValidationError):
        check(client.get("/model"), "/health", "get")


def test_a_line_for_each_request(server: Served, client: httpx.Client, pictures: list[Path]) -> None:
    before = len(server.lines())
    client.post("/predict?top_k=2", files=form(pictures[0], pictures[1]))
    client.get(f"/?token={TOKEN}")
    client.get("/%1b[31mred%0aline")
    wait_until(lambda: len(server.lines()) >= before + 3)  # a line follows its answer
    new = server.lines()[before:]
    assert len(new) == 3
    assert re.fullmatch(r"POST /predict  200  \d+ ms  2 pictures", new[0])
    assert re.fullmatch(r"GET /  303  \d+ ms", new[1])
    assert re.fullmatch(r"GET /\\x1b\[31mred\\nline  404  \d+ ms", new[2])
    assert pictures[0].name not in "".join(server.lines())


# ---- how it begins and ends ----


@pytest.mark.holds("A server that is told to stop finishes what is under way")
def test_full_then_stopped(model: Path, tmp_path: Path, pictures: list[Path]) -> None:
    """Of a server for two pictures at once: a third is refused, one whose client has left is not computed; then SIGTERM."""
    words = ("--max-queue", "2", "--max-files", "1", "--num-workers", "1", "--log-format", "json")
    with serve(model, tmp_path / "server", *words) as served, served.client() as client:
        slow = slow_picture()

        def ask(data: bytes) -> httpx.Response:
            return httpx.post(f"{served.url}/predict", files=form(data), timeout=60)

        def under_way() -> float:
            return counted(client.get("/metrics").text)["accel_flowers_queue_pictures"]

        with ThreadPoolExecutor(4) as threads:
            first = threads.submit(ask, slow)
            wait_until(lambda: under_way() == 1)
            with served.connect() as leaver:
                head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                leaver.sendall(head + b"Content-Length: %d\r\n\r\n" % len(slow) + slow)
                wait_until(lambda: under_way() == 2)
                full = ask(pictures[0].read_bytes())
            assert (full.status_code, full.json()["error"], full.headers["retry-after"]) == (429, "queue_full", "1")
            assert first.result().status_code == 200
            wait_until(lambda: under_way() == 0)
            numbers = counted(client.get("/metrics").text)
            assert numbers['accel_flowers_pictures_total{became="abandoned"}'] == 1
            assert numbers["accel_flowers_batch_pictures_sum"] == 1, "the one that was left was not computed"
            last = threads.submit(ask, slow)
            wait_until(lambda: under_way() == 1)
            served.process.send_signal(signal.SIGTERM)
            assert last.result().status_code == 200
        assert served.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.url}/health")
        lines = [json.loads(line) for line in served.lines()]
        assert lines[-1]["message"] == "stopped"
        told = [line for line in lines if line.get("path") == "/predict"]
        assert sorted((line["status"], line["pictures"]) for line in told) == [(200, 1), (200, 1), (429, 1), (499, 1)]
        assert {"time", "level", "ms", "method"} <= told[0].keys()
        assert list(served.temporary.iterdir()) == []


def wait_until(is_so: Callable[[], bool], *, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def refused_start(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What is said of a server that does not start."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["serve", *map(str, words)])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    return err


@pytest.mark.holds("A server that cannot serve says so before it starts")
def test_mistakes_are_told_before_anything_starts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCEL_FLOWERS_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} of 127.0.0.1 cannot be had: Address already in use" in refused_start(capsys, model, "--port", str(port))  # fmt: skip
    assert "has no config.json" in refused_start(capsys, tmp_path, "--port", "0")
    assert "needs a token: --token auto" in refused_start(capsys, model, "--host", "0.0.0.0")
    assert "at least 12 characters" in refused_start(capsys, model, "--token", "short")
    assert "--port 70000 is not allowed" in refused_start(capsys, model, "--port", "70000")
    assert "is no address of this machine" in refused_start(capsys, model, "--host", "nowhere.invalid", "--token", "auto")  # fmt: skip
    assert "--max-batch: out of range" in refused_start(capsys, model, "--max-batch", "0")
    assert "--max-mb 0 is not allowed" in refused_start(capsys, model, "--max-mb", "0")
    assert "--rate, --body-seconds: out of range" in refused_start(capsys, model, "--rate", "0", "--body-seconds", "-1")
    assert "--max-queue is at least" in refused_start(capsys, model, "--max-queue", "3")
    assert "--num-workers 0 is not allowed" in refused_start(capsys, model, "--num-workers", "0")
    assert "put a proxy with TLS before it" in refused_start(capsys, model, "--ssl")


def test_for_others_behind_a_proxy(model: Path, tmp_path: Path) -> None:
    """On all addresses, with a token that was made; a proxy's word on clients is believed, nobody else's."""
    words = ("--host", "0.0.0.0", "--token", "auto", "--max-connections", "4", "--proxy", "127.0.0.1", "--rate", "1")
    with serve(model, tmp_path / "server", *words) as served:
        assert "the traffic is not encrypted" in served.log.read_text()
        served.url = f"http://127.0.0.1:{served.port}"
        assert served.token is not None
        assert len(served.token) >= 32
        assert httpx.get(f"{served.url}/model").status_code == 401
        assert httpx.get(f"{served.url}/health", headers={"host": "any.example"}).status_code == 200
        with served.client(token=served.token) as proxy, served.client(token=served.token, address="127.0.0.9") as liar:

            def status(through: httpx.Client, client: str) -> int:
                return through.post("/predict", content=b"x", headers={"x-forwarded-for": client}).status_code

            assert [status(proxy, "10.0.0.1") for _ in range(4)][-1] == 429
            assert status(proxy, "10.0.0.2") == 415
            assert [status(liar, f"10.0.1.{number}") for number in range(4)][-1] == 429
            for scheme, secure in (("http", False), ("https", True)):
                entered = proxy.get(f"/?token={served.token}", headers={"x-forwarded-proto": scheme})
                assert ("; Secure" in entered.headers["set-cookie"]) == secure
        crowd = [served.connect() for _ in range(4)]
        answer = raw(served, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (status_of(answer), b'"connections"' in answer) == (503, True)
        for connection in crowd:
            connection.close()
        wait_until(lambda: httpx.get(f"{served.url}/health").status_code == 200)
        assert served.stop(signal.SIGINT) == 0
        assert served.token not in served.log.read_text()


# ---- parts ----


def test_a_bucket_fills_at_its_rate() -> None:
    now = [100.0]
    buckets = TokenBuckets(2, burst=3, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(5)] == [True, True, True, False, False]
    now[0] += 1
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    assert buckets.take("b"), "each has its own"
    now[0] += 1000
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    for number in range(MOST_CLIENTS + 50):
        buckets.take(str(number))
    assert len(buckets) == MOST_CLIENTS


def test_what_counts_as_a_client() -> None:
    assert client_key("10.0.0.1") == "10.0.0.1"
    assert client_key("2001:db8:1:2:3:4:5:6") == client_key("2001:db8:1:2::1")
    assert client_key("2001:db8:1:3::1") != client_key("2001:db8:1:2::1")
    assert client_key("::ffff:10.0.0.1") == "10.0.0.1"
    assert client_key("") == ""


def test_bytes_that_are_held_are_bounded() -> None:
    held = HeldBytes(10)
    assert held.take(6)
    assert not held.take(5)
    held.give_back(6)
    assert held.take(10)


def test_names_of_hosts() -> None:
    told = {"localhost:8000": "localhost", "[::1]:80": "::1", "[::1]": "::1", "A.Example": "a.example", "::1": "::1"}
    assert {header: host_name(header) for header in told} == told
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example", "")] == [False] * 5


def test_a_cookie_opens_its_own_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_FLOWERS_TOKEN", "x" * 12)
    assert choose_token(None, host="127.0.0.1") == "x" * 12
    one, two = (Door(choose_token("auto", host="0.0.0.0"), hosts=(), port=port) for port in (1, 2))
    name, _, value = one.cookie(secure=True).partition(";")[0].partition("=")
    assert one.cookie(secure=True).endswith("; Secure")
    assert one.opens({"cookie": f"a=b; {name}={value}"})
    assert not two.opens({"cookie": f"{two.cookie_name}={value}"})
    assert not one.opens({"cookie": name})


@pytest.mark.slow
@pytest.mark.holds("A server that is told to stop finishes what is under way")
def test_what_takes_longer_than_it_may_is_cut_off(model: Path, tmp_path: Path) -> None:
    with serve(model, tmp_path / "server", "--drain-seconds", "1", "--num-workers", "1") as served:
        slow = slow_picture(13_000)
        with ThreadPoolExecutor(4) as threads:
            asked = [
                threads.submit(httpx.post, f"{served.url}/predict", files=form(slow), timeout=60) for _ in range(4)
            ]
            wait_until(lambda: counted(httpx.get(f"{served.url}/metrics").text)["accel_flowers_queue_pictures"] == 4)
            begun = time.monotonic()
            assert served.stop() == 1
            assert time.monotonic() - begun < 5
            told = [each.result() for each in asked]
        assert {(answer.status_code, answer.json()["error"]) for answer in told} == {(503, "stopping")}
        assert "4 requests were cut off" in served.log.read_text()


@pytest.mark.slow
@pytest.mark.holds("A server that is told to stop finishes what is under way")
def test_a_second_signal_ends_at_once_and_a_kill_leaves_nothing(model: Path, tmp_path: Path) -> None:
    slow = slow_picture(12_000)
    for number, name in ((signal.SIGTERM, "twice"), (signal.SIGKILL, "killed")):
        with serve(model, tmp_path / name) as served, served.connect() as connection:
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(slow) + slow)
            time.sleep(0.5)
            served.process.send_signal(number)
            if number is signal.SIGTERM:
                time.sleep(0.1)
                served.process.send_signal(number)
            assert served.process.wait(2) in (128 + signal.SIGTERM, -signal.SIGKILL)
            assert list(served.temporary.iterdir()) == []
        with socket.create_server(("127.0.0.1", served.port)):
            pass  # the port is free again


def test_containers_are_made_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Dockerfiles copy is there and not left out of what the builder is given; their words are understood."""
    files = sorted((PROJECT / "docker").glob("*.Dockerfile"))
    assert [file.stem for file in files] == ["serve", "train"]
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for file in files:
        text = file.read_text()
        given = file.with_name(f"{file.name}.dockerignore").read_text().split()
        copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE) for name in line.split()]
        assert len(copied) > 4
        assert all((PROJECT / name).exists() and f"!{name}" in given for name in copied)
        found = re.findall(r'pip install "\.\[(.+)\]"|pip install (--no-deps \.)', text)
        assert len(found) == 1
        assert set(found[0][0].split(",")) <= {*extras, ""}
        assert "\nUSER 10001\n" in text
        (begin,) = re.findall(r"^ENTRYPOINT (.+)$", text, flags=re.MULTILINE)
        (usual,) = re.findall(r"^CMD (.+)$", text, flags=re.MULTILINE)
        program, *words = [*json.loads(begin), *json.loads(usual)]
        assert program == "accel-flowers"
        monkeypatch.delenv("ACCEL_FLOWERS_TOKEN", raising=False)
        with pytest.raises((UserError, SystemExit)) as caught:
            dispatch(words) or sys.exit()
        assert words == ["--help"] or "needs a token" in str(caught.value)
