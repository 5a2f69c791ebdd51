"""The server's start: what Flower no longer knows is not said to it."""

from __future__ import annotations

from dataclasses import make_dataclass

import pytest

from server.deployment import superlink


def test_addresses_of_interfaces_that_a_later_flower_has_not_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    later = make_dataclass("SuperLinkLifespanConfig", ["host", "port", "control_address"])
    monkeypatch.setattr(superlink, "SuperLinkLifespanConfig", later)
    assert superlink._retired() == {"control_address": "127.0.0.1:0"}
