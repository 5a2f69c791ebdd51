"""The routes of the server, and their description as OpenAPI. Errors never repeat what was sent."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio.to_thread
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from client.serving.answers import Answer, PlatformAnswers, UnknownItem
from client.serving.messages import (
    EventsAnswer,
    EventsRequest,
    ExplainAnswer,
    ExplainRequest,
    HealthAnswer,
    ItemsAnswer,
    ItemsRequest,
    ListAnswer,
    PlatformAnswer,
    ProblemAnswer,
    RecommendRequest,
    SimilarRequest,
    UsersAnswer,
)
from client.serving.page import content_policy, rendered_page
from shared.base.errors import FedfuseError, StorageError
from shared.base.version import VERSION

log = logging.getLogger("fedfuse.serving")

THREADS = 4
"""Requests that are computed at a time; the others wait. More threads than that take turns at one interpreter."""
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemAnswer, "description": text}
    for status, text in (
        (401, "The token is missing or another one."),
        (404, "There is no such item."),
        (413, "The body is too large."),
        (422, "The request says what cannot be."),
        (503, "Busy, or events cannot be kept."),
    )
}
_DESCRIPTION = """
Recommendations of one platform, to its own programs. Ids are sent in bodies, never in addresses, so that no access log has them.
Every request but `/healthz` and this description needs `authorization: Bearer TOKEN`, unless it comes by a Unix socket.
"""


def create_api(answers: PlatformAnswers, *, threads: int = THREADS) -> FastAPI:
    """The application.

    Args:
        threads: Requests that are computed at a time.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = threads
        # A product for one list is too small for several threads: they only wait for the next one, at a core's full speed.
        with threadpool_limits(limits=1):
            yield
        # No request is at work any more.
        answers.close()

    api = FastAPI(
        title="Fedfuse recommendations",
        version=VERSION,
        description=_DESCRIPTION.strip(),
        docs_url=None,  # its page asks another server for scripts
        redoc_url=None,
        lifespan=lifespan,
    )
    page, policy = rendered_page(), content_policy()

    @api.get("/", include_in_schema=False)
    def show() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @api.get("/healthz", response_model=HealthAnswer, summary="Whether it answers")
    async def healthz() -> Response:
        return _json({"status": "ok", "version": VERSION})

    def post(path: str, answer: type, summary: str) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
        return api.post(path, response_model=answer, responses=_PROBLEMS, summary=summary)

    @post("/recommend", ListAnswer, "Items for somebody, and why")
    def recommend(asked: Annotated[RecommendRequest, Body()]) -> Response:
        return _json(answers.recommend(asked))

    @post("/similar", ListAnswer, "Items that are alike with one")
    def similar(asked: Annotated[SimilarRequest, Body()]) -> Response:
        return _json(answers.similar(asked))

    @post("/explain", ExplainAnswer, "Why somebody would get an item, all of it")
    def explain(asked: Annotated[ExplainRequest, Body()]) -> Response:
        return _json(answers.explain(asked))

    @post("/events", EventsAnswer, "Tell what somebody met; it counts at once")
    def events(asked: Annotated[EventsRequest, Body()]) -> Response:
        return _json(answers.events(asked))

    @post("/items", ItemsAnswer, "Find items by their titles")
    def items(asked: Annotated[ItemsRequest, Body()]) -> Response:
        return _json(answers.items(asked))

    @api.get("/platform", response_model=PlatformAnswer, responses={401: _PROBLEMS[401]}, summary="What is served")
    def platform() -> Response:
        return _json(answers.platform())

    @api.get("/users", response_model=UsersAnswer, responses={401: _PROBLEMS[401]}, summary="Some users, drawn at random")
    def users() -> Response:
        return _json(answers.users())

    _answer_problems(api)
    return api


def _answer_problems(api: FastAPI) -> None:
    @api.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> Response:
        # Not `input`, nor a message that quotes it: an answer may be logged by whoever asked.
        first = error.errors()[0]
        # Names of fields are our own; the keys of a table are not.
        where = ".".join(str(step) for step in first["loc"][1:] if isinstance(step, int) or step in _FIELDS)
        kind = str(first["type"]).replace("_", " ")
        return _problem(422, f"{where or 'the body'}: {kind}", "see /openapi.json")

    @api.exception_handler(FedfuseError)
    async def refused(_: Request, error: FedfuseError) -> Response:
        if isinstance(error, StorageError):
            log.error("%s", error.brief)
            return _problem(503, "events cannot be kept", "see the server's log")
        found = f"{error.where}: {error.found}" if error.where.startswith("events[") else error.found
        return _problem(404 if isinstance(error, UnknownItem) else 422, found, error.do)

    @api.exception_handler(HTTPException)
    async def missing(_: Request, error: HTTPException) -> Response:
        return _problem(
            error.status_code,
            "there is nothing here" if error.status_code == 404 else "this is not possible",
            "see /openapi.json",
        )

    @api.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        # The type alone: a message may quote a row.
        log.error("a request failed: %s", type(error).__name__)
        return _problem(500, "the request failed here", "see the server's log")


_FIELDS = {
    name
    for model in (RecommendRequest, SimilarRequest, ExplainRequest, EventsRequest, ItemsRequest)
    for name in (*model.model_fields, "attribute", "any_of", "none_of", "at_least", "at_most", "event", "value", "liked")
}


def _json(values: Answer) -> Response:
    return Response(json.dumps(values, allow_nan=False), media_type="application/json")


def _problem(status: int, found: str, do: str) -> Response:
    return Response(json.dumps({"found": found, "do": do}), status_code=status, media_type="application/json")
