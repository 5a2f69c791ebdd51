"""The list of platforms and Flower's list of SuperNodes: leaving, coming back, and one that Flower does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.deployment import supernode_sync
from server.deployment.approved_platforms import Platforms
from server.deployment.flower_control import Node, Unreachable
from server.deployment.folder import CoordinatorFolder
from server.deployment.provisioning import create_coordinator_folder
from server.deployment.supernode_sync import admit, enlist
from shared.base.errors import FedfuseError
from shared.protocol.invitation import Application
from shared.protocol.keys import make_ed25519, make_node_key
from tests.support.control_double import ControlDouble


class Flower(ControlDouble):
    """Flower's Control interface, as its database has it: a key is taken once, and never again after it was forgotten."""

    def __init__(self, *, up: bool = True) -> None:
        self.up = up
        self.keys: dict[bytes, int] = {}
        self.forgotten: set[int] = set()

    def nodes(self) -> list[Node]:
        if not self.up:
            raise Unreachable("down")
        return [Node(node=node, name="", status="online", seen="") for node in self.keys.values() if node not in self.forgotten]

    def register(self, key: bytes, name: str) -> int:
        if key in self.keys:
            raise FedfuseError("Flower refused: Public key already in use.")
        self.keys[key] = 100 + len(self.keys)
        return self.keys[key]


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorFolder:
    return create_coordinator_folder(
        tmp_path / "made", host="localhost", name="spring", port=8000, control_port=8001, listen="127.0.0.1"
    )


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Flower:
    made = Flower()
    monkeypatch.setattr(supernode_sync, "Control", made)
    return made


@pytest.fixture
def application(tmp_path: Path) -> Callable[[str], Application]:
    def make(name: str) -> Application:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        line, identity = make_node_key(folder / "node.key"), make_ed25519(folder / "identity.key")
        return Application.make(identity=identity, federation="spring", platform=name, node_key=line, version="0.1.0")

    return make


def test_a_platform_that_was_revoked_comes_back(coordinator: CoordinatorFolder, flower: Flower, application: Any) -> None:
    asked, platforms = application("shop"), Platforms(coordinator.platforms)
    first = admit(coordinator, asked)
    platforms.revoke("shop")
    assert enlist(flower, platforms).failed == ()  # as when the server starts
    again = admit(coordinator, asked)
    assert again.node == first.node != 0
    assert [(one.name, one.node) for one in platforms.approved()] == [("shop", first.node)]
    # Others are let in and shut out as ever, and the server starts.
    admit(coordinator, application("video"))
    platforms.revoke("video")
    assert enlist(flower, platforms).failed == ()


def test_also_while_the_server_is_down(coordinator: CoordinatorFolder, flower: Flower, application: Any) -> None:
    asked, platforms = application("shop"), Platforms(coordinator.platforms)
    flower.up = False
    assert admit(coordinator, asked).node == 0
    flower.up = True
    assert enlist(flower, platforms).done == ("shop is registered",)
    flower.up = False
    platforms.revoke("shop")
    admit(coordinator, asked)
    flower.up = True
    assert enlist(flower, platforms).failed == ()
    assert [one.node for one in platforms.approved()] == [100]


def test_a_key_that_flower_has_forgotten_is_refused_before_anything_is_written(
    coordinator: CoordinatorFolder, flower: Flower, application: Any
) -> None:
    """As an earlier release left it, which unregistered a revoked platform."""
    asked, platforms = application("shop"), Platforms(coordinator.platforms)
    node = admit(coordinator, asked).node
    platforms.revoke("shop")
    flower.forgotten.add(node)
    before = coordinator.platforms.read_bytes()
    with pytest.raises(FedfuseError, match="already in use") as caught:
        admit(coordinator, asked)
    assert "new keys" in caught.value.do
    assert coordinator.platforms.read_bytes() == before
    fresh = application("shop")  # with the new keys that it says
    assert admit(coordinator, fresh, replace_with=fresh.fingerprint).node != 0


def test_one_that_cannot_be_registered_keeps_no_other_from_it(
    coordinator: CoordinatorFolder, flower: Flower, application: Any
) -> None:
    platforms = Platforms(coordinator.platforms)
    flower.up = False
    lost = application("archive")
    for asked in (lost, application("shop"), application("video")):
        admit(coordinator, asked)
    flower.up = True
    flower.keys = {supernode_sync._pem(one): 7 for one in platforms.approved() if one.name == "archive"}
    flower.forgotten = {7}
    found = enlist(flower, platforms)
    assert found.done == ("shop is registered", "video is registered")
    (failed,) = found.failed
    assert failed.startswith("archive cannot be registered") and "shop" not in failed
