"""What a report says of a run: the ledgers' own figures, the verdict of the audit, and every gap in words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.privacy.ledger_writer import LedgerWriter
from server.report.collect import (
    ReportMaterial,
    _amount,
    _distributed,
    _finished,
    _released,
    _standing,
    collect_report,
    guess_bound,
    spent_of,
)
from server.report.participants import answers_of
from server.report.privacy_promise import KEPT, ONE_USER, WHAT
from server.report.report_model import PromiseStanding, RunReport, SubjectKind
from server.report.subject import ReportSubject, SubjectFiles, open_subject, read_subject
from shared.base.errors import InputError
from shared.ledger.audit import PlatformAudit
from shared.ledger.evidence import folder_evidence
from shared.ledger.reading import read_ledger
from shared.privacy.accountants import DP_ACCOUNTING
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method, Spent
from shared.secagg.identity import Identity

Make = Callable[[Path], RunReport]


def test_a_finished_simulation(finished: Path, report_of: Make) -> None:
    report = report_of(finished)
    assert report.kind is SubjectKind.SIMULATION and report.finished and report.rounds == 3
    assert report.verdict.verdict == "sound" and report.verdict.exit_code == 0
    assert report.verdict.standing is PromiseStanding.SIMULATED and "promises nothing" in report.promise.statement
    assert [one.platform for one in report.budgets] == ["shop", "video"] and report.promise.units == 74
    for one, record, history in zip(report.budgets, report.records, report.history, strict=True):
        ledger = read_ledger(finished / "ledger" / f"{one.platform}.jsonl")
        assert one.spent == record.recorded == ledger.epsilon == history.points[-1].epsilon
        assert record.pld == DP_ACCOUNTING.epsilon(ledger.releases, 1e-3).epsilon
        assert [point.round for point in history.points] == [0, 1, 2, 3]
        assert record.charges == len(ledger.entries) and record.answers == 4
    train = [one for one in report.releases if one.kind == "train"]
    assert {(one.times, one.answers, one.sample_rate) for one in train} == {(6, 3, 0.5)}
    assert all("clipping bound of 1" in one.one_user and one.bytes_at_most == 4 * (one.numbers or 0) > 0 for one in train)
    metrics = json.loads((finished / "metrics.json").read_text())["platforms"]
    for row in report.participants:
        assert (row.users, row.rounds, row.bytes_up) == tuple(metrics[row.platform][k] for k in ("users", "rounds", "bytes_up"))
    for found in report.quality:
        assert found.own == metrics[found.platform]["own"]["ndcg@10"] and found.exact
    assert report.everywhere is not None and report.everywhere.epsilon > max(one.spent or 0 for one in report.budgets)
    assert report.attack is None and report.settings["training.local_steps"] == 2


def test_a_changed_ledger_is_unsound(run: Path, report_of: Make) -> None:
    path = run / "ledger" / "shop.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":1', 1))
    report = report_of(run)
    assert report.verdict.verdict == "unsound" and report.verdict.exit_code == 1
    assert any("shop" in reason for reason in report.verdict.reasons)
    shop, record = report.budgets[0], report.records[0]
    assert shop.platform == record.platform == "shop" and "altered" in record.problems[0]
    # No figure is taken from what was changed.
    assert shop.spent is None and shop.verdict == "unsound" and record.charges == 0


def test_a_cut_ledger_is_unsound_with_receipts_and_open_without(run: Path, report_of: Make) -> None:
    path = run / "ledger" / "shop.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    report = report_of(run)
    assert report.verdict.verdict == "unsound" and report.everywhere is None
    assert any("1 of 2 platforms stayed" in reason for reason in report.verdict.reasons)
    for name in ("metrics.json", "receipts.jsonl"):
        (run / name).unlink()
    report = report_of(run)
    assert report.verdict.verdict == "cannot tell" and report.verdict.exit_code == 2
    assert any("cut end" in reason for reason in report.verdict.reasons)


def test_it_says_how_far_anybody_outside_vouches(run: Path, report_of: Make) -> None:
    report = report_of(run)
    assert any("up to the last line of each ledger" in reason for reason in report.verdict.reasons)
    assert "as far as somebody else vouches" in report.verdict.headline
    assert all(one.vouched == one.lines == 9 for one in report.records)
    # Answers that came after the last receipt: sound, and neither the page nor its first lines say that nothing can be missing.
    receipts = run / "receipts.jsonl"
    receipts.write_bytes(b"".join(receipts.read_bytes().splitlines(keepends=True)[:4]))
    (run / "metrics.json").unlink()
    report = report_of(run)
    assert report.verdict.verdict == "sound" and {one.vouched for one in report.records} == {5}
    assert any("the last line of 0 of 2 ledgers" in reason for reason in report.verdict.reasons)
    assert any("cut off there, nobody outside vouches" in reason for reason in report.verdict.reasons)


def test_nothing_is_said_of_heads_where_no_ledger_could_be_read(run: Path, report_of: Make) -> None:
    for path in (run / "ledger").glob("*.jsonl"):
        path.write_bytes(b"no ledger")
    report = report_of(run)
    assert report.verdict.verdict != "sound" and not any("Checked against" in reason for reason in report.verdict.reasons)


def test_an_answer_of_which_two_files_have_the_receipt_is_one_answer(run: Path, report_of: Make) -> None:
    evidence = folder_evidence(run)
    assert sum(answers_of(evidence).values()) == len((run / "receipts.jsonl").read_text().splitlines())
    assert answers_of(evidence.plus(folder_evidence(run))) == answers_of(evidence)


def test_a_report_of_one_platform_counts_its_own_answers_alone(run: Path) -> None:
    ledger = run / "ledger" / "shop.jsonl"
    subject = open_subject(ledger)
    material = ReportMaterial(subject=subject, files=read_subject(subject), ledgers=[ledger], evidence=folder_evidence(run))
    report = collect_report(material)
    (one,) = report.participants
    counted = {field.answers for field in report.fields if field.field == "ledger"}
    assert one.platform == "shop" and counted == {one.answers} and one.answers


def test_a_platform_with_two_ledgers_is_not_said_to_be_two_platforms(run: Path, tmp_path: Path) -> None:
    """What two ledgers spent together is above the budget here, and each by itself is not."""
    again = tmp_path / "again" / "shop.jsonl"
    again.parent.mkdir()
    first = read_ledger(run / "ledger" / "shop.jsonl")
    with LedgerWriter.open(
        again, platform="shop", budget=first.header.budget, delta=1e-3, identity=Identity(b"z" * 32), accountant=DP_ACCOUNTING
    ) as writer:
        for entry in first.entries:
            writer.charge(entry.release, run=entry.run, round=entry.round, question="0" * 64)
    subject = open_subject(run)
    material = ReportMaterial(
        subject=subject,
        files=read_subject(subject),
        ledgers=[run / "ledger" / "shop.jsonl", again],
        evidence=folder_evidence(run),
    )
    reasons = collect_report(material).verdict.reasons
    assert not any("platforms stayed" in reason for reason in reasons)
    assert any("each ledger taken by itself" in reason for reason in reasons)


def test_an_attack_that_proves_more_than_is_claimed_makes_it_unsound(run: Path, report_of: Make) -> None:
    view = {"canaries": 40, "bound": 9.0, "steinke": 9.0, "gaussian": 0.0, "area": 0.99, "low": 0.5, "estimate": None}
    attack: dict[str, Any] = {"release": "updates", "platform": "shop", "claim": 3.0, "delta": 1e-3, "confidence": 0.95}
    (run / "attack.json").write_text(json.dumps({**attack, "views": {"white box": view}, "refuted": False}))
    report = report_of(run)
    # Computed from the bounds, and not taken from the file's own word.
    assert report.attack is not None and report.attack.refuted and report.verdict.exit_code == 1
    (run / "attack.json").write_text(json.dumps({**attack, "views": {"white box": {**view, "bound": 1.0}}}))
    report = report_of(run)
    assert report.attack is not None and not report.attack.refuted and report.verdict.exit_code == 0
    assert any("at least 1; 3 is claimed. Not refuted, which confirms nothing" in reason for reason in report.verdict.reasons)
    # "At least 0" would be read as a figure.
    (run / "attack.json").write_text(json.dumps({**attack, "views": {"white box": {**view, "bound": 0.0}}}))
    assert any("proved nothing; 3 is claimed" in reason for reason in report_of(run).verdict.reasons)


@pytest.mark.parametrize("name", ["attack.json", "run.toml", "state.json", "model/training.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"views": 3}', b"[" * 100_000], ids=range(6))
def test_a_damaged_file_beside_the_ledgers_is_a_gap_and_no_end(run: Path, report_of: Make, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    report = report_of(run)
    assert report.verdict.verdict == "sound"
    if content in (b"[]", b"{", b"\xff\xfe") and name != "state.json":
        assert any(Path(name).name in gap or "attack" in gap for gap in report.gaps), report.gaps


@pytest.mark.parametrize("value", [None, 3, "x", [], {"shop": 3}, {"shop": {"own": 3, "users": "many", "refusals": 4}}])
def test_figures_of_another_form_are_left_out(run: Path, report_of: Make, value: Any) -> None:
    (run / "receipts.jsonl").unlink()
    path = run / "state.json"
    path.write_text(json.dumps({"platforms": value, "run": 7, "state": []}))
    (run / "events.jsonl").write_text('3\n{"kind": [], "platform": "shop"}\n{"kind": "left", "platform": "shop", "text": 4}\n')
    report = report_of(run)
    assert {one.platform for one in report.participants} == {"shop", "video"}
    assert report.participants[0].trouble == "4"


def test_privacy_that_is_off_is_said_first(run: Path, report_of: Make, tmp_path: Path) -> None:
    from shared.ledger.format import Header, seal_line

    for path in (run / "ledger").glob("*.jsonl"):
        path.unlink()
    (run / "metrics.json").unlink()
    (run / "receipts.jsonl").unlink()
    _, line = seal_line(Header(version=2, platform="shop", budget=math.inf, delta=1e-3, created="2030-01-02T03:04:05Z"))
    (run / "ledger" / "shop.jsonl").write_bytes(line)
    report = report_of(run)
    assert report.verdict.standing is PromiseStanding.OFF and "off" in report.promise.statement


def test_the_best_guess_is_the_privacy_loss_of_randomised_response() -> None:
    # Randomised response with ln 3 answers truly with probability 3/4: no guess is right more often, and one is.
    assert guess_bound(math.log(3.0), 0.0) == pytest.approx(0.75)
    assert guess_bound(0.0, 0.1) == pytest.approx(0.55)
    assert guess_bound(1e9, 0.0) == guess_bound(math.inf, 0.5) == 1.0


@pytest.mark.parametrize("kind", ReleaseKind)
@pytest.mark.parametrize("group", [1, 2, 9])
@pytest.mark.parametrize("answers", [None, 0, 3])
def test_what_one_user_changes_and_how_much_leaves(kind: ReleaseKind, group: int, answers: int | None) -> None:
    release = Release(kind=kind, noise_multiplier=1.0, sample_rate=0.5, steps=4, group_size=group)
    found = _released("shop", release, answers, 0.5)
    train = kind is ReleaseKind.TRAIN
    said = ONE_USER[str(kind)] + (" of 0.5" if train else "")
    assert found.one_user == said + (f", in each of up to {group} examples that the user is in" if group > 1 else "")
    assert found.what == WHAT[str(kind)] + (KEPT if kind is ReleaseKind.POPULARITY and answers == 0 else "")
    assert (found.times, found.answers, found.group, found.numbers, found.grid) == (4, answers, group, None, None)
    # Where nothing left it is nothing; where the ledger does not say how many numbers an answer has, it is not known.
    assert found.bytes_at_most == (0 if answers == 0 else None)
    for no_bound in (None, True, "x"):
        assert _released("shop", release, answers, no_bound).one_user == found.one_user.replace(" of 0.5", "")
    on_a_grid = Integers(reach=6.0, dimension=70, failure=0.0, honest=2)
    found = _released("shop", Release(kind=kind, noise_multiplier=1.0, sample_rate=0.5, integers=on_a_grid), answers, 0.5)
    assert (found.numbers, found.grid, found.bytes_at_most) == (70, on_a_grid.norm, 0 if answers == 0 else 280)


@pytest.mark.parametrize(
    ("recorded", "opacus", "other", "budget", "spent"),
    [
        (3.0, 2.5, 2.0, 8.0, 3.0),  # what is charged counts though less was needed
        (1.0, 2.5, 2.0, 8.0, 2.0),  # and the better of two bounds where too little was charged
        (1.0, 2.0, 2.5, 8.0, 2.0),
        (None, 2.0, 2.5, 8.0, 2.0),
        (1.0, None, 2.0, 8.0, None),
        (1.0, 2.0, None, 8.0, None),
        (1.0, 2.0, 2.5, math.inf, math.inf),
    ],
)
def test_what_is_spent_is_what_is_charged_and_no_less_than_the_charges_give(
    recorded: float | None, opacus: float | None, other: float | None, budget: float, spent: float | None
) -> None:
    first, second = (None if value is None else Spent(epsilon=value, accountant=Method.PRV) for value in (opacus, other))
    values: dict[str, Any] = {"file": "x", "platform": "shop", "recorded": recorded, "opacus": first, "dp_accounting": second}
    assert spent_of(PlatformAudit(**values, budget=budget, entries={"train": 1})) == spent
    if math.isinf(budget):  # nothing was charged yet
        assert spent_of(PlatformAudit(**values, budget=budget)) == 2.0


def files_with(**over: Any) -> SubjectFiles:
    values: dict[str, Any] = {"metrics": {}, "facts": None, "settings": {}, "run": "", "state": {}, "events": (), "attack": {}}
    return SubjectFiles(**{**values, "gaps": (), **over})


@pytest.mark.parametrize(
    ("noise", "honest", "said"),
    [
        ("distributed", (), True),
        ("local", (), False),
        ("local", (2,), False),  # the settings' word
        (None, (), None),
        (None, (1, 1), None),
        (None, (1, 2), True),
    ],
)
def test_where_the_noise_is_added_is_said_by_the_settings_or_by_shares_in_a_ledger(
    noise: str | None, honest: tuple[int, ...], said: bool | None
) -> None:
    integers = [Integers(reach=6.0, dimension=4, failure=0.0, honest=number) for number in honest]
    steps = [Release(kind=ReleaseKind.TRAIN, noise_multiplier=1.0, sample_rate=0.5, integers=one) for one in (None, *integers)]
    summary: Any = SimpleNamespace(releases=lambda: steps)
    assert _distributed({} if noise is None else {"privacy.noise": noise}, [summary]) is said


@pytest.mark.parametrize(
    ("files", "runs", "standing"),
    [
        ({}, ["spring"], PromiseStanding.PROMISED),
        ({"settings": {"simulation": False, "privacy.generator": "secure"}}, ["spring"], PromiseStanding.PROMISED),
        ({"settings": {"simulation": True}}, ["spring"], PromiseStanding.SIMULATED),
        ({"settings": {"privacy.generator": "seeded"}}, ["spring"], PromiseStanding.SIMULATED),
        ({"metrics": {"rounds": 3}}, ["spring"], PromiseStanding.SIMULATED),
        ({}, ["spring", "simulation-7"], PromiseStanding.SIMULATED),
        ({}, ["a-simulation-"], PromiseStanding.PROMISED),
    ],
)
def test_one_sign_of_a_simulation_is_enough_to_promise_nothing(
    files: dict[str, Any], runs: list[str], standing: PromiseStanding
) -> None:
    assert _standing(files_with(**files), [], runs) is standing


@pytest.mark.parametrize("kind", SubjectKind)
def test_whether_a_run_has_ended_is_its_journals_word(kind: SubjectKind) -> None:
    subject = ReportSubject(kind=kind, place=Path(), name="spring")
    for state in ("finished", "running", "failed"):
        assert _finished(subject, files_with(state={"state": state}, metrics={"rounds": 3})) is (state == "finished")
    simulated = kind is SubjectKind.SIMULATION
    assert _finished(subject, files_with()) is (False if simulated else None)
    assert _finished(subject, files_with(metrics={"rounds": 3})) is (True if simulated else None)


@pytest.mark.parametrize(
    ("value", "amount"), [("inf", math.inf), (0, 0.0), (2.5, 2.5), (-1, None), (True, None), ("3", None), (None, None)]
)
def test_an_amount_of_another_party_is_a_number_from_nought_on(value: Any, amount: float | None) -> None:
    assert _amount(value) == amount


def test_what_is_no_run_is_refused_in_words(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError):
            open_subject(path)
    (tmp_path / "server.toml").write_text("")
    with pytest.raises(InputError, match="coordinator"):
        open_subject(tmp_path)
