"""A coordinator's folder that comes back from a backup on another machine: platforms show what they were given to keep."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.supernode import authority_update
from client.supernode.authority_update import KEPT, renew_authorities
from server.operators.acting import acting_operator, log_of
from server.operators.log_witness import LogWitness
from server.operators.operator_log import AlteredLog, NotedHead, noted_head
from server.operators.restored_state import require_latest, seen_note
from server.operators.rights import Right, Verb
from shared.protocol.keys import load_ed25519
from shared.protocol.log_witness import open_head, proven_witness, seal_head, witness_answer
from tests.server.deployment.test_authority_rotation import Platform, Server, platform, server

__all__ = ["platform", "server"]
KEY, NONCE = Ed25519PrivateKey.from_private_bytes(b"k" * 32), "a" * 64


def ask(shop: Platform) -> str:
    """One question, as the messenger asks every minute; what it keeps afterwards."""
    renew_authorities(shop.address, authority=shop.authority, coordinator=shop.coordinator)
    return (shop.authority.with_name(KEPT)).read_text()


def test_a_restored_coordinator_learns_of_what_it_lacks(
    server: Server, platform: Callable[[str], Platform], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop, news, coordinator = platform("shop"), platform("news"), server.coordinator
    coordinator.state.mkdir(exist_ok=True)
    owner = acting_operator(coordinator, None, Right.OPERATORS)
    shutil.copytree(coordinator.operators, tmp_path / "backup")
    for name in ("one", "two", "three"):
        owner.record(Verb.INVITE, name)
    last = log_of(coordinator).actions[-1]
    ask(shop)
    first = ask(news)
    assert ask(news) == first  # the log has not changed
    # Restored on another machine: there is no note of this one's, and the gate is another process.
    server.stop()
    shutil.rmtree(coordinator.operators)
    shutil.copytree(tmp_path / "backup", coordinator.operators)
    seen_note(coordinator).unlink()
    server.start()
    require_latest(coordinator, log_of(coordinator))
    with caplog.at_level(logging.ERROR):
        ask(shop)
    assert noted_head(seen_note(coordinator)) == NotedHead(seq=last.seq, hash=last.hash, time=last.time)
    assert f"keeps the head of action {last.seq}" in caplog.text
    with pytest.raises(AlteredLog, match="was seen"):
        require_latest(coordinator, log_of(coordinator))
    # An operator says that it is lost; who comes back later with the same news changes nothing.
    owner.record(Verb.RESTORED, "spring", {"lost": str(last.seq)})
    ask(news)
    require_latest(coordinator, log_of(coordinator))
    assert seen_note(coordinator).stat().st_mode & 0o077 == 0


def test_it_learns_so_before_a_platform_is_welcome(server: Server, platform: Callable[[str], Platform], tmp_path: Path) -> None:
    """Not within a minute of it, in which a run could have begun: the greeting shows what is kept."""
    shop, coordinator = platform("shop"), server.coordinator
    coordinator.state.mkdir(exist_ok=True)
    shutil.copytree(coordinator.operators, tmp_path / "backup")
    acting_operator(coordinator, None, Right.INVITE).record(Verb.INVITE, "video")
    ask(shop)
    server.stop()
    shutil.rmtree(coordinator.operators)
    shutil.copytree(tmp_path / "backup", coordinator.operators)
    seen_note(coordinator).unlink()
    server.start()
    shop.greet()  # of a platform that keeps nothing
    require_latest(coordinator, log_of(coordinator))
    shop.greet_or_renew()
    with pytest.raises(AlteredLog, match="was seen"):
        require_latest(coordinator, log_of(coordinator))


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "text"])
def test_a_file_that_the_coordinators_code_laid_there_is_not_sent(
    kind: str, server: Server, platform: Callable[[str], Platform], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is the messenger's; whoever greets is outside its cage, and may read more than it."""
    shop, shown = platform("shop"), []
    kept, secret = shop.authority.with_name(KEPT), tmp_path / "token"
    secret.write_text("c2VjcmV0" if kind != "text" else "not what a coordinator seals")
    before = authority_update.greet
    monkeypatch.setattr(
        authority_update, "greet", lambda *words, **more: (shown.append(more["shown"]), before(*words, **more))[1]
    )
    {
        "link": kept.symlink_to,
        "second name": kept.hardlink_to,
        "pipe": lambda _: os.mkfifo(kept),
        "text": lambda path: shutil.copy(path, kept),
    }[kind](secret)
    shop.greet_or_renew()
    kept.unlink()
    kept.write_text("c2VhbGVk")
    shop.greet_or_renew()
    assert shown == ["", "c2VhbGVk"]


def test_what_somebody_else_shows_changes_nothing(server: Server) -> None:
    coordinator = server.coordinator
    coordinator.state.mkdir(exist_ok=True)
    key = load_ed25519(coordinator.federation_key)
    witness = LogWitness(coordinator, key)
    later = NotedHead(seq=99, hash="ab" * 32, time="2100-01-01T00:00:00Z").text()
    made_up = seal_head(later, KEY)
    for shown in ("", "x", "A" * 4000, made_up, witness.answer(NONCE, "")["log"], made_up[:-8]):
        assert witness.answer(NONCE, shown)
        assert not seen_note(coordinator).exists(), shown
    assert witness.answer(NONCE, seal_head(later, key))
    assert noted_head(seen_note(coordinator)) is not None  # it is the signature that made the difference


def test_an_altered_log_gives_nothing_to_keep(server: Server, platform: Callable[[str], Platform]) -> None:
    shop = platform("shop")
    kept = ask(shop)
    path = server.coordinator.operators / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b"owner", b"owned"))
    assert ask(shop) == kept


def test_a_head_opens_to_its_key_alone_and_says_nothing_by_its_length() -> None:
    heads = [NotedHead(seq=seq, hash="ab" * 32, time="2030-01-01T00:00:00Z").text() for seq in (1, 10**9)]
    sealed = [seal_head(head, KEY) for head in heads]
    assert len(set(map(len, sealed))) == 1
    assert [open_head(one, KEY) for one in sealed] == [head.rstrip() for head in heads]
    assert seal_head(heads[0], KEY) != sealed[0]
    for wrong in ("", "!", "AAAA", sealed[0][:-4], sealed[0][4:], "é"):
        assert open_head(wrong, KEY) is None
    assert open_head(sealed[0], Ed25519PrivateKey.generate()) is None


def test_what_is_to_be_kept_is_of_its_question_alone() -> None:
    import json

    public = KEY.public_key().public_bytes_raw()
    answer = witness_answer("sealed", nonce=NONCE, key=KEY)
    assert proven_witness(json.dumps(answer).encode(), nonce=NONCE, coordinator=public) == "sealed"
    other = witness_answer("sealed", nonce=NONCE, key=Ed25519PrivateKey.generate())
    for found, nonce in (
        (answer, "b" * 64),
        (other, NONCE),
        ({**answer, "log": "older"}, NONCE),
        ({**answer, "log_signature": ""}, NONCE),
        ({"log": 1, "log_signature": answer["log_signature"]}, NONCE),
        (witness_answer("x" * 2000, nonce=NONCE, key=KEY), NONCE),
        ({}, NONCE),
        ([], NONCE),
    ):
        assert proven_witness(json.dumps(found).encode(), nonce=nonce, coordinator=public) == ""
