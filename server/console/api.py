"""What the page asks: the overview, and a run's events. Nothing can be changed by it."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse

from server.console.overview import Overview
from server.console.page import console_page, console_policy
from shared.base.errors import FedfuseError


def console_api(overview: Overview) -> FastAPI:
    """The application. It belongs behind `shared.pages.access_guard.AccessGuard`."""
    api = FastAPI(title="Fedfuse coordinator", docs_url=None, redoc_url=None, openapi_url=None)
    page, policy = console_page(), console_policy()

    @api.get("/", response_class=HTMLResponse)
    def show() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @api.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/overview")
    def everything() -> JSONResponse:
        return JSONResponse(overview.current())

    @api.get("/events")
    def events(run: str) -> JSONResponse:
        try:
            return JSONResponse(overview.events(run))
        except FedfuseError as error:
            return JSONResponse({"found": error.found, "do": error.do}, status_code=404)

    return api
