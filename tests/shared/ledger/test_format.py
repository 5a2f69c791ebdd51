"""The ledger: what is charged stays charged, whatever dies, and any change to it is noticed."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.privacy import ledger_writer as writing
from client.privacy.ledger_writer import LedgerWriter
from shared.base.errors import BudgetExceeded, FedfuseError, InputError, PrivacyError, StorageError
from shared.ledger.audit import audit_run
from shared.ledger.format import Ledger
from shared.ledger.reading import parse_ledger, read_ledger
from shared.privacy.accountants import PREFERRED
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.identity import Identity

PRIOR = Release(kind=ReleaseKind.POPULARITY, noise_multiplier=3.0)
STEPS = Release(kind=ReleaseKind.TRAIN, noise_multiplier=1.2, sample_rate=0.1, steps=10)


def opened(path: Path, *, budget: float = 8.0, delta: float = 1e-4, platform: str = "shop") -> LedgerWriter:
    return LedgerWriter.open(path, platform=platform, budget=budget, delta=delta, identity=Identity(b"i" * 32))


def written(path: Path, rounds: int = 3) -> bytes:
    with opened(path) as ledger:
        ledger.charge(PRIOR, run="run", round=0, question="5" * 64)
        for round_ in range(1, rounds + 1):
            ledger.charge(STEPS, run="run", round=round_, question="5" * 64)
    return path.read_bytes()


class TestWriter:
    def test_what_is_charged_is_read_back(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger" / "shop.jsonl"
        written(path)
        ledger = read_ledger(path)
        assert ledger.releases == (PRIOR, STEPS, STEPS, STEPS)
        assert [(entry.seq, entry.round) for entry in ledger.entries] == [(1, 0), (2, 1), (3, 2), (4, 3)]
        assert ledger.epsilon == PREFERRED.epsilon(ledger.releases, 1e-4).epsilon
        assert path.stat().st_mode & 0o777 == 0o600

    def test_epsilon_is_of_the_whole_run_and_not_of_a_round(self, tmp_path: Path) -> None:
        written(tmp_path / "l")
        spent = [entry.epsilon for entry in read_ledger(tmp_path / "l").entries]
        assert spent == sorted(spent)
        assert spent[-1] > 1.2 * spent[0]

    def test_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        before = written(tmp_path / "l")
        with opened(tmp_path / "l") as ledger:
            ledger.charge(STEPS, run="run", round=4, question="5" * 64)
        assert (tmp_path / "l").read_bytes().startswith(before)
        assert len(read_ledger(tmp_path / "l").entries) == 5

    def test_above_the_budget_nothing_is_written(self, tmp_path: Path) -> None:
        written(tmp_path / "l")
        before = (tmp_path / "l").read_bytes()
        with opened(tmp_path / "l") as ledger:
            with pytest.raises(BudgetExceeded, match="above the budget"):
                ledger.charge(Release(kind=ReleaseKind.TRAIN, noise_multiplier=0.3), run="run", round=4, question="5" * 64)
            ledger.charge(STEPS, run="run", round=4, question="5" * 64)  # a smaller one still fits
        assert (tmp_path / "l").read_bytes().startswith(before)

    def test_two_writers_are_one_too_many(self, tmp_path: Path) -> None:
        with opened(tmp_path / "l"), pytest.raises(StorageError):
            opened(tmp_path / "l")
        opened(tmp_path / "l").close()

    @pytest.mark.parametrize("other", [{"budget": 9.0}, {"delta": 1e-3}, {"platform": "news"}])
    def test_another_budget_delta_or_platform_is_refused(self, tmp_path: Path, other: dict[str, object]) -> None:
        written(tmp_path / "l")
        with pytest.raises(PrivacyError):
            opened(tmp_path / "l", **other)  # type: ignore[arg-type]

    @pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
    def test_a_budget_that_is_none(self, tmp_path: Path, budget: float) -> None:
        with pytest.raises(InputError):
            opened(tmp_path / "l", budget=budget)

    def test_privacy_off_is_recorded_as_infinite(self, tmp_path: Path) -> None:
        with opened(tmp_path / "l", budget=math.inf) as ledger:
            ledger.charge(Release(kind=ReleaseKind.TRAIN, noise_multiplier=0.0), run="run", round=1, question="5" * 64)
        assert read_ledger(tmp_path / "l").epsilon == math.inf
        assert '"inf"' in (tmp_path / "l").read_text()


class TestCrash:
    def test_a_line_that_is_cut_off_never_was_a_charge(self, tmp_path: Path) -> None:
        whole = written(tmp_path / "whole")
        lines = whole.splitlines(keepends=True)
        last = lines[-1]
        for cut in range(0, len(last), 7):
            path = tmp_path / f"cut-{cut}"
            path.write_bytes(b"".join(lines[:-1]) + last[:cut])
            with opened(path) as ledger:
                assert len(ledger.ledger.entries) == len(lines) - 2
                ledger.charge(STEPS, run="run", round=9, question="5" * 64)
            assert [entry.round for entry in read_ledger(path).entries] == [0, 1, 2, 9]

    @pytest.mark.parametrize("call", ["write", "fsync"])
    def test_a_full_disk_charges_nothing_and_damages_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        before = written(tmp_path / "l")
        ledger = opened(tmp_path / "l")
        real = getattr(os, call)

        def full(descriptor: int, *rest: object) -> object:
            if call == "write":
                real(descriptor, bytes(rest[0])[:20])  # type: ignore[call-overload]
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(writing.os, call, full)
            with pytest.raises(StorageError):
                ledger.charge(STEPS, run="run", round=4, question="5" * 64)
        ledger.close()
        with opened(tmp_path / "l") as again:
            again.charge(STEPS, run="run", round=4, question="5" * 64)
        assert (tmp_path / "l").read_bytes().startswith(before)
        assert len(read_ledger(tmp_path / "l").entries) == 5


class TestTampering:
    @given(data=st.data())
    @settings(deadline=None, max_examples=60)
    def test_every_byte_counts(self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
        whole = written(tmp_path_factory.mktemp("t") / "l", rounds=2)
        at = data.draw(st.integers(0, len(whole) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
        with pytest.raises(FedfuseError):
            parse_ledger(whole[:at] + bytes([byte]) + whole[at + 1 :], where="test")

    @pytest.mark.parametrize("gone", [0, 1, 2, 3])
    def test_no_line_can_be_taken_out(self, tmp_path: Path, gone: int) -> None:
        lines = written(tmp_path / "l").splitlines(keepends=True)
        with pytest.raises(FedfuseError):
            parse_ledger(b"".join(lines[:gone] + lines[gone + 1 :]), where="test")

    def test_a_cut_end_is_found_by_the_receipt(self, tmp_path: Path) -> None:
        whole = written(tmp_path / "ledger" / "shop.jsonl")
        head = read_ledger(tmp_path / "ledger" / "shop.jsonl").head
        (tmp_path / "metrics.json").write_text(json.dumps({"platforms": {"shop": {"ledger": head}}}))
        assert audit_run(tmp_path).ok
        (tmp_path / "ledger" / "shop.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
        report = audit_run(tmp_path)
        assert not report.ok
        assert any("cut or rewritten" in problem for problem in report.problems)

    def test_an_epsilon_that_the_entries_do_not_give(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Flattering:
            def __getattr__(self, name: str) -> object:
                return getattr(PREFERRED, name)

            def epsilon(self, releases: object, delta: float) -> object:
                from dataclasses import replace

                spent = PREFERRED.epsilon(releases, delta)  # type: ignore[arg-type]
                return replace(spent, epsilon=spent.epsilon / 2)

        path = tmp_path / "ledger" / "shop.jsonl"
        identity, flattering = Identity(b"i" * 32), Flattering()
        with LedgerWriter.open(
            path,
            platform="shop",
            budget=8.0,
            delta=1e-4,
            identity=identity,
            accountant=flattering,  # type: ignore[arg-type]
        ) as ledger:
            ledger.charge(STEPS, run="run", round=1, question="5" * 64)
        report = audit_run(tmp_path)
        assert not report.ok
        assert report.problems

    @given(st.binary(max_size=300))
    @settings(deadline=None)
    def test_any_bytes_give_a_ledger_or_an_error(self, content: bytes) -> None:
        try:
            assert isinstance(parse_ledger(content, where="test"), Ledger)
        except FedfuseError:
            return


class TestAudit:
    def test_agrees_with_both_libraries_and_composes(self, tmp_path: Path) -> None:
        for name in ("shop", "news"):
            with opened(tmp_path / "ledger" / f"{name}.jsonl", platform=name) as ledger:
                ledger.charge(PRIOR, run="run", round=0, question="5" * 64)
                ledger.charge(STEPS, run="run", round=1, question="5" * 64)
        report = audit_run(tmp_path)
        assert report.ok
        one = report.platforms[0]
        assert one.opacus is not None and one.dp_accounting is not None
        assert one.opacus.epsilon == pytest.approx(one.dp_accounting.epsilon, rel=0.02)
        assert report.everywhere is not None
        assert one.opacus.epsilon < report.everywhere.epsilon <= 2 * one.opacus.epsilon
        assert report.everywhere.delta == pytest.approx(2e-4)

    def test_nothing_to_audit(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no ledger"):
            audit_run(tmp_path)
