"""Who is let in, how much is read, and that no answer tells of anybody else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from client.serving.messages import EventsRequest, ExplainRequest, RecommendRequest
from shared.pages import access_guard as guard
from shared.pages.access_guard import LARGEST_BODY
from tests.client.serving.conftest import TOKEN, Served, client_of, films, serve

JSON_BODY = {"content-type": "application/json"}
PATHS = ("/recommend", "/similar", "/explain", "/events", "/items")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all: whom it lets in does not depend on what it was sent before."""
    started = serve(films(tmp_path_factory.mktemp("guarded")))
    yield started
    started.answers.close()


@pytest.fixture
def served(running: Served) -> Served:
    """Every test has a client of its own."""
    return replace(running, client=client_of(running.client.app))


@pytest.mark.parametrize(
    "given_",
    ["", "Bearer", "Bearer ", "Bearer x", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xff"],
)
def test_without_the_token_nothing_is_told(served: Served, given_: str) -> None:
    headers = {"authorization": given_.encode("latin-1")}
    for path in (*PATHS, "/platform", "/users", "/nothing"):
        for answer in (served.client.post(path, headers=headers, json={"user": "u3"}), served.client.get(path, headers=headers)):
            assert answer.status_code == 401 and "u3" not in answer.text and TOKEN not in answer.text


def test_the_token_is_compared_in_constant_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []
    compare = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: seen.append((a, b)) or compare(a, b))
    assert served.client.get("/platform", headers={"authorization": "Bearer short"}).status_code == 401
    assert seen == [(b"short", TOKEN.encode())]


def test_what_says_nothing_needs_no_token(served: Served) -> None:
    served.client.headers.pop("authorization")
    assert served.client.get("/healthz").json()["status"] == "ok"
    page, description = served.client.get("/").text, served.client.get("/openapi.json").text
    for word in ("u3", "film 3", "i3", "shop", str(served.file.state)):
        assert word not in served.client.get("/healthz").text
        assert f'"{word}"' not in description and f">{word}<" not in page


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"host": "evil.example:80"}, {"host": "127.0.0.1"}, {"host": ""}])
def test_another_name_is_refused(served: Served, headers: dict[str, str]) -> None:
    """A page whose name was pointed at this machine (DNS rebinding) asks by its own name."""
    for path in ("/", "/healthz", "/platform"):
        assert served.client.get(path, headers=headers).status_code == 421


def test_another_site_is_refused(served: Served) -> None:
    assert served.client.post("/items", json={"text": "film"}, headers={"origin": "http://evil.example"}).status_code == 403
    assert served.client.post("/items", json={"text": "film"}, headers={"origin": "null"}).status_code == 403
    assert served.client.post("/items", json={"text": "film"}, headers={"origin": "http://127.0.0.1:80"}).status_code == 200
    # What a form or an image of another site can send without asking first is never JSON.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert served.client.post("/items", content=b'{"text": "film"}', headers={"content-type": kind}).status_code == 415


def test_sizes_are_bounded(served: Served) -> None:
    body = json.dumps({"text": "x" * LARGEST_BODY}).encode()
    assert served.client.post("/items", content=body, headers=JSON_BODY).status_code == 413
    parts = itertools.repeat(b"x" * 1024, 200)
    assert served.client.post("/items", content=parts, headers=JSON_BODY).status_code in (411, 413)
    for size in ("-1", "1e3", "0x10", "9" * 40, "", str(LARGEST_BODY + 1)):
        assert served.client.post("/items", content=b"{}", headers={**JSON_BODY, "content-length": size}).status_code == 413
    # Less is announced than comes: FastAPI reads the body, and answers for what it meets there.
    answer = served.client.post("/items", content=b'{"text": "film"}', headers={**JSON_BODY, "content-length": "3"})
    assert answer.status_code in (400, 413)


WRONG: list[tuple[str, Any]] = [
    ("/recommend", {}),
    ("/recommend", {"user": "u3", "like": ["i2"]}),
    ("/recommend", {"user": 3}),
    ("/recommend", {"user": ""}),
    ("/recommend", {"user": "\ud800"}),
    ("/recommend", {"user": "x" * 201}),
    ("/recommend", {"user": "u3", "top": 0}),
    ("/recommend", {"user": "u3", "top": 101}),
    ("/recommend", {"user": "u3", "top": "10"}),
    ("/recommend", {"user": "u3", "top": True}),
    ("/recommend", {"user": "u3", "diversity": 1.01}),
    ("/recommend", {"user": "u3", "diversity": -1}),
    ("/recommend", {"user": "u3", "caps": {"category": 0}}),
    ("/recommend", {"user": "u3", "caps": {str(number): 1 for number in range(17)}}),
    ("/recommend", {"user": "u3", "filters": [{"attribute": "price", "at_least": 1e13}]}),
    ("/recommend", {"user": "u3", "filters": [{"attribute": "nothing"}]}),
    ("/recommend", {"user": "u3", "model": "mine"}),
    ("/recommend", {"user": "u3", "model": "global"}),
    ("/recommend", {"user": "u3", "further": 1}),
    ("/recommend", {"like": ["i2"] * 101}),
    ("/recommend", {"like": "i2"}),
    ("/recommend", []),
    ("/recommend", "u3"),
    ("/recommend", None),
    ("/explain", {"user": "u3"}),
    ("/events", {"events": []}),
    ("/events", {"events": [{"user": "u3", "item": "i2"}] * 101}),
    ("/events", {"events": [{"user": "u3", "item": "i2", "liked": 1}]}),
    ("/items", {"text": "film", "top": 21}),
]


@pytest.mark.parametrize(("path", "body"), WRONG)
def test_every_value_has_bounds(served: Served, path: str, body: Any) -> None:
    answer = served.client.post(path, content=json.dumps(body), headers=JSON_BODY)
    assert answer.status_code == 422 and set(answer.json()) == {"found", "do"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"nonsense", b"[" * 9000, b'{"user": "u3", "diversity": NaN}', b'{"user": "u3", "top": 1e999}', b"\xff\xfe"],
)
def test_what_is_no_json(served: Served, content: bytes) -> None:
    answer = served.client.post("/recommend", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422) and "u3" not in answer.text


SECRET = "customer-4711-secret"


def test_no_problem_repeats_what_was_sent_or_names_anybody(served: Served) -> None:
    wrong = [
        ("/recommend", {"user": {SECRET: SECRET}}),
        ("/recommend", {"user": SECRET, "top": SECRET}),
        ("/recommend", {SECRET: 1, "user": SECRET}),
        ("/recommend", {"user": SECRET, "caps": {SECRET: 0}}),
        ("/recommend", {"user": SECRET, "caps": {SECRET: 1}}),
        ("/recommend", {"user": SECRET, "filters": [{"attribute": SECRET}]}),
        ("/recommend", {"user": SECRET, "model": SECRET}),
        ("/recommend", {"like": [SECRET]}),
        ("/explain", {"user": SECRET, "item": SECRET}),
        ("/similar", {"item": SECRET}),
        ("/events", {"events": [{"user": SECRET, "item": SECRET}]}),
        (f"/{SECRET}", {}),
    ]
    ids = [f'"u{number}"' for number in range(40)]
    for path, body in wrong:
        answer = served.client.post(path, json=body)
        assert answer.status_code in (404, 422), (path, body)
        assert SECRET not in answer.text and not any(one in answer.text for one in ids)


def test_a_mistake_of_ours_tells_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(asked: Any) -> Any:
        raise KeyError(SECRET)

    monkeypatch.setattr(served.answers, "recommend", broken)
    served.client._transport.raise_server_exceptions = False  # type: ignore[attr-defined]
    answer = served.client.post("/recommend", json={"user": SECRET})
    assert answer.status_code == 500 and SECRET not in answer.text and SECRET not in caplog.text


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(PATHS),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from([*RecommendRequest.model_fields, *ExplainRequest.model_fields, *EventsRequest.model_fields])
                | st.text(max_size=5),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ),
)
def test_whatever_is_sent_is_answered(served: Served, path: str, body: Any) -> None:
    answer = served.client.post(path, content=json.dumps(body), headers=JSON_BODY)
    assert answer.status_code in (200, 404, 422), answer.text


def test_answers_are_kept_by_nobody(served: Served) -> None:
    headers = served.client.get("/").headers
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
    assert (
        "default-src 'none'" in headers["content-security-policy"] and "connect-src 'self'" in headers["content-security-policy"]
    )


def test_without_a_token_names_are_asked_all_the_same(served: Served) -> None:
    inside: Any = served.client.app.inside  # type: ignore[attr-defined]
    client = TestClient(guard.AccessGuard(inside, token=None, hosts=["127.0.0.1:80"]), base_url="http://127.0.0.1:80")
    named = {"host": "127.0.0.1:80"}
    assert client.get("/platform", headers=named).status_code == 200
    assert client.get("/platform", headers={"host": "evil.example"}).status_code == 421
