"""The routes: what is asked of the server, and what it answers. Who may ask, and how much, is the guard's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from accel_flowers import __version__
from accel_flowers.core.errors import UserError
from accel_flowers.core.plural import number_of
from accel_flowers.inference.prediction import check_numbers
from accel_flowers.serving.answers import (
    Answer,
    Facts,
    Health,
    Problem,
    Unreadable,
    facts_answer,
    model_answer,
    picture_answer,
)
from accel_flowers.serving.batching import Asked, Batcher, Said
from accel_flowers.serving.limits import Limits
from accel_flowers.serving.metrics import Metrics
from accel_flowers.serving.page import Page
from accel_flowers.serving.refusals import NOT_AVAILABLE, Refused
from accel_flowers.serving.subject import Subject
from accel_flowers.serving.uploads import FIELD, read_uploads

_DESCRIPTION = "Says what is on pictures: a saved model of accel-flowers behind a page and a JSON endpoint."
_PROBLEMS = {
    400: "The request cannot be understood: no picture in it, or a form that is damaged.",
    401: "The token is missing or wrong.",
    403: "A browser sent it from a page that is not this server's.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or has too many pictures.",
    415: "Neither a form with pictures nor a picture.",
    421: "The Host header names another server.",
    429: "Too many requests of this client, or too many pictures under way: Retry-After says when to ask again.",
    503: "The server has too many connections or too little memory for now, or the answer took too long.",
}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {
                    FIELD: {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "description": "The pictures; the field is repeated for several.",
                    }
                },
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary", "description": "One picture."}},
    },
}


class Json(Response):
    """Plain values as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def build_app(
    subject: Subject,
    batcher: Callable[[], Batcher],
    page: Page,
    limits: Limits,
    metrics: Metrics,
    *,
    is_stopping: Callable[[], bool],
    has_token: bool,
) -> FastAPI:
    """The application.

    Args:
        subject: the model.
        batcher: what answers, once the event loop runs.
        page: the page for people.
        limits: of a request.
        metrics: what is counted.
        is_stopping: whether the server was told to stop.
        has_token: whether a token is needed, for the description.
    """
    app = FastAPI(
        title=f"accel-flowers serve: {subject.name}",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # its page is made of scripts of another host
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    model, facts = model_answer(subject), facts_answer(subject)
    calibrated = subject.calibrated

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page.html, headers={"content-security-policy": page.policy})

    @app.post(
        "/predict",
        response_model=Answer,
        responses={
            **{status: {"model": Problem, "description": text} for status, text in _PROBLEMS.items()},
            422: {"model": Unreadable, "description": "No picture could be read, or a number is out of range."},
        },
        openapi_extra={"requestBody": _BODY},
        summary="Say what is on pictures",
    )
    async def predict(
        request: Request,
        top_k: Annotated[
            int | None,
            Query(description="Classes to tell of each picture; without it as many as `accel-flowers predict` tells."),
        ] = None,
        heatmap: Annotated[bool, Query(description="Also show where the network looked.")] = False,
    ) -> Response:
        _check(subject, top_k, heatmap)
        uploads = await read_uploads(
            request.headers.get("content-type", ""), request.stream(), max_files=limits.max_files
        )
        request.state.num_pictures = len(uploads)
        asked = batcher().ask(uploads, top_k=top_k, heatmap=heatmap)
        del uploads  # the threads that decode hold what is still needed
        told = [
            picture_answer(each, calibrated=calibrated)
            for each in await _answers(asked, request, limits.answer_seconds)
        ]
        if all("error" in each for each in told):
            message = "; ".join(f"{each['name']}: {each['error']}" for each in told[:3])
            if len(told) > 3:
                message += f"; and {number_of(len(told) - 3, 'more picture')}"
            metrics.rejected("unreadable")
            return Json({"error": "unreadable", "message": message, "predictions": told}, 422)
        return Json({"model": model, "predictions": told})

    @app.get("/model", response_model=Facts, summary="The model: classes, thresholds, scores")
    async def about() -> Response:
        return Json(facts)

    @app.get(
        "/health",
        response_model=Health,
        responses={503: {"model": Health, "description": "It is stopping, or can no longer answer."}},
        summary="Whether the server can answer; needs no token",
    )
    async def health() -> Response:
        ready = batcher().alive and not is_stopping()
        return Json({"status": "ready" if ready else "stopping", "model": model}, 200 if ready else 503)

    @app.get("/metrics", response_class=Response, summary="Counters for Prometheus", responses={200: {"content": {"text/plain": {}}}})  # fmt: skip
    async def measured() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.exception_handler(Refused)
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return refusal(error, metrics)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return refusal(Refused(422, "parameter", f"{'.'.join(map(str, first['loc']))}: {first['msg']}."), metrics)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason = {404: "not_found", 405: "method"}.get(error.status_code, "http")
        message = f"{error.detail}: POST pictures to /predict; /openapi.json tells what else there is."
        return refusal(Refused(error.status_code, reason, message), metrics)

    if has_token:
        _describe_token(app)
    return app


def refusal(error: Refused, metrics: Metrics) -> Response:
    """An error as an answer; it is counted."""
    metrics.rejected(error.reason)
    return Json({"error": error.reason, "message": error.message}, error.status, headers=error.headers())


def _check(subject: Subject, top_k: int | None, heatmap: bool) -> None:
    try:
        check_numbers(subject.spec.class_names, top_k=top_k, batch_size=None, num_workers=None)
    except UserError as error:
        raise Refused(422, "parameter", str(error)) from None
    if heatmap and not subject.heatmap:
        raise Refused(422, "no_heatmap", NOT_AVAILABLE)


async def _answers(asked: Asked, request: Request, seconds: float) -> list[Said]:
    """Wait for what is said of a request's pictures, as long as somebody waits for it.

    Raises:
        Refused: nobody does, it takes too long, or it cannot be computed.
    """
    gone: asyncio.Future[Any] = asyncio.ensure_future(_until_gone(request))
    try:
        waited: set[asyncio.Future[Any]] = {asked.answers, gone}
        await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if asked.answers.done():
            return asked.answers.result()
    finally:
        gone.cancel()
        if not asked.answers.done():
            asked.gone = True
            asked.answers.cancel()
    if gone.done() and not gone.cancelled():
        raise Refused(499, "client_left", "The client has closed the connection.")
    raise Refused(503, "answer_timeout", f"There was no answer within {seconds:g} s: ask again later.", retry_after=5)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _describe_token(app: FastAPI) -> None:
    """Tell the readers of /openapi.json that there is a token."""
    plain = app.openapi

    def with_token() -> dict[str, Any]:
        described = plain()
        described.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
        described["paths"]["/health"]["get"]["security"] = []
        return described

    app.openapi = with_token  # type: ignore[method-assign]
