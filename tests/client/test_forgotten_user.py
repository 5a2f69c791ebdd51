"""A user who wants to be forgotten: docs/operating.md as it is written, on a platform that trained, recommended and served."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from client.config.platform_file import PlatformFile, load
from client.serving.event_log import EventLog, LoggedEvent
from client.worker.request_handler import Worker
from shared.base.settings import Settings
from shared.model.adapter import initial
from shared.protocol.flower_records import request_from, to_record
from shared.protocol.messages import Answer, Factors, Join, Joined, Request, Train, Update
from tests.client.worker.test_request_handler import PRIVATE, allowing
from tests.support.called_command import called
from tests.support.identities import with_identity

ROOT = Path(__file__).parents[2]
USER, WORD, ONLY = "zebrafinch", "quokka", "axolotl"
"""Their id, a word of their own text, and an item that nobody else has met."""
STAYS = r"identity\.key|ledger/shop\.jsonl|serving/events\.(lock|turn)"
"""All that is left of a platform's state: a key, what was spent, a lock without content."""
Make = Callable[..., Settings]


def delete_as_the_page_says(state: Path) -> None:
    """Delete what step 2 of the page names, each of which is there."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    section = page.split("## A user who wants to be forgotten\n")[1].split("\n## ")[0]
    (step,) = re.findall(r"^2\. (.+?)^3\. ", section, re.MULTILINE | re.DOTALL)
    listed = step.partition("delete what is derived")[2].partition("Delete lists")[0]
    names = [name for name in re.findall(r"`([^`]+)`", listed) if name != "recommend --all --out"]
    for name in names:
        found = list(state.glob(name.rstrip("/")))
        assert found, name
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def without_user(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(f"{USER},"))


class Platform:
    """A deployed platform by its file, and its worker."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self.file: PlatformFile = load(path)
        with_identity(self.file.state)
        self.worker: Worker | None = None

    def start(self) -> None:
        self.worker = Worker(
            self.file, state=self.file.state, ledger=self.file.ledger, simulation=False, device=torch.device("cpu")
        )
        self.worker.hold()

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.close()

    def ask(self, request: Request) -> Answer:
        assert self.worker is not None
        return self.worker.handle(request_from(to_record(request)))

    def join(self, run: str) -> Joined:
        answer = self.ask(Join(run=run, settings=self.settings))
        assert isinstance(answer, Joined), (answer, self.worker and self.worker.failure)
        return answer

    def train(self, run: str) -> Update:
        adapter = initial(self.settings)
        answer = self.ask(Train(run=run, settings=self.settings, round=1, factors=Factors.BOTH, adapter=adapter))
        assert isinstance(answer, Update), (answer, self.worker and self.worker.failure)
        return answer

    def recommended(self, *words: str) -> Any:
        done = called("recommend", "--platform", self.path, "--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def kept(self) -> dict[str, bytes]:
        state = self.file.state
        return {path.relative_to(state).as_posix(): path.read_bytes() for path in sorted(state.rglob("*")) if path.is_file()}


@pytest.fixture
def shop(write_platform: Callable[..., Path], tiny_settings: Make, tiny_bert: str) -> Iterator[Platform]:
    """A shop where the user has met three items, one of which nobody else has, and has told something of themself."""
    people = "user,about\n" + "".join(f"u{user},river city\n" for user in range(30)) + f"{USER},{WORD} garden\n"
    path = write_platform(
        declared=41, privacy=PRIVATE, files={"shop-people.csv": people},
        extra='[sources.people]\nkind = "profiles"\npath = "shop-people.csv"\ntext = ["about"]\n' + allowing(tiny_bert),
    )  # fmt: skip
    events, items = path.with_name("shop-events.csv"), path.with_name("shop-items.csv")
    with events.open("a", encoding="utf-8") as file:
        file.writelines(f"{USER},{item},1700000000\n" for item in ("i0", "i1", ONLY))
    with items.open("a", encoding="utf-8") as file:
        file.write(f"{ONLY},{ONLY}\n")
    made = Platform(path, tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": None}))
    yield made
    made.stop()


def test_nothing_of_a_user_who_is_forgotten_is_left_and_nothing_is_spent_anew(shop: Platform, tmp_path: Path) -> None:
    state = shop.file.state
    shop.start()
    joined = shop.join("spring")
    shop.train("spring")
    shop.recommended("--user", USER)
    lists = tmp_path / "lists.parquet"
    assert called("recommend", "--platform", shop.path, "--all", "--out", lists).returncode == 0
    log = EventLog(state / "serving")
    log.append([LoggedEvent(user=USER, item=ONLY, liked=True, time=1_700_000_000)])
    log.close()
    before = shop.kept()
    assert any(USER.encode() in content for content in before.values())

    # 1. Their rows are taken out.
    for name in ("shop-events.csv", "shop-people.csv"):
        path = shop.path.with_name(name)
        path.write_text(without_user(path), encoding="utf-8")
    # 2. Worker and serve are stopped, and what was made of rows is deleted.
    shop.stop()
    delete_as_the_page_says(state)
    lists.unlink()
    left = shop.kept()
    assert [name for name in left if not re.fullmatch(STAYS, name)] == []
    assert all(left[name] == before[name] for name in left)
    for trace in (USER, WORD, ONLY):
        assert not [name for name, content in left.items() if trace.encode() in content]

    # 3. It is started again; what was spent stays spent.
    shop.start()
    assert shop.file.ledger.read_bytes().startswith(before["ledger/shop.jsonl"])
    assert shop.join("autumn").users == joined.users  # declared
    shop.train("autumn")
    assert shop.recommended("--user", USER) == shop.recommended("--user", "somebody")  # who get what is popular
    # As a platform recommends that never had them.
    other = tmp_path / "never"
    shutil.copytree(shop.path.parent, other, ignore=shutil.ignore_patterns(".fedfuse"))
    never = Platform(other / shop.path.name, shop.settings)
    for user in ("u0", "u7", "u29"):
        assert shop.recommended("--user", user) == never.recommended("--user", user)
    for trace in (USER, WORD):
        assert not [name for name, content in shop.kept().items() if trace.encode() in content]
