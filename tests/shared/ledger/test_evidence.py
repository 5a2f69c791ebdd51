"""What an audit finds of a ledger that a platform signed, against what somebody outside holds."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from client.privacy.ledger_writer import LedgerWriter
from shared.base.errors import InputError, PrivacyError
from shared.ledger.audit import UNSEEN, AuditReport, AuditVerdict, audit_ledgers
from shared.ledger.audit_report import render_audit
from shared.ledger.checks import order_problems
from shared.ledger.evidence import LedgerEvidence, MechanismClaim, heads_evidence, receipts_evidence
from shared.ledger.format import (
    Entry,
    Header,
    IdentityRecord,
    Line,
    ReleaseRecord,
    entry_of,
    seal_line,
    sign_line,
)
from shared.ledger.reading import OPEN_CHARGES, Signatures, read_ledger
from shared.ledger.receipts import LedgerReceipt, parse_receipt, sign_head
from shared.ledger.summary import summarise_ledger
from shared.ledger.what_if_report import what_if_report
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method, Spent
from shared.protocol.keys import ed25519_line
from shared.secagg.identity import Identity

KEY = b64encode(Identity(b"i" * 32).public).decode()
TIME = "2030-01-02T03:04:05Z"
MINE, OTHERS = Identity(b"i" * 32), Identity(b"j" * 32)
COORDINATOR, STRANGER = Ed25519PrivateKey.from_private_bytes(b"c" * 32), Ed25519PrivateKey.from_private_bytes(b"s" * 32)
TRUSTED = [COORDINATOR.public_key().public_bytes_raw()]
PRIOR = Release(kind=ReleaseKind.POPULARITY, noise_multiplier=6.0)
TRAIN = Release(kind=ReleaseKind.TRAIN, noise_multiplier=4.0, sample_rate=0.1, steps=4)


class Platform:
    """A platform that charges, releases and is given receipts, by the product's own writer."""

    def __init__(self, folder: Path, *, identity: Identity = MINE, budget: float = 8.0, name: str = "shop") -> None:
        self.path, self.identity, self.name = folder / f"{name}.jsonl", identity, name
        self.writer = LedgerWriter.open(
            self.path, platform=name, budget=budget, delta=1e-5, identity=identity, accountant=DP_ACCOUNTING
        )
        self.receipts: list[LedgerReceipt] = []

    def answer(self, round_: int, release: Release = TRAIN, *, left: str = "", run: str = "spring", kind: str = "update") -> str:
        charge = self.writer.charge(release, run=run, round=round_, question=f"{round_:064x}")
        return self.leave(charge.hash, round_, left=left, run=run, kind=kind)

    def leave(self, charge: str, round_: int, *, left: str = "", run: str = "spring", kind: str = "update") -> str:
        left = left or f"{round_ + 1000:064x}"
        head = self.writer.record_release(left, charge=charge, run=run, round=round_)
        self.receipts.append(
            LedgerReceipt(
                platform=self.name,
                run=run,
                round=round_,
                kind=kind,
                left=left,
                ledger=head,
                head_signature=sign_head(self.identity, head),
            ).signed(COORDINATOR)
        )
        return head

    def close(self) -> Platform:
        self.writer.close()
        return self

    @property
    def lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    """One popularity and three rounds, closed."""
    made = Platform(tmp_path)
    made.answer(0, PRIOR)
    for round_ in (1, 2, 3):
        made.answer(round_)
    return made.close()


def shown(report: AuditReport) -> str:
    """The report as a terminal shows it, in one line."""
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(render_audit(report))
    return " ".join(console.export_text().split())


def evidence_of(receipts: list[LedgerReceipt], folder: Path, *, trusted: list[bytes] = TRUSTED) -> LedgerEvidence:
    path = folder / "receipts.jsonl"
    path.write_text("".join(receipt.text() + "\n" for receipt in receipts))
    return receipts_evidence(path, trusted=trusted)


def audited(platform: Platform, evidence: LedgerEvidence | None = None, *, trusted: list[bytes] = TRUSTED) -> AuditReport:
    if evidence is None:
        evidence = evidence_of(platform.receipts, platform.path.parent, trusted=trusted)
    return audit_ledgers([platform.path], name="test", evidence=evidence)


def test_a_ledger_that_its_receipts_bear_out_is_sound(platform: Platform) -> None:
    report = audited(platform)
    assert (report.verdict, report.problems, report.notes) == (AuditVerdict.SOUND, [], ())
    (one,) = report.platforms
    assert (one.checked, one.later, one.released, one.unreleased, one.rowless) == (4, 0, 4, 0, 0)
    assert one.identity == MINE.public.hex() and one.receipt == one.head


def test_without_anybody_outside_nobody_can_tell(platform: Platform) -> None:
    report = audited(platform, LedgerEvidence())
    assert report.verdict is AuditVerdict.UNKNOWN and report.ok and report.platforms[0].unknown == (UNSEEN,)
    # What the platform kept itself shows what is missing, and not that nothing is.
    own = receipts_evidence(_file(platform), trusted=TRUSTED, own=True)
    assert audited(platform, own).verdict is AuditVerdict.UNKNOWN


def test_a_platform_that_answered_nothing_in_a_run_whose_receipts_are_here_is_sound(platform: Platform) -> None:
    silent = platform.path.parent / "video.jsonl"
    all_ = replace(evidence_of(platform.receipts, platform.path.parent), complete=True)
    silent.write_bytes(
        seal_line(sign_line(Header(platform="video", budget=8.0, delta=1e-5, created=TIME, identity=KEY), MINE))[1]
    )
    assert audit_ledgers([platform.path, silent], name="run", evidence=all_).verdict is AuditVerdict.SOUND
    # Not where others than this run's receipts are missing, and not where it charges anything.
    assert audit_ledgers([silent], name="run", evidence=replace(all_, complete=False)).verdict is AuditVerdict.UNKNOWN
    only = LedgerEvidence(complete=True)
    assert audit_ledgers([silent], name="run", evidence=only).verdict is AuditVerdict.UNKNOWN
    _long(silent, 1)
    report = audit_ledgers([silent], name="run", evidence=replace(all_, witnesses=all_.witnesses[:0], complete=True))
    assert report.verdict is not AuditVerdict.SOUND


@pytest.mark.parametrize("line", range(9))
def test_a_verdict_says_up_to_which_line_somebody_outside_vouches(platform: Platform, line: int) -> None:
    head = json.loads(platform.lines[line])["hash"]
    # Cut after it, or whole: an old head bears out the same lines, and nobody may read more into it.
    for kept in (platform.lines, platform.lines[: line + 1]):
        platform.path.write_bytes(b"".join(kept))
        report = audited(platform, heads_evidence([head]))
        (one,) = report.platforms
        assert (one.vouched, one.lines, one.receipt) == (line, len(kept) - 1, head)
        said = shown(report)
        assert f"checked against 1 head from outside, up to line {line + 1} of {len(kept)}" in said
        assert "cut off after it would not be seen" in said and f"the head {head[:16]} that was given" in said
    assert "up to line" not in shown(audited(platform, LedgerEvidence()))


def test_a_head_without_a_name_is_of_the_ledger_that_holds_it(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = Platform(tmp_path / "b", identity=OTHERS, name="video")
    other.answer(1)
    other.close()
    heads = [made.receipts[-1].ledger for made in (platform, other)]

    def together(*given: str) -> AuditReport:
        return audit_ledgers([platform.path, other.path], name="test", evidence=heads_evidence(given))

    assert together(*heads).verdict is AuditVerdict.SOUND
    assert [one.verdict for one in together(heads[1]).platforms] == [AuditVerdict.UNKNOWN, AuditVerdict.SOUND]
    # In a chain of neither: one was cut, as it would be said of one ledger alone.
    platform.path.write_bytes(b"".join(platform.lines[:-1]))
    report = together(*heads)
    assert report.verdict is AuditVerdict.UNSOUND and heads[0][:16] in report.problems[0]
    platform.path.write_bytes(b"no ledger")
    assert together(*heads).verdict is AuditVerdict.UNKNOWN


def test_a_head_of_a_platform_that_is_not_here_is_named_as_unchecked(platform: Platform) -> None:
    report = audited(platform, heads_evidence([f"video={platform.receipts[-1].ledger}"]))
    assert report.verdict is AuditVerdict.UNKNOWN and "for platform video was not checked" in report.notes[0]


@pytest.mark.parametrize("gone", [1, 2, 5])
def test_a_removed_tail_is_found(platform: Platform, gone: int) -> None:
    platform.path.write_bytes(b"".join(platform.lines[:-gone]))
    # The audit of a deployed platform once said "ok" here.
    assert audited(platform, LedgerEvidence()).verdict is AuditVerdict.UNKNOWN
    report = audited(platform)
    assert report.verdict is AuditVerdict.UNSOUND
    assert "cut or rewritten" in report.problems[0] and "its platform signed that head" in report.problems[0]
    head = platform.receipts[-1].ledger
    assert audited(platform, heads_evidence([head])).verdict is AuditVerdict.UNSOUND
    own = receipts_evidence(_file(platform), trusted=TRUSTED, own=True)
    assert audited(platform, own).verdict is AuditVerdict.UNSOUND


@pytest.mark.parametrize("at", range(1, 9))
def test_a_line_that_is_changed_dropped_repeated_or_moved_is_found(platform: Platform, at: int) -> None:
    lines = platform.lines
    swapped = [*lines[:at], *lines[at : at + 2][::-1], *lines[at + 2 :]]
    doubled = [*lines[: at + 1], lines[at], *lines[at + 1 :]]
    dropped = [*lines[:at], *lines[at + 1 :]]
    changed = [*lines[:at], lines[at].replace(b'"seq":', b'"seq":1', 1), *lines[at + 1 :]]
    for altered in (doubled, changed, *([swapped, dropped] if at < len(lines) - 1 else [])):
        platform.path.write_bytes(b"".join(altered))
        assert audited(platform).verdict is AuditVerdict.UNSOUND


def rewritten(platform: Platform, change: Callable[[Line], Line], signer: Identity) -> None:
    """The ledger with lines changed and everything after them hashed and signed anew."""
    ledger = read_ledger(platform.path)
    header = sign_line(replace(ledger.header, hash="", signature=""), signer) if signer is MINE else ledger.header
    previous, text = seal_line(replace(header, hash=""))
    moved = {ledger.header.hash: previous}
    content = [text]
    for line in ledger.lines:
        new: Any = replace(change(line), previous=previous, hash="", signature="")
        if isinstance(new, ReleaseRecord) and new.charge:
            new = replace(new, charge=moved[new.charge])
        previous, text = seal_line(sign_line(new, signer))
        moved[line.hash] = previous
        content.append(text)
    platform.path.write_bytes(b"".join(content))


def flattering(line: Line) -> Line:
    return replace(line, noise_multiplier=9.0) if isinstance(line, Entry) and line.round == 2 else line


def test_without_the_platforms_key_no_line_can_be_written_anew(platform: Platform) -> None:
    rewritten(platform, flattering, OTHERS)
    report = audited(platform, LedgerEvidence())
    assert report.verdict is AuditVerdict.UNSOUND and "not signed by the ledger's platform" in report.problems[0]


def test_a_history_that_the_platform_writes_anew_is_found(platform: Platform) -> None:
    """It has the key, so its new chain holds in itself: what went out with its answers shows that there was another one."""
    rewritten(platform, flattering, MINE)
    assert read_ledger(platform.path, signatures=Signatures.EVERY).lines
    report = audited(platform)
    assert report.verdict is AuditVerdict.UNSOUND
    assert any("cut or rewritten" in problem and "signed that head" in problem for problem in report.problems)


def test_a_fork_is_found(tmp_path: Path) -> None:
    """Two histories from one beginning: answers of both went out, and only one is shown."""
    first = Platform(tmp_path)
    first.answer(0, PRIOR)
    first.close()
    begun = first.path.read_bytes()
    first.writer = LedgerWriter.open(first.path, platform="shop", budget=8.0, delta=1e-5, identity=MINE, accountant=DP_ACCOUNTING)
    first.answer(1, run="hidden")
    first.close()
    first.path.write_bytes(begun)
    first.path.chmod(0o600)
    first.writer = LedgerWriter.open(first.path, platform="shop", budget=8.0, delta=1e-5, identity=MINE, accountant=DP_ACCOUNTING)
    first.answer(1)
    first.close()
    report = audited(first)
    assert report.verdict is AuditVerdict.UNSOUND and "two histories (a fork)" in report.problems[0]
    assert "run hidden" in report.problems[0]


class TestAPlatformThatCameBackWithAnotherIdentity:
    """It has two ledgers, and its users have spent what both say."""

    def came_back(self, folder: Path, *, budget: float = 8.0, rounds: int = 1) -> tuple[Platform, Platform, LedgerEvidence]:
        (folder / "old").mkdir()
        (folder / "new").mkdir()
        old, new = Platform(folder / "old", budget=budget), Platform(folder / "new", identity=OTHERS, budget=budget)
        for round_ in range(1, rounds + 1):
            old.answer(round_)
            new.answer(round_, run="autumn")
        return old.close(), new.close(), evidence_of([*old.receipts, *new.receipts], folder)

    def audited(self, evidence: LedgerEvidence, *platforms: Platform) -> AuditReport:
        return audit_ledgers([one.path for one in platforms], name="test", evidence=evidence)

    def test_both_together_are_sound_and_their_sum_is_said(self, tmp_path: Path) -> None:
        old, new, evidence = self.came_back(tmp_path)
        report = self.audited(evidence, old, new)
        assert report.verdict is AuditVerdict.SOUND, report.problems
        spent = min(one.epsilon([TRAIN, TRAIN], 1e-5).epsilon for one in (OPACUS, DP_ACCOUNTING))
        assert any(f"2 ledgers of as many identities: together they spent epsilon {spent:.6g}" in note for note in report.notes)
        found = what_if_report(report.summaries, person="shop", plan=True)
        assert found.total.delta == pytest.approx(2e-5) and len(found.plans) == 2
        assert found.total.dp_accounting == pytest.approx(DP_ACCOUNTING.epsilon([TRAIN, TRAIN], 2e-5).epsilon)

    def test_a_sum_above_the_budget_is_a_problem(self, tmp_path: Path) -> None:
        budget = 1.01 * DP_ACCOUNTING.epsilon([TRAIN] * 3, 1e-5).epsilon
        old, new, evidence = self.came_back(tmp_path, budget=budget, rounds=3)
        report = self.audited(evidence, old, new)
        assert report.verdict is AuditVerdict.UNSOUND and "above the budget" in report.problems[0]

    def test_two_of_one_identity_are_unsound_and_their_sum_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "new").mkdir()
        old, new = Platform(tmp_path / "old", budget=2.0), Platform(tmp_path / "new", budget=8.0)
        old.answer(1)
        new.answer(1, run="autumn")
        report = self.audited(evidence_of([*old.receipts, *new.receipts], tmp_path), old.close(), new.close())
        spent = min(one.epsilon([TRAIN, TRAIN], 1e-5).epsilon for one in (OPACUS, DP_ACCOUNTING))
        assert report.verdict is AuditVerdict.UNSOUND
        assert any("not an identity for each" in one and f"epsilon {spent:.6g} at 1e-05" in one for one in report.general)

    def test_one_of_them_alone_lacks_what_the_other_answered(self, tmp_path: Path) -> None:
        old, new, evidence = self.came_back(tmp_path)
        for alone in (old, new):
            report = self.audited(evidence, alone)
            assert report.verdict is AuditVerdict.UNSOUND and "cut or rewritten" in report.problems[0]

    @pytest.mark.parametrize("which", ["old", "new"])
    def test_a_cut_tail_of_one_is_not_made_good_by_the_other(self, tmp_path: Path, which: str) -> None:
        old, new, evidence = self.came_back(tmp_path, rounds=2)
        cut = {"old": old, "new": new}[which]
        cut.path.write_bytes(b"".join(cut.lines[:-2]))
        report = self.audited(evidence, old, new)
        assert [bool(one.problems) for one in report.platforms] == [which == "old", which == "new"]
        assert "cut or rewritten" in report.problems[0]

    def test_a_published_run_is_of_the_ledger_that_charged_it(self, tmp_path: Path) -> None:
        old, new, evidence = self.came_back(tmp_path)
        claims = tuple(
            MechanismClaim(platform="shop", run=run, rounds=1, steps=4, sample_rate=0.1, noise_multiplier=4.0)
            for run in ("spring", "autumn")
        )
        assert self.audited(evidence.plus(LedgerEvidence(claims=claims)), old, new).verdict is AuditVerdict.SOUND
        more = tuple(replace(claim, noise_multiplier=2.0) for claim in claims)
        report = self.audited(evidence.plus(LedgerEvidence(claims=more)), old, new)
        assert [len(one.problems) for one in report.platforms] == [1, 1]
        neither = (replace(claims[0], run="winter"),)
        assert self.audited(evidence.plus(LedgerEvidence(claims=neither)), old, new).verdict is AuditVerdict.UNSOUND


def test_an_answer_that_the_ledger_does_not_name_is_a_release_without_a_charge(platform: Platform) -> None:
    other = replace(platform.receipts[1], left="f" * 64, signature="", coordinator="").signed(COORDINATOR)
    report = audited(platform, evidence_of([other], platform.path.parent))
    assert report.verdict is AuditVerdict.UNSOUND and "a release without a charge" in report.problems[0]
    # A head of a charge, with an answer: the charge was there, and nothing says that this answer is what it paid for.
    charge = read_ledger(platform.path).entries[-1].hash
    other = replace(platform.receipts[-1], ledger=charge, head_signature="", signature="", coordinator="").signed(COORDINATOR)
    assert audited(platform, evidence_of([other], platform.path.parent)).verdict is AuditVerdict.UNSOUND


def test_a_release_record_needs_its_charge(platform: Platform) -> None:
    ledger = read_ledger(platform.path)
    last = ledger.lines[-1]
    made = ReleaseRecord(
        seq=last.seq + 1, time=TIME, run="spring", round=3, charge=ledger.entries[-1].hash, left="e" * 64, previous=last.hash
    )
    for charge in (made.charge, "0" * 64):  # paid for already; none at all
        _, text = seal_line(sign_line(replace(made, charge=charge), MINE))
        whole = platform.path.read_bytes()
        platform.path.write_bytes(whole + text)
        report = audited(platform)
        assert report.verdict is AuditVerdict.UNSOUND and "what left was not charged" in report.problems[0]
        platform.path.write_bytes(whole)


def test_the_writer_releases_one_answer_a_charge(tmp_path: Path) -> None:
    made = Platform(tmp_path)
    charge = made.writer.charge(TRAIN, run="spring", round=1, question="5" * 64)
    assert not made.writer.left
    head = made.leave(charge.hash, 1)
    assert made.writer.left and made.writer.head == head
    assert made.leave(charge.hash, 1) == head  # the same answer again is the same line
    with pytest.raises(PrivacyError, match="no open charge"):
        made.leave(charge.hash, 1, left="d" * 64)
    with pytest.raises(PrivacyError, match="no open charge"):
        made.leave("0" * 64, 1)
    with pytest.raises(PrivacyError, match="no open charge"):
        other = made.writer.charge(TRAIN, run="spring", round=2, question="6" * 64)
        made.leave(other.hash, 2, run="autumn")
    made.close()
    again = LedgerWriter.open(made.path, platform="shop", budget=8.0, delta=1e-5, identity=MINE, accountant=DP_ACCOUNTING)
    made.writer = again  # after a restart, too
    assert made.leave(charge.hash, 1) == head
    with pytest.raises(PrivacyError, match="no open charge"):
        made.leave(charge.hash, 1, left="d" * 64)
    made.close()
    assert len(made.lines) == 4


def test_a_charge_without_a_release_is_sound_and_said(platform: Platform) -> None:
    platform.writer = LedgerWriter.open(
        platform.path, platform="shop", budget=8.0, delta=1e-5, identity=MINE, accountant=DP_ACCOUNTING
    )
    platform.writer.charge(TRAIN, run="spring", round=4, question="5" * 64)  # and then the power goes
    platform.close()
    (one,) = (report := audited(platform)).platforms
    assert report.verdict is AuditVerdict.SOUND and (one.unreleased, one.later) == (1, 1)


def test_an_answer_without_a_row_is_named_and_counted(platform: Platform) -> None:
    platform.writer = LedgerWriter.open(
        platform.path, platform="shop", budget=8.0, delta=1e-5, identity=MINE, accountant=DP_ACCOUNTING
    )
    platform.leave("", 0, left="a" * 64, run="autumn", kind="preferred")
    platform.close()
    (one,) = (report := audited(platform)).platforms
    assert report.verdict is AuditVerdict.SOUND and one.rowless == 1 and one.recorded == one.dp_accounting.epsilon  # type: ignore[union-attr]


def test_a_charge_older_than_the_window_pays_no_more(tmp_path: Path) -> None:
    """So that a reader need not remember every charge."""
    made = Platform(tmp_path, budget=1e9)
    small = Release(kind=ReleaseKind.TRAIN, noise_multiplier=1e4)
    cheap = Spent(epsilon=0.5, accountant=Method.OPACUS_RDP)
    made.writer._accountant = type("Cheap", (), {"name": "", "epsilon": lambda self, releases, delta: cheap})()  # type: ignore[assignment]
    first = made.writer.charge(small, run="spring", round=0, question="5" * 64)
    for round_ in range(1, OPEN_CHARGES + 1):
        last = made.writer.charge(small, run="spring", round=round_, question="5" * 64)
    with pytest.raises(PrivacyError, match="no open charge"):
        made.leave(first.hash, 0)
    made.leave(last.hash, OPEN_CHARGES)
    made.close()
    assert summarise_ledger(made.path).unreleased == OPEN_CHARGES


class TestReceipts:
    def test_a_coordinator_cannot_make_up_a_head(self, platform: Platform) -> None:
        made = replace(platform.receipts[-1], ledger="b" * 64, head_signature="", signature="", coordinator="")
        report = audited(platform, evidence_of([*platform.receipts, made.signed(COORDINATOR)], platform.path.parent))
        assert report.verdict is AuditVerdict.UNSOUND and "signed that head" not in report.problems[0]

    def test_of_a_foreign_coordinator_are_left_out(self, platform: Platform) -> None:
        foreign = [replace(one, signature="", coordinator="").signed(STRANGER) for one in platform.receipts]
        report = audited(platform, evidence_of(foreign, platform.path.parent))
        assert report.verdict is AuditVerdict.UNKNOWN and "4 receipts of coordinators that are not trusted" in report.notes[0]

    def test_that_are_altered_are_a_problem(self, platform: Platform) -> None:
        altered = [replace(one, round=one.round + 1) for one in platform.receipts]
        report = audited(platform, evidence_of(altered, platform.path.parent))
        assert report.verdict is AuditVerdict.UNSOUND and "not signed by the coordinator" in report.problems[0]

    def test_without_a_trusted_key_the_audit_says_whose_they_are(self, platform: Platform) -> None:
        report = audited(platform, trusted=[])
        assert report.verdict is AuditVerdict.SOUND
        # As an invitation writes that key, so that people can compare.
        assert ed25519_line(COORDINATOR.public_key()) in report.notes[0] and "--coordinator" in report.notes[0]

    def test_of_other_platforms_say_nothing(self, platform: Platform) -> None:
        other = replace(platform.receipts[-1], platform="music", signature="", coordinator="").signed(COORDINATOR)
        report = audited(platform, evidence_of([other], platform.path.parent))
        assert report.verdict is AuditVerdict.UNKNOWN and "music" not in report.to_json()
        assert report.notes == ("of the receipts and models that were given none is of platform shop",)

    @pytest.mark.parametrize(
        "text",
        ["", "{}", "[]", "[" * 3000, '{"platform":"shop"}', "x" * 5000, None],
    )
    def test_what_is_none_is_an_input_error(self, platform: Platform, text: str | None) -> None:
        path = platform.path.parent / "receipts.jsonl"
        good = platform.receipts[0].text()
        path.write_text(f"{good}\n{good.replace('spring', 'Spring!') if text is None else text}\n")
        with pytest.raises(InputError, match="receipt"):
            receipts_evidence(path)

    def test_a_torn_last_line_is_none(self, platform: Platform) -> None:
        path = _file(platform)
        path.write_text(path.read_text()[:-40])
        assert len(receipts_evidence(path, trusted=TRUSTED).witnesses) == 3

    def test_they_are_read_as_written(self, platform: Platform) -> None:
        for one in platform.receipts:
            assert parse_receipt(one.text()) == one and one.vouched and one.head_signed_by(MINE.public)
            assert not one.head_signed_by(OTHERS.public)


class TestModel:
    def test_a_later_charge_does_not_hide_one_that_understates(self, tmp_path: Path) -> None:
        made = Platform(tmp_path)
        made.answer(1, replace(TRAIN, noise_multiplier=9.0))
        for round_ in (1, 2, 3):
            made.answer(round_)
        report = self.against(made.close())
        assert report.verdict is AuditVerdict.UNSOUND and "round 1 understates its mechanism" in report.problems[0]

    def test_a_sum_that_is_released_once_understates_its_noise(self, platform: Platform) -> None:
        assert self.against(platform, once={ReleaseKind.POPULARITY: 6.0, ReleaseKind.TASTE: 0.1}).verdict is AuditVerdict.SOUND
        report = self.against(platform, once={ReleaseKind.POPULARITY: 5.9})
        assert report.verdict is AuditVerdict.UNSOUND
        assert "round 0 understates its mechanism: noise multiplier of popularity 6, the model says 5.9" in report.problems[0]

    CLAIM = MechanismClaim(platform="shop", run="spring", rounds=3, steps=4, sample_rate=0.1, noise_multiplier=4.0)

    def against(self, platform: Platform, **changes: Any) -> AuditReport:
        claims = (replace(self.CLAIM, **changes),)
        found = evidence_of(platform.receipts, platform.path.parent)
        return audited(platform, found.plus(LedgerEvidence(claims=claims)))

    def test_a_mechanism_that_the_charges_pay_for(self, platform: Platform) -> None:
        assert self.against(platform).verdict is AuditVerdict.SOUND
        assert self.against(platform, noise_multiplier=None, rounds=2).verdict is AuditVerdict.SOUND

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"noise_multiplier": 2.0}, "understates its mechanism: noise multiplier 4"),
            ({"sample_rate": 0.2}, "understates its mechanism: 4 steps at sample rate 0.1"),
            ({"steps": 8}, "understates its mechanism: 4 steps"),
            ({"rounds": 4}, "releases without a charge"),
        ],
    )
    def test_a_charge_that_understates_its_mechanism(self, platform: Platform, change: dict[str, Any], words: str) -> None:
        report = self.against(platform, **change)
        assert report.verdict is AuditVerdict.UNSOUND and any(words in problem for problem in report.problems)


class TestEarlierVersions:
    def begun(self, path: Path, version: int, count: int = 2) -> None:
        previous, line = seal_line(Header(version=version, platform="shop", budget=8.0, delta=1e-5, created=TIME))
        lines = [line]
        for seq in range(1, count + 1):
            spent = DP_ACCOUNTING.epsilon([TRAIN] * seq, 1e-5)
            previous, line = seal_line(
                entry_of(
                    TRAIN,
                    seq=seq,
                    time=TIME,
                    run="old",
                    round=seq,
                    epsilon=spent.epsilon,
                    delta=1e-5,
                    accountant=spent.accountant,
                    previous=previous,
                    **({"question": "5" * 64} if version > 1 else {}),
                )
            )
            lines.append(line)
        path.write_bytes(b"".join(lines))
        path.chmod(0o600)

    @pytest.mark.parametrize("version", [1, 2])
    def test_they_are_read_and_what_they_lack_is_said(self, tmp_path: Path, version: int) -> None:
        path = tmp_path / "shop.jsonl"
        self.begun(path, version)
        report = audit_ledgers([path], name="test", evidence=heads_evidence([read_ledger(path).head]))
        (one,) = report.platforms
        assert report.verdict is AuditVerdict.SOUND and one.lacks == (one.lacks[0],) and f"version {version}" in one.lacks[0]

    @pytest.mark.parametrize("version", [1, 2])
    def test_they_go_on_signed(self, tmp_path: Path, version: int) -> None:
        path = tmp_path / "shop.jsonl"
        self.begun(path, version)
        made = Platform(tmp_path)
        assert made.writer.left and made.writer.record_release(
            "a" * 64, charge=made.writer.ledger.entries[0].hash, run="old", round=1
        )
        made.answer(1)
        made.close()
        assert isinstance(read_ledger(path).lines[2], IdentityRecord) and len(made.lines) == 6
        report = audited(made)
        assert report.verdict is AuditVerdict.SOUND and report.platforms[0].unreleased == 0
        Platform(tmp_path).close()  # and no second time
        assert len(made.lines) == 6
        with pytest.raises(PrivacyError, match="belongs to the identity"):
            Platform(tmp_path, identity=OTHERS)

    def test_a_signed_ledger_has_no_unsigned_line(self, platform: Platform) -> None:
        ledger = read_ledger(platform.path)
        last = replace(ledger.lines[-1], signature="", hash="")
        platform.path.write_bytes(b"".join([*platform.lines[:-1], seal_line(last)[1]]))
        report = audited(platform, LedgerEvidence())
        assert report.verdict is AuditVerdict.UNSOUND and "not signed" in report.problems[0]

    def test_a_later_version_and_a_later_kind_cannot_be_judged(self, platform: Platform, tmp_path: Path) -> None:
        for old, new in ((b'"version":3', b'"version":4'), (b'"kind":"popularity"', b'"kind":"horoscope"')):
            lines = [line.replace(old, new) for line in platform.lines]
            at = next(number for number, line in enumerate(lines) if new in line)
            values = json.loads(lines[at])
            values.pop("hash")
            import hashlib

            from shared.ledger.chained_line import canonical_json

            values["hash"] = hashlib.sha256(canonical_json(values)).hexdigest()
            lines[at] = canonical_json(values) + b"\n"
            path = tmp_path / "later.jsonl"
            path.write_bytes(b"".join(lines))
            report = audit_ledgers([path], name="test", evidence=LedgerEvidence())
            assert report.verdict is AuditVerdict.UNKNOWN and report.ok


class TestWrongInput:
    @pytest.mark.parametrize("content", [b"", b"x", b"\0" * 5000, b"{}\n", b"[]\n", b"\n\n", b"x" * 10_000, b'{"version":3}\n'])
    def test_no_ledger_cannot_be_judged(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "shop.jsonl"
        path.write_bytes(content)
        report = audit_ledgers([path], name="test", evidence=LedgerEvidence())
        assert report.verdict is not AuditVerdict.SOUND and json.loads(report.to_json())["verdict"] == str(report.verdict)

    def test_a_file_of_10_gigabytes(self, platform: Platform) -> None:
        with platform.path.open("r+b") as file:
            file.truncate(10 << 30)  # a hole: zeros that take no space
        report = audited(platform)
        assert report.verdict is not AuditVerdict.SOUND

    def test_the_middle_of_a_line_cannot_be_judged(self, platform: Platform) -> None:
        platform.path.write_bytes(platform.path.read_bytes()[:-9])
        assert audited(platform).verdict is AuditVerdict.UNKNOWN


def test_accountants_out_of_their_order_are_an_error() -> None:
    def spent(epsilon: float, *, tight: bool = True) -> Spent:
        return Spent(epsilon=epsilon, accountant=Method.OPACUS_PRV, tight=tight)

    assert not list(order_problems(spent(1.1, tight=False), spent(1.0), spent(1.005)))
    assert list(order_problems(spent(1.1, tight=False), spent(1.0), spent(0.9)))
    assert list(order_problems(spent(1.1, tight=False), spent(1.2), spent(1.2)))
    assert list(order_problems(spent(0.9, tight=False), spent(0.9), spent(1.0)))


def test_memory_does_not_grow_with_the_ledger(tmp_path: Path) -> None:
    import tracemalloc

    def peak(charges: int) -> int:
        path = tmp_path / f"{charges}.jsonl"
        _long(path, charges)
        tracemalloc.start()
        summary = summarise_ledger(path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert summary.charged == charges
        return found

    peak(2)
    assert peak(4000) < peak(1500) + 100_000


def _long(path: Path, charges: int) -> None:
    key = b64encode(MINE.public).decode()
    previous, line = seal_line(sign_line(Header(platform="shop", budget=8.0, delta=1e-5, created=TIME, identity=key), MINE))
    with path.open("wb") as file:
        file.write(line)
        for seq in range(1, charges + 1):
            entry = entry_of(
                TRAIN,
                seq=seq,
                time=TIME,
                run="spring",
                round=seq,
                epsilon=1.0,
                delta=1e-5,
                accountant=Method.OPACUS_RDP,
                previous=previous,
                question="5" * 64,
            )
            previous, line = seal_line(sign_line(entry, MINE))
            file.write(line)


def _file(platform: Platform) -> Path:
    evidence_of(platform.receipts, platform.path.parent)
    return platform.path.parent / "receipts.jsonl"
