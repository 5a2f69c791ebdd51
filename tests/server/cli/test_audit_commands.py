"""`fedfuse audit` and `fedfuse ledger` on what nobody should give them: a verdict and an exit code, and no traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.privacy.ledger_writer import LedgerWriter
from fedfuse import app
from shared.ledger.format import Header, seal_line, sign_line
from shared.ledger.reading import read_ledger
from shared.ledger.receipts import LedgerReceipt, sign_head
from shared.privacy.accountants import DP_ACCOUNTING
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.identity import Identity

MINE, OTHERS = Identity(b"i" * 32), Identity(b"j" * 32)
TRAIN = Release(kind=ReleaseKind.TRAIN, noise_multiplier=4.0, sample_rate=0.1, steps=4)
HUGE = 10 << 30
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """A command, its exit code and what it says."""

    def run(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        return result.exit_code, " ".join(result.output.split())

    return run


def written(path: Path, *, run: str = "spring", identity: Identity = MINE, platform: str = "shop") -> Path:
    """A ledger of three answers, and the receipts for them beside it."""
    receipts = []
    with LedgerWriter.open(
        path, platform=platform, budget=8.0, delta=1e-5, identity=identity, accountant=DP_ACCOUNTING
    ) as writer:
        for round_ in (1, 2, 3):
            charge = writer.charge(TRAIN, run=run, round=round_, question=f"{round_:064x}")
            head = writer.record_release(f"{round_ + 99:064x}", charge=charge.hash, run=run, round=round_)
            receipts.append(
                LedgerReceipt(
                    platform=platform,
                    run=run,
                    round=round_,
                    kind="update",
                    left=f"{round_ + 99:064x}",
                    ledger=head,
                    head_signature=sign_head(identity, head),
                )
            )
    receipts_of(path).write_text("".join(one.text() + "\n" for one in receipts))
    return path


def receipts_of(path: Path) -> Path:
    return path.with_suffix(".receipts")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return written(tmp_path / "shop.jsonl")


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def everywhere(call: Call, path: Path, codes: Sequence[int], out: Path) -> None:
    """Every command on that ledger, in words and as JSON."""
    commands: list[list[object]] = [
        ["audit", path],
        ["audit", path, "--receipts", receipts_of(path)],
        ["audit", path, "--curve", "--plan", "--group", "2"],
        ["ledger", "show", path],
        ["ledger", "verify", path],
        ["ledger", "verify", path, "--every"],
        ["report", path, "--out", out],
    ]
    for command in commands:
        for more in ([], ["--json"]):
            code, text = call(*command, *more)
            assert code in codes and text, (command, code, text)
    code, text = call("ledger", "export", path, "--out", out / "copy.jsonl")
    assert code in (0, *codes) and text, (code, text)
    # What is done with a ledger makes nothing of whether its lines hold.
    lines_hold = [call("ledger", *command)[0] for command in (["verify", path], ["show", path])]
    assert len(set(lines_hold)) == 1 and (code in lines_hold or code == 0), (lines_hold, code)


def test_a_sound_ledger(shop: Path, call: Call, tmp_path: Path) -> None:
    assert call("audit", shop, "--receipts", receipts_of(shop))[0] == 0
    for more in ([], ["--every"]):
        code, text = call("ledger", "verify", shop, *more)
        assert code == 0 and "6 lines, 6 of them signed" in text
        # The word "sound" alone would be read as the audit's.
        assert "whole in itself" in text and "a removed tail would not be seen" in text
    assert call("ledger", "export", shop, "--out", tmp_path / "copy.jsonl")[0] == 0
    assert (tmp_path / "copy.jsonl").read_bytes() == shop.read_bytes() and (
        tmp_path / "copy.jsonl"
    ).stat().st_mode & 0o777 == 0o600
    code, text = call("ledger", "export", shop, "--out", tmp_path / "copy.jsonl")
    assert code == 2 and "is there already" in text


def test_an_export_for_machines(shop: Path, call: Call, tmp_path: Path) -> None:
    code, text = call("ledger", "export", shop, "--out", tmp_path / "copy.jsonl", "--json")
    shown = json.loads(call("ledger", "show", tmp_path / "copy.jsonl", "--json")[1])
    assert code == 0
    assert json.loads(text) == {
        "copy": str(tmp_path / "copy.jsonl"),
        **{name: shown[name] for name in ("platform", "lines", "head")},
    }
    shop.write_bytes(shop.read_bytes().replace(b'"round":2', b'"round":7'))
    code, text = call("ledger", "export", shop, "--out", tmp_path / "other.jsonl", "--json")
    assert (code, json.loads(text)["verdict"]) == (1, "unsound") and not (tmp_path / "other.jsonl").exists()


def test_an_export_leaves_out_the_line_that_is_being_written(shop: Path, call: Call, tmp_path: Path) -> None:
    whole = shop.read_bytes()
    shop.write_bytes(whole + b'{"charge":"')
    assert call("ledger", "export", shop, "--out", tmp_path / "copy.jsonl")[0] == 0
    assert (tmp_path / "copy.jsonl").read_bytes() == whole
    shop.write_bytes(whole.replace(b'"round":2', b'"round":7'))
    assert call("ledger", "export", shop, "--out", tmp_path / "other.jsonl")[0] == 1 and not (tmp_path / "other.jsonl").exists()
    shop.write_bytes(whole.replace(b'"round":2', b'"round":NaN'))
    assert call("ledger", "export", shop, "--out", tmp_path / "other.jsonl")[0] == 1 and not (tmp_path / "other.jsonl").exists()
    shop.write_bytes(whole)
    assert call("ledger", "export", shop, "--out", tmp_path / "shop.jsonl" / "other.jsonl")[0] == 2


@pytest.mark.parametrize("kept", [1, 3, 6, 7])
def test_an_older_copy_beside_its_ledger_is_no_second_ledger(shop: Path, call: Call, tmp_path: Path, kept: int) -> None:
    copy, link = tmp_path / "copy.jsonl", tmp_path / "link.jsonl"
    copy.write_bytes(b"".join(lines(shop)[:kept]))
    link.symlink_to(shop)
    for paths in ([shop, copy], [copy, shop], [shop, shop], [shop, link], [copy, shop, copy, link]):
        code, text = call("audit", *paths, "--receipts", receipts_of(shop), "--json")
        values = json.loads(text)
        assert code == 0 and len(values["platforms"]) == 1 and values["platforms"][0]["lines"] == 6, (paths, text)
        assert call("report", *paths, "--receipts", receipts_of(shop), "--out", tmp_path / "out")[0] == 0
    # One that went on by itself is a second one, and so is one in which a byte differs.
    with LedgerWriter.open(copy, platform="shop", budget=8.0, delta=1e-5, identity=MINE, accountant=DP_ACCOUNTING) as writer:
        writer.charge(TRAIN, run="winter", round=9, question="0" * 64)
    code, text = call("audit", shop, copy, "--receipts", receipts_of(shop))
    assert code == (0 if kept == 7 else 1), text
    copy.write_bytes(b"".join(lines(shop)[:kept]).replace(b"2", b"3", 1))
    assert call("audit", shop, copy, "--receipts", receipts_of(shop))[0] == 1


def test_the_middle_of_a_line(shop: Path, call: Call, tmp_path: Path) -> None:
    shop.write_bytes(shop.read_bytes()[:-9])
    everywhere(call, shop, [2], tmp_path / "out")


def test_an_end_that_is_missing(shop: Path, call: Call) -> None:
    shop.write_bytes(b"".join(lines(shop)[:-2]))
    assert call("audit", shop)[0] == 2
    code, text = call("audit", shop, "--receipts", receipts_of(shop))
    assert code == 1 and "cut or rewritten" in text


def test_a_foreign_key(shop: Path, call: Call, tmp_path: Path) -> None:
    """Somebody else's ledger under the platform's name, and lines that somebody else signed in the platform's own."""
    other = written(tmp_path / "theirs.jsonl", identity=OTHERS)
    code, text = call("audit", other, "--receipts", receipts_of(shop))
    assert code == 1 and "its platform signed that head" not in text and "cut or rewritten" in text
    key = read_ledger(shop).header.identity
    forged = sign_line(replace(read_ledger(other).header, identity=key, signature="", hash=""), OTHERS)
    shop.write_bytes(seal_line(forged)[1])
    for command in (["audit", shop], ["ledger", "verify", shop], ["ledger", "verify", shop, "--every"]):
        code, text = call(*command)
        assert code == 1 and "not signed by the ledger's platform" in text


def test_another_version(shop: Path, call: Call, tmp_path: Path) -> None:
    header = read_ledger(shop).header
    later = Header(version=99, platform="shop", budget=8.0, delta=1e-5, created=header.created, identity=header.identity)
    shop.write_bytes(seal_line(sign_line(later, MINE))[1] + b"".join(lines(shop)[1:]))
    everywhere(call, shop, [2], tmp_path / "out")
    assert "ledger version 99" in call("audit", shop)[1]


def test_runs_that_are_mixed_up(shop: Path, call: Call, tmp_path: Path) -> None:
    other = written(tmp_path / "autumn.jsonl", run="autumn", platform="video")
    shop.write_bytes(b"".join([*lines(shop)[:5], *lines(other)[5:]]))
    everywhere(call, shop, [1, 2], tmp_path / "out")
    assert call("audit", shop)[0] == 1 and "the chain is broken" in call("audit", shop)[1]
    # Receipts of another run bear nothing out, and receipts of another platform say nothing.
    whole = written(tmp_path / "whole" / "whole.jsonl")
    assert call("audit", whole, "--receipts", receipts_of(other))[0] == 2
    third = written(tmp_path / "third" / "third.jsonl", run="winter")
    code, text = call("audit", whole, "--receipts", receipts_of(third))
    assert code == 1 and "its platform signed that head" in text
    # Whoever mixes up two ledgers of one name reads that, and not only that something was cut.
    fourth = written(tmp_path / "fourth" / "fourth.jsonl", run="winter", identity=OTHERS)
    code, text = call("audit", whole, "--receipts", receipts_of(fourth))
    assert code == 1 and "the receipt is of another ledger of that name" in text


def test_a_file_of_10_gigabytes(shop: Path, call: Call, tmp_path: Path) -> None:
    """Holes take no space on the disk; whoever read it all would need the memory."""
    for at, codes in ((0, [2]), (shop.stat().st_size, [1, 2])):
        huge = tmp_path / f"{at}.jsonl"
        huge.write_bytes(shop.read_bytes()[:at])
        os.truncate(huge, HUGE)
        receipts_of(huge).write_text(receipts_of(shop).read_text())
        everywhere(call, huge, codes, tmp_path / "out")
    os.truncate(receipts_of(shop), HUGE)
    assert call("audit", shop, "--receipts", receipts_of(shop))[0] == 2
    assert call("audit", shop, "--trust", huge)[0] == 2 and call("audit", shop, "--coordinator", huge)[0] == 2


@pytest.mark.parametrize("name", ["metrics.json", "receipts.jsonl"])
def test_a_run_whose_own_files_have_10_gigabytes(call: Call, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / "ledger").mkdir(parents=True)
    written(tmp_path / "run" / "ledger" / "shop.jsonl")
    (tmp_path / "run" / name).write_bytes(b"")
    os.truncate(tmp_path / "run" / name, HUGE)
    for command in ("audit", "report"):
        assert call(command, tmp_path / "run")[0] == 2


@pytest.mark.parametrize("name", ["training.json", "run.json", "state.json", "events.jsonl", "run.toml", "attack.json"])
def test_a_file_of_10_gigabytes_beside_the_ledgers_is_a_gap(call: Call, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    (run / "ledger").mkdir(parents=True)
    written(run / "ledger" / "shop.jsonl")
    receipts_of(run / "ledger" / "shop.jsonl").rename(run / "receipts.jsonl")
    file = run / "model" / name if name in ("training.json", "run.json") else run / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"")
    os.truncate(file, HUGE)
    assert call("report", run)[0] == 0
    assert call("audit", run, "--model", run)[0] == 2


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "deep", "not UTF-8", "empty"])
def test_what_lies_beside_the_ledgers_is_anything(call: Call, tmp_path: Path, kind: str) -> None:
    """A verdict, whatever is in the place of a file that a folder from elsewhere should have."""
    names = ["metrics.json", "receipts.jsonl", "state.json", "events.jsonl", "run.toml", "attack.json"]
    for number, name in enumerate([*names, "model/manifest.json", "model/training.json", "model/run.json"]):
        run = tmp_path / str(number)
        (run / "ledger").mkdir(parents=True)
        (run / "model").mkdir()
        written(run / "ledger" / "shop.jsonl")
        file = run / name
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "folder":
            file.mkdir()
        elif kind == "loop":
            file.symlink_to(file)
        else:
            file.write_bytes(
                {"deep": b"[" * 100_000 + b"]" * 100_000 + b"\n", "not UTF-8": b'{"a": "\xff\xfe"}\n', "empty": b""}[kind]
            )
        for command in (["audit"], ["report"], ["audit", "--model", run], ["report", "--model", run]):
            code, text = call(*command, run)
            assert code == 2 and "cannot tell" in text, (name, command, text)


@pytest.mark.parametrize("kind", ["long", "closed"])
def test_a_path_that_cannot_even_be_asked_for(
    shop: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = tmp_path / ("x" * 300 if kind == "long" else "closed") / "shop.jsonl"
    if kind == "closed":  # root may open everything, so the refusal is made up
        asked = Path.stat

        def refused(self: Path, **options: bool) -> os.stat_result:
            if "closed" in self.parts:
                raise PermissionError(13, "Permission denied", str(self))
            return asked(self, **options)

        monkeypatch.setattr(Path, "stat", refused)
    for command in (
        *(["audit", place], ["report", place], ["audit", "attack", place]),
        *(["ledger", "show", place], ["ledger", "verify", place], ["ledger", "export", place, "--out", tmp_path / "copy"]),
        *(["audit", shop, option, place] for option in ("--receipts", "--model", "--trust", "--coordinator")),
        ["report", shop, "--attack", place],
    ):
        for more in ([], ["--json"]):
            code, text = call(*command, *more)
            assert code == 2 and "cannot tell" in text, (command, text)
            assert not more or json.loads(text)["verdict"] == "cannot tell"


def test_what_is_no_file(shop: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "run" / "ledger" / "shop.jsonl").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "run", tmp_path / "pipe", Path("/dev/zero"), tmp_path / "nothing", tmp_path):
        for command in (["audit"], ["ledger", "show"], ["ledger", "verify"], ["report"]):
            code, text = call(*command, place)
            assert code == 2 and "cannot tell" in text, (command, place, text)
    assert call("audit", shop, "--receipts", tmp_path / "run")[0] == 2


def test_what_was_asked_besides_takes_no_verdict_back(shop: Path, call: Call) -> None:
    changed = shop.read_bytes().replace(b'"round":2', b'"round":7')
    assert call("audit", shop, "--receipts", receipts_of(shop), "--person", "nobody")[0] == 2
    shop.write_bytes(changed)
    for more in (["--curve"], ["--person", "shop"], ["--plan", "--json"]):
        code, text = call("audit", shop, *more)
        assert code == 1 and "altered" in text


def test_json_is_json(shop: Path, call: Call) -> None:
    code, text = call("audit", shop, "--json", "--curve")
    values = json.loads(text)
    assert code == 2 and values["verdict"] == "cannot tell" and len(values["what_if"]["curve"]) >= 5
    assert "summaries" not in values
