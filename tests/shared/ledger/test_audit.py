"""The audit: whole and honest ledgers pass; cut, forged, overspent or unreadable ones do not."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shared.base.errors import InputError
from shared.ledger.audit import UNSEEN, AuditReport, audit_ledgers, audit_run
from shared.ledger.audit_report import render_audit
from shared.ledger.evidence import LedgerEvidence, Witness
from shared.ledger.format import Header, entry_of, seal_line
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS, PREFERRED
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method

TIME = "2030-01-02T03:04:05Z"
PRIOR = Release(kind=ReleaseKind.POPULARITY, noise_multiplier=6.0)
TRAIN = Release(kind=ReleaseKind.TRAIN, noise_multiplier=3.0, sample_rate=0.1, steps=20)


def write(
    run: Path,
    releases: list[Release],
    *,
    platform: str = "movies",
    budget: float = 8.0,
    delta: float = 1e-5,
    lie: Any = lambda epsilon: epsilon,
    accountant: Any = PREFERRED,
    file: str = "",
) -> list[str]:
    """A ledger of these releases, written by someone who may lie about epsilon; returns every head."""
    path = run / "ledger" / (file or f"{platform}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    previous, line = seal_line(Header(version=2, platform=platform, budget=budget, delta=delta, created=TIME))
    heads, lines = [previous], [line]
    for number, release in enumerate(releases, start=1):
        spent = accountant.epsilon(releases[:number], delta)
        off = math.isinf(budget)
        previous, line = seal_line(
            entry_of(
                release,
                seq=number,
                time=TIME,
                run="spring",
                round=number,
                epsilon=math.inf if off else lie(spent.epsilon),
                delta=delta,
                accountant=Method.NONE if off else spent.accountant,
                previous=previous,
            )
        )
        heads.append(previous)
        lines.append(line)
    path.write_bytes(b"".join(lines))
    return heads


def receipt(run: Path, heads: dict[str, Any]) -> None:
    (run / "metrics.json").write_text(json.dumps({"platforms": {name: {"ledger": head} for name, head in heads.items()}}))


def shown(report: AuditReport) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_audit(report))
    return console.export_text()


def test_an_honest_ledger_passes(tmp_path: Path) -> None:
    heads = write(tmp_path, [PRIOR, TRAIN, TRAIN])
    receipt(tmp_path, {"movies": heads[-1]})
    report = audit_run(tmp_path)
    assert report.ok and report.problems == []
    (one,) = report.platforms
    assert one.entries == {"popularity": 1, "train": 2} and one.releases == 41
    assert one.opacus == OPACUS.epsilon([PRIOR, TRAIN, TRAIN], 1e-5) and one.opacus is not None
    assert one.recorded == pytest.approx(one.opacus.epsilon, rel=1e-9)
    assert one.dp_accounting == DP_ACCOUNTING.epsilon([PRIOR, TRAIN, TRAIN], 1e-5)
    assert one.method == "prv"
    text = shown(report)
    assert "movies" in text and "1 popularity, 2 train" in text and "ok" in text and f"{one.recorded:.3f}"[:4] in text


@pytest.mark.parametrize("share", [0.5, 0.97, 0.9999, 1.01])
def test_a_lie_about_epsilon_is_found(tmp_path: Path, share: float) -> None:
    write(tmp_path, [PRIOR, TRAIN], lie=lambda epsilon: epsilon * share)
    report = audit_run(tmp_path)
    assert not report.ok and "its entries give" in report.problems[0]
    # The second library sees it by itself where the lie is larger than the two may differ.
    assert any("dp-accounting" in problem for problem in report.problems) == (share <= 0.97)
    assert "FAILED" in shown(report)


def test_a_group_that_was_not_paid_for_is_found(tmp_path: Path) -> None:
    social = replace(TRAIN, noise_multiplier=8.0, group_size=3)

    class Forgets:
        def epsilon(self, releases: list[Release], delta: float) -> Any:
            return DP_ACCOUNTING.epsilon([replace(release, group_size=1) for release in releases], delta)

    write(tmp_path, [PRIOR, social], accountant=Forgets())
    assert not audit_run(tmp_path).ok
    write(tmp_path, [PRIOR, social])
    assert audit_run(tmp_path).ok  # although Opacus' loose bound for the group is far above what was recorded


INTEGER = replace(TRAIN, integers=Integers(reach=40.0, dimension=36_864, failure=2.0**-64, honest=4))


def test_integers_are_recomputed_with_their_rounding(tmp_path: Path) -> None:
    write(tmp_path, [PRIOR, INTEGER])
    report = audit_run(tmp_path)
    assert report.ok
    assert report.platforms[0].opacus is not None and report.platforms[0].opacus.tight

    class RealScale:
        """Charges as if a user's rounded vector were as long as the real one."""

        def epsilon(self, releases: list[Release], delta: float) -> Any:
            part = INTEGER.integers
            assert part is not None
            ideal = [
                replace(release, noise_multiplier=release.noise_multiplier * part.norm / part.reach, integers=None)
                if release.integers
                else release
                for release in releases
            ]
            return PREFERRED.epsilon(ideal, delta)

    write(tmp_path, [PRIOR, INTEGER], accountant=RealScale())
    assert not audit_run(tmp_path).ok


def test_steps_that_were_not_added_up_are_found(tmp_path: Path) -> None:
    class PerRound:
        def epsilon(self, releases: list[Release], delta: float) -> Any:
            return OPACUS.epsilon(releases[-1:], delta)

    write(tmp_path, [TRAIN] * 5, accountant=PerRound())
    assert not audit_run(tmp_path).ok


def test_an_overspent_ledger_is_found(tmp_path: Path) -> None:
    write(tmp_path, [PRIOR, *[TRAIN] * 12], budget=2.0, lie=lambda epsilon: min(epsilon, 1.99))
    assert any("above the budget of 2" in problem for problem in audit_run(tmp_path).problems)


def test_a_cut_ledger_is_seen_through_its_receipt(tmp_path: Path) -> None:
    heads = write(tmp_path, [PRIOR, TRAIN, TRAIN])
    receipt(tmp_path, {"movies": heads[-1]})
    path = tmp_path / "ledger" / "movies.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    report = audit_run(tmp_path)
    assert not report.ok and "cut or rewritten" in report.problems[0]
    (tmp_path / "metrics.json").unlink()
    assert audit_run(tmp_path).ok  # without the receipt nobody can know


def test_a_ledger_written_anew_is_seen_through_its_receipt(tmp_path: Path) -> None:
    heads = write(tmp_path, [PRIOR, TRAIN, TRAIN])
    receipt(tmp_path, {"movies": heads[-1]})
    write(tmp_path, [PRIOR, replace(TRAIN, noise_multiplier=30.0), TRAIN])
    assert not audit_run(tmp_path).ok


def test_charges_after_the_receipt_are_legitimate_and_shown(tmp_path: Path) -> None:
    heads = write(tmp_path, [PRIOR, TRAIN, TRAIN])
    receipt(tmp_path, {"movies": heads[-2]})
    report = audit_run(tmp_path)
    assert report.ok and report.platforms[0].later == 1 and "1 unanswered" in shown(report)


def test_a_missing_and_a_doubled_ledger_are_found(tmp_path: Path) -> None:
    heads = write(tmp_path, [PRIOR])
    receipt(tmp_path, {"movies": heads[-1], "music": "a" * 64})
    assert any("music" in problem for problem in audit_run(tmp_path).problems)
    receipt(tmp_path, {"movies": heads[-1]})
    write(tmp_path, [PRIOR], file="again.jsonl")
    assert any("2 ledgers" in problem for problem in audit_run(tmp_path).problems)


def test_an_unreadable_ledger_is_a_problem_and_not_the_end(tmp_path: Path) -> None:
    write(tmp_path, [PRIOR, TRAIN])
    write(tmp_path, [PRIOR], platform="music")
    path = tmp_path / "ledger" / "music.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"steps":1', b'"steps":9'))
    report = audit_run(tmp_path)
    assert [p.ok for p in report.platforms] == [True, False]
    assert report.everywhere is None and "line 2" in report.problems[0]
    assert report.platforms[1].releases == 0 and not report.platforms[1].entries
    assert "music" in shown(report)


def test_a_person_on_every_platform_pays_for_every_ledger(tmp_path: Path) -> None:
    write(tmp_path, [PRIOR, TRAIN])
    write(tmp_path, [PRIOR, TRAIN, TRAIN], platform="music", delta=2e-5)
    report = audit_run(tmp_path)
    everywhere = report.everywhere
    assert everywhere is not None and everywhere.platforms == 2 and everywhere.delta == pytest.approx(3e-5)
    together = [PRIOR, PRIOR, TRAIN, TRAIN, TRAIN]
    assert everywhere.dp_accounting == DP_ACCOUNTING.epsilon(together, everywhere.delta)
    figures = [p.recorded for p in report.platforms if p.recorded is not None]
    assert max(figures) < everywhere.epsilon <= sum(figures)
    assert everywhere.basic == pytest.approx(sum(figures), rel=0.02)
    assert "A person on all 2 platforms" in shown(report)


def test_of_one_ledger_nothing_is_added_up(tmp_path: Path) -> None:
    write(tmp_path, [PRIOR, TRAIN])
    report = audit_run(tmp_path)
    assert report.everywhere is None and json.loads(report.to_json())["everywhere"] is None
    assert "A person on all" not in shown(report)


def test_privacy_off_is_said_plainly(tmp_path: Path) -> None:
    write(tmp_path, [replace(TRAIN, noise_multiplier=0.0)], budget=math.inf)
    write(tmp_path, [PRIOR], platform="music")
    report = audit_run(tmp_path)
    assert report.ok and report.everywhere is not None and report.everywhere.epsilon == math.inf
    text = shown(report)
    assert "privacy off" in text and "∞" in text and "OFF" in text


def test_the_report_is_json(tmp_path: Path) -> None:
    write(tmp_path, [replace(TRAIN, noise_multiplier=0.0)], budget=math.inf)
    write(tmp_path, [PRIOR, TRAIN], platform="music", lie=lambda epsilon: epsilon / 2)
    report = audit_run(tmp_path)
    values = json.loads(report.to_json())
    assert values["ok"] is False and values["problems"] == report.problems
    assert [p["platform"] for p in values["platforms"]] == ["movies", "music"]
    assert [p["ok"] for p in values["platforms"]] == [True, False]
    assert values["platforms"][0]["recorded"] == "inf" and values["everywhere"]["epsilon"] == "inf"


def test_an_empty_ledger_passes(tmp_path: Path) -> None:
    write(tmp_path, [])
    report = audit_run(tmp_path)
    assert report.ok and report.platforms[0].recorded == 0


def test_no_ledger_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ledger found"):
        audit_run(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"platforms": []}', '{"platforms": {"movies": 3}}', '{"platforms": {"movies": {"ledger": "abc"}}}', "[" * 5000],
)
def test_receipts_that_cannot_be_read_are_an_input_error(tmp_path: Path, content: str) -> None:
    write(tmp_path, [PRIOR])
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InputError, match=r"metrics\.json|receipt"):
        audit_run(tmp_path)


def test_metrics_without_receipts_are_fine(tmp_path: Path) -> None:
    write(tmp_path, [PRIOR])
    (tmp_path / "metrics.json").write_text(json.dumps({"platforms": {"movies": {"ledger": ""}, "music": {"users": 3}}}))
    assert audit_run(tmp_path).ok


def witness(platform: str, head: str, source: str = "receipts.jsonl") -> Witness:
    return Witness(platform=platform, head=head, source=source)


ELSEWHERE = "of the receipts and models that were given none is of platform"


@pytest.mark.parametrize(
    ("witnesses", "said"),
    [
        ([], []),
        ([("movies", "own", "receipts.jsonl")], []),
        ([("movies", "own", ""), ("video", "ab" * 32, "")], ["for platform video was not checked: no ledger of it is here"]),
        ([("movies", "own", "receipts.jsonl"), ("video", "ab" * 32, "receipts.jsonl")], []),
        ([("video", "ab" * 32, "receipts.jsonl")], [f"{ELSEWHERE} movies"]),
        ([("movies", "own", "")], []),
    ],
)
def test_what_was_given_for_ledgers_that_are_not_here_is_said(tmp_path: Path, witnesses: list[Any], said: list[str]) -> None:
    """Whoever gives a receipt must not take it for one that was checked."""
    own = write(tmp_path, [PRIOR])[-1]
    evidence = LedgerEvidence(witnesses=tuple(witness(name, own if head == "own" else head, by) for name, head, by in witnesses))
    report = audit_ledgers([tmp_path / "ledger" / "movies.jsonl"], evidence=evidence, name="these")
    assert [note for note in report.notes if "not checked" in note or ELSEWHERE in note] == [
        f"the head {'ab' * 8} that was given {note}" if note.startswith("for") else note for note in said
    ]
    borne_out = any(name == "movies" for name, *_ in witnesses)
    assert (UNSEEN in report.platforms[0].unknown) is not borne_out and report.ok


def test_a_coordinator_that_has_all_ledgers_misses_one(tmp_path: Path) -> None:
    own = write(tmp_path, [PRIOR])[-1]
    there, gone = witness("movies", own), witness("video", "ab" * 32)
    paths = [tmp_path / "ledger" / "movies.jsonl"]
    for complete, problems in (
        (True, ["the coordinator has a receipt of platform video, but its ledger is not here"]),
        (False, []),
    ):
        report = audit_ledgers(paths, evidence=LedgerEvidence(witnesses=(there, gone), complete=complete), name="these")
        assert report.problems == problems


def test_a_head_without_a_name_is_in_one_of_the_ledgers(tmp_path: Path) -> None:
    own = write(tmp_path, [PRIOR])[-1]
    write(tmp_path, [PRIOR, PRIOR], platform="video")
    paths = [tmp_path / "ledger" / f"{name}.jsonl" for name in ("movies", "video")]
    known, lost = witness("", own, ""), witness("", "ab" * 32, "")
    assert audit_ledgers(paths, evidence=LedgerEvidence(witnesses=(known,)), name="these").problems == []
    (problem,) = audit_ledgers(paths, evidence=LedgerEvidence(witnesses=(known, lost)), name="these").problems
    assert (
        problem
        == f"the head {'ab' * 8} that was given is in the chain of none of these ledgers: one of them was cut or rewritten"
    )
    # Of one that cannot be read it may be.
    unread = audit_ledgers([paths[0], tmp_path / "none.jsonl"], evidence=LedgerEvidence(witnesses=(known, lost)), name="these")
    assert unread.problems == []
