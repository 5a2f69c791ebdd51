"""Who comes back with a new folder had a ledger before, and its approval says what that had spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.deployment.approved_platforms import Platforms
from server.deployment.folder import CoordinatorFolder, ServerFile
from server.deployment.former_ledgers import former_ledgers
from shared.ledger.receipts import LedgerReceipt, sign_head
from shared.protocol.invitation import Application, fingerprint_of
from shared.secagg.identity import Identity

COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
OLD, NEW, STRANGER = (letter * 32 for letter in (b"o", b"n", b"s"))


def application(secret: bytes, platform: str = "shop") -> Application:
    node = ec.derive_private_key(secret[0], ec.SECP384R1()).public_key()
    return Application.make(
        identity=Ed25519PrivateKey.from_private_bytes(secret),
        federation="spring",
        platform=platform,
        node_key=node.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
        version="0.1.0",
    )


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorFolder:
    """A coordinator that approved a shop, and revoked it."""
    made = CoordinatorFolder(folder=tmp_path, file=ServerFile(name="spring", host="localhost"))
    Platforms(made.platforms).approve(application(OLD))
    Platforms(made.platforms).revoke("shop")
    return made


def ran(coordinator: CoordinatorFolder, run: str, *, epsilon: Any, signer: bytes = OLD, head: str = "a" * 64) -> None:
    """Leave what a run leaves of the shop."""
    folder = coordinator.run(run)
    folder.mkdir(parents=True)
    line = {"epsilon": epsilon, "budget": 8.0, "delta": 1e-5}
    (folder / "state.json").write_text(json.dumps({"run": run, "state": "finished", "platforms": {"shop": line}}))
    receipt = LedgerReceipt(
        platform="shop",
        run=run,
        round=1,
        kind="update",
        left="b" * 64,
        ledger=head,
        head_signature=sign_head(Identity(signer), head),
    ).signed(COORDINATOR)
    (folder / "receipts.jsonl").write_text(receipt.text() + "\n")


def test_the_most_that_its_signed_answers_attest_is_told(coordinator: CoordinatorFolder) -> None:
    ran(coordinator, "spring", epsilon=1.25)
    ran(coordinator, "summer", epsilon=3.5, head="d" * 64)
    (found,) = former_ledgers(coordinator, application(NEW))
    assert (found.epsilon, found.budget, found.delta, found.run, found.head) == (3.5, 8.0, 1e-5, "summer", "d" * 64)
    text = found.text()
    assert "epsilon 3.5 of 8 at delta 1e-05 in run summer" in text and "d" * 64 in text and "both add up" in text
    assert fingerprint_of(application(OLD).identity) in text and "revoked on 20" in text


def test_the_same_identity_and_another_platform_are_no_return(coordinator: CoordinatorFolder) -> None:
    ran(coordinator, "spring", epsilon=1.25)
    assert former_ledgers(coordinator, application(OLD)) == ()
    assert former_ledgers(coordinator, application(NEW, "video")) == ()


def test_what_another_identity_signed_is_not_its(coordinator: CoordinatorFolder) -> None:
    """A run of the platform's next identity says nothing of the one before."""
    ran(coordinator, "spring", epsilon=5.0, signer=STRANGER)
    (found,) = former_ledgers(coordinator, application(NEW))
    assert found.epsilon is None and "No run in this folder attests" in found.text()


@pytest.mark.parametrize("name", ["state.json", "receipts.jsonl"])
def test_a_damaged_run_is_named(coordinator: CoordinatorFolder, name: str) -> None:
    ran(coordinator, "spring", epsilon=1.25)
    ran(coordinator, "summer", epsilon=3.5)
    (coordinator.run("summer") / name).write_text("{}\n")
    (found,) = former_ledgers(coordinator, application(NEW))
    assert found.epsilon == 1.25 and found.damaged == ("summer",) and "It may be more: of summer" in found.text()


def test_privacy_that_was_off_is_infinite(coordinator: CoordinatorFolder) -> None:
    ran(coordinator, "spring", epsilon="inf")
    (found,) = former_ledgers(coordinator, application(NEW))
    assert "epsilon inf" in found.text()
