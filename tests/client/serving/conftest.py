"""A small platform that is served: 40 users of 24 films with genres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from client.config.platform_file import PlatformFile, load
from client.examples.split import nothing_held_out
from client.recommender.serving.fitted_platform import ModelInputs
from client.serving.answers import PlatformAnswers
from client.serving.api import create_api
from client.serving.event_log import EventLog
from client.serving.served_models import ServedModels
from client.sources.platform_tables import read_tables
from shared.pages.access_guard import AccessGuard
from tests.support.released_preferences import release_of, write_release
from tests.support.small_platform import small_platform

TOKEN = "t" * 43
ROWS = "item,title,genre,price\n" + "".join(
    f"i{number},film {number},{'Drama|War' if number % 3 else 'Comedy'},{number * 2}.5\n" for number in range(24)
)


@dataclass
class Served:
    """A server without a socket."""

    file: PlatformFile
    answers: PlatformAnswers
    client: TestClient

    def post(self, path: str, **body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def films(folder: Path) -> PlatformFile:
    """The platform, written in a folder."""
    path = small_platform(folder, users=40, items=24, files={"films.csv": ROWS})
    items = 'path = "films.csv"\ncolumns = { category = "genre" }'
    path.write_text(path.read_text().replace('path = "shop-items.csv"', items))
    return load(path)


def serve(file: PlatformFile, model: Path | None = None, *, most: int = 1000) -> Served:
    """A server of a platform; its `answers` are to be closed."""
    models = ServedModels(file, ModelInputs(model=model, cache=file.state / "trunk"))
    answers = PlatformAnswers(file, models, EventLog(file.state / "serving", most=most))
    app = AccessGuard(create_api(answers), token=TOKEN, hosts=["127.0.0.1:80"])
    return Served(file=file, answers=answers, client=client_of(app))


def client_of(app: Any) -> TestClient:
    """A client that has the token."""
    headers = {"authorization": f"Bearer {TOKEN}", "host": "127.0.0.1:80"}
    return TestClient(app, base_url="http://127.0.0.1:80", headers=headers)


@pytest.fixture
def file(tmp_path: Path) -> PlatformFile:
    return films(tmp_path / "world")


@pytest.fixture
def model(file: PlatformFile, tmp_path: Path) -> Path:
    tables = read_tables(file)
    liked = nothing_held_out(tables, seed=0).train
    return write_release(tmp_path / "model", release_of(tables, liked, items=np.arange(18)))


@pytest.fixture
def start(file: PlatformFile) -> Iterator[Callable[..., Served]]:
    """Starts a server; a second one only after the first has stopped."""
    stops = []

    def started(model: Path | None = None, *, most: int = 1000) -> Served:
        served = serve(file, model, most=most)
        stops.append(served.answers.close)
        return served

    yield started
    for stop in stops:
        stop()


@pytest.fixture
def served(start: Callable[..., Served]) -> Served:
    return start()
