"""Order and strength: when something was, what an event counts for, and what a person reads of both."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from client.sources.cell_values import as_numbers, as_times
from client.sources.platform_tables import require_usable
from client.sources.tables import UNTIMED
from shared.base.errors import InputError
from tests.client.sources.one_log import read, report

MOMENT = 1_538_388_551  # 2018-10-01 10:09:11 UTC
DAY = 1_538_352_000


@pytest.mark.parametrize(
    "text, time_format, seconds",
    [
        (f"{MOMENT}", None, MOMENT),
        (f"{MOMENT}.75", None, MOMENT),
        (f"{MOMENT}123", None, MOMENT),
        (f"{MOMENT}123456", None, MOMENT),
        (f"{MOMENT}123456789", None, MOMENT),
        ("20181001", None, DAY),
        ("20181001.0", None, DAY),
        ("20181001100911", None, MOMENT),
        ("201810011009", None, MOMENT - 11),
        ("2018-10-01", None, DAY),
        ("2018/10/01 10:09:11", None, MOMENT),
        ("2018-10-01 10:09:11 UTC", None, MOMENT),
        ("2018-10-01T10:09:11Z", None, MOMENT),
        ("2018-10-01T12:09:11.5+02:00", None, MOMENT),
        ("2018-10-01 12:09:11 +0200", None, MOMENT),
        ("2018-10-01 12:09:11+02", None, MOMENT),
        ("2018-10-01T10:09", None, MOMENT - 11),
        ("2018-10-01 10:09:11,250", None, MOMENT),
        ("20181001T100911Z", None, MOMENT),
        ("01.10.2018 10:09:11", None, MOMENT),
        ("Oct 1, 2018", None, DAY),
        ("Mon Oct 01 10:09:11 +0000 2018", None, MOMENT),
        ("Mon, 01 Oct 2018 10:09:11 GMT", None, MOMENT),
        ("01/10/2018", None, None),  # of a day and a month nobody knows which is which
        ("01/10/2018", "%d/%m/%Y", DAY),
        ("2018-10", "%Y-%m", DAY),
        ("2018", "%Y", 1_514_764_800),
        ("43374.4230439815", "excel", MOMENT),
        ("20181001", "unix", 20_181_001),
        (f"{MOMENT}123", "unix-ms", MOMENT),
        (f"{MOMENT}123456", "unix-us", MOMENT),
        ("20189999", None, 20_189_999),
        ("99999999999999999999", None, None),
    ],
)
def test_a_time_is_read_as_it_is_written(text: str, time_format: str | None, seconds: int | None) -> None:
    # Beside others, whatever they are.
    others = ["soon", "1000", "2001-01-01", None, "43374"]
    assert as_times(pl.Series([text, *others]), time_format).to_list()[0] == seconds
    assert as_times(pl.Series([*others, text]), time_format).to_list()[-1] == seconds


def test_one_row_without_a_time_takes_nobodys_time(tmp_path: Path) -> None:
    rows = [f"{user},i{9 - at},2024-01-0{9 - at}" for user in range(20) for at in range(6)]
    (tmp_path / "wish.csv").write_text("user,item\n1,wished\n", encoding="utf-8")
    tables = read(tmp_path, "user,item,time\n" + "\n".join(rows), {"kind": "interactions", "path": "wish.csv"})
    log = tables.interactions
    assert log.time is not None
    for at, user in enumerate(tables.user_ids):
        met = [tables.item_ids[item] for item in log.item[log.offsets[at] : log.offsets[at + 1]]]
        assert met == [*(["wished"] if user == "1" else []), "i4", "i5", "i6", "i7", "i8", "i9"]
    assert (log.time == UNTIMED).sum() == 1
    assert report(tables).times == (1_704_326_400, 1_704_758_400) and report(tables, "other").times is None


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_part_file_without_times_takes_no_other_rows_times(suffix: str, order: list[str], tmp_path: Path) -> None:
    """The times of all rows were left aside, without a word, where one of several files had no such column."""
    old = pl.DataFrame({"user": ["u", "u"], "item": ["i8", "i9"]})
    new = pl.DataFrame({"user": ["u", "u"], "item": ["i1", "i2"], "time": ["2024-02-02", "2024-02-01"]})
    for name, frame in (("a", old), ("b", new)):
        (frame.write_csv if suffix == "csv" else frame.write_parquet)(tmp_path / f"{name}.{suffix}")
    tables = read(tmp_path, "", path=[f"{name}.{suffix}" for name in order])
    assert [tables.item_ids[item] for item in tables.interactions.item] == ["i8", "i9", "i2", "i1"]
    report = tables.reports[0]
    assert report.times == (1_706_745_600, 1_706_832_000)
    assert f"a.{suffix}" in report.warnings[0] and "1 of 2 files have no column for 'time'" in report.warnings[0]


def test_a_row_without_a_time_stays_and_is_before_the_others(tmp_path: Path) -> None:
    tables = read(tmp_path, "user,item,time\nu,i1,2024-02-02\nu,i2,\nu,i3,2024-02-01\n")
    assert [tables.item_ids[item] for item in tables.interactions.item] == ["i2", "i3", "i1"]
    assert tables.reports[0].dropped[0].reason == "missing time (row kept, before those with one)"


@pytest.mark.parametrize("name", ["timestamp", "Date", "created_at"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_times_under_another_name_are_spoken_of(name: str, form: str, tmp_path: Path) -> None:
    if form == "csv":
        tables = read(tmp_path, f"user,item,{name}\n1,a,5\n2,b,6\n")
        assert tables.interactions.time is None
        (warning,) = report(tables).warnings
        assert f'columns = {{ time = "{name}" }}' in warning
        assert report(read(tmp_path, f"user,item,{name}\n1,a,{MOMENT}\n", columns={"time": name})).warnings == ()
    else:
        (tmp_path / "log.jsonl").write_text(json.dumps({"user": 1, "item": "a", name: 5}) + "\n", encoding="utf-8")
        assert any(name in drop.reason for drop in report(read(tmp_path, "", path="log.jsonl")).dropped)


@pytest.mark.parametrize(
    "cells, cure", [(["2017", "2018"], '"%Y"'), (["43374", "43375.5"], '"excel"'), (["5", "100000"], "unix-ms")]
)
def test_times_before_1990_are_a_warning_with_the_cure(cells: list[str], cure: str, tmp_path: Path) -> None:
    tables = read(tmp_path, "user,item,time\n" + "".join(f"{at},a,{cell}\n" for at, cell in enumerate(cells)))
    (warning,) = report(tables).warnings
    assert "before 1990" in warning and f"time_format = {cure}" in warning if cure != "unix-ms" else cure in warning
    assert report(read(tmp_path, f"user,item,time\n1,a,{MOMENT}\n")).warnings == ()


WRITTEN = [
    (["03/04/2021", "13/02/2021"], ["%d/%m/%Y"]),
    (["03/04/2021", "2/13/2021"], ["%m/%d/%Y"]),
    (["03/04/2021", "05/06/2021"], ["%d/%m/%Y", "%m/%d/%Y"]),
    (["1/4/2021 3:04 PM", "13/4/2021 11:00 AM"], ["%d/%m/%Y %I:%M %p"]),
    (["11/11/2019 9:05:58 AM", "11/14/2019 7:01:48 PM"], ["%m/%d/%Y %I:%M:%S %p"]),
    (["13-02-2021 10:11:12", "01-02-2021 10:11:12"], ["%d-%m-%Y %H:%M:%S"]),
    (["02/13/2021, 10:11", "02/01/2021, 10:11"], ["%m/%d/%Y, %H:%M"]),
    (["31.12.21 08:00", "01.12.21 09:00"], ["%d.%m.%y %H:%M"]),
    (["2021-13-02", "2021-14-02"], ["%Y-%d-%m"]),
    (["99/12/31", "98/01/02"], ["%y/%m/%d"]),
    (["13/02/2021 10:00:00.5 +0200", "01/02/2021 10:00:00.25 +0200"], ["%d/%m/%Y %H:%M:%S%.f %z"]),
]


@pytest.mark.parametrize("cells, formats", WRITTEN)
def test_times_that_cannot_be_read_name_the_line_to_add(cells: list[str], formats: list[str], tmp_path: Path) -> None:
    text = "user,item,time\n" + "".join(f'1,i{at},"{cell}"\n' for at, cell in enumerate(cells))
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert re.findall('time_format = "([^"]*)"', error.value.do) == formats
    assert ("do not tell which" in error.value.do) == (len(formats) > 1)
    tables = read(tmp_path, text, time_format=formats[0])
    assert report(tables).kept == len(cells) and not report(tables).warnings


def test_a_format_that_is_no_cure_is_not_named(tmp_path: Path) -> None:
    slashes = "".join(f"1,i{day},{day:02}/02/2021\n" for day in range(1, 20))
    dashes = "".join(f"2,i{day},2021-02-{day:02}\n" for day in range(1, 25))
    # Most are read as they are, and would not be with the format of the others.
    (warning,) = report(read(tmp_path, "user,item,time\n" + slashes + dashes)).warnings
    assert '%d/%m/%Y"' not in warning and "time_format" in warning
    (warning,) = report(read(tmp_path, "user,item,time\n" + 2 * slashes + dashes)).warnings
    assert 'time_format = "%d/%m/%Y", which reads 38 of 62' in warning
    # A format that was declared and reads half of them is answered with the one that reads all.
    (warning,) = report(read(tmp_path, "user,item,time\n" + slashes, time_format="%m/%d/%Y")).warnings
    assert 'add to the source: time_format = "%d/%m/%Y"' in warning


def test_every_event_has_its_count_and_weight(tmp_path: Path) -> None:
    rows = "1,a,BUY\n1,b,buy\n2,a,View\n2,b,wishlist\n3,a,wishlist\n3,b,hide\n"
    tables = read(tmp_path, "user,item,event\n" + rows, events={"buy": 1.0, "view": 0.2, "hide": 0.0})
    assert [(one.event, one.rows, one.weight) for one in report(tables).events] == [
        ("wishlist", 2, None),
        ("BUY", 1, 1.0),
        ("View", 1, 0.2),
        ("buy", 1, 1.0),
        ("hide", 1, 0.0),
    ]
    assert int(tables.interactions.positive.sum()) == 3
    (warning,) = report(tables).warnings
    assert "'wishlist' (2 rows)" in warning and 'events = { "wishlist" = 1.0 }' in warning


def test_events_that_differ_in_capitals_alone_stay_apart_where_both_are_declared(tmp_path: Path) -> None:
    tables = read(tmp_path, "user,item,event\n1,a,BUY\n2,a,buy\n3,a,Buy\n", events={"buy": 1.0, "BUY": 0.5})
    assert [(one.event, one.weight) for one in report(tables).events] == [("BUY", 0.5), ("Buy", None), ("buy", 1.0)]


def test_a_decimal_comma(tmp_path: Path) -> None:
    assert as_numbers(pl.Series(["4,5", "4.5", "1,234", "-0,25", "True", "FALSE"])).to_list() == [4.5, 4.5, None, -0.25, 1.0, 0.0]
    commas = pl.Series(["4,5", "4.5", "1,234", "1.234.567,8", "7"])
    assert as_numbers(commas, decimal=",").to_list() == [4.5, 4.5, 1.234, 1234567.8, 7.0]
    text = 'user,item,value\n1,a,"4,125"\n2,a,"2,5"\n'
    assert read(tmp_path, text, threshold=4.0, decimal=",").interactions.positive.tolist() == [True, False]
    assert "decimal = ','" in report(read(tmp_path, text, threshold=2.0)).warnings[0]


def test_events_without_any_weights_are_spoken_of(tmp_path: Path) -> None:
    """A refund counted as a purchase does, without a word."""
    text = "user,item,what\n1,a,buy\n1,b,refund\n2,a,buy\n2,b,\n"
    tables = read(tmp_path, text, columns={"event": "what"})
    assert len(tables.interactions.item) == 4 and tables.interactions.positive.all()
    (warning,) = report(tables).warnings
    assert "'buy' (2 rows), 'refund' (1 rows)" in warning and 'events = { "buy" = 1.0, "refund" = 1.0 }' in warning
    assert report(read(tmp_path, text.replace("what", "event"))).warnings == report(tables).warnings
    # Of a log of views alone there is nothing to weigh, and an id for each row is no kind of event.
    assert report(read(tmp_path, "user,item,event\n1,a,view\n2,b,view\n")).warnings == ()
    ids = "".join(f"1,i{number},e{number}\n" for number in range(60))
    assert report(read(tmp_path, "user,item,event\n" + ids)).warnings == ()


def test_values_without_a_threshold_are_spoken_of(tmp_path: Path) -> None:
    text = "user,item,stars\n1,a,1\n1,b,5\n"
    (warning,) = report(read(tmp_path, text, columns={"value": "stars"})).warnings
    assert "threshold = NUMBER" in warning
    assert report(read(tmp_path, text, columns={"value": "stars"}, threshold=4.0)).warnings == ()


def test_where_no_event_has_a_weight_the_events_that_there_are_are_named(tmp_path: Path) -> None:
    tables = read(tmp_path, "user,item,event\n1,a,BUY\n1,b,view\n", events={"purchase": 1.0})
    with pytest.raises(InputError, match="no user has a positive") as error:
        require_usable(tables, where="p.toml")
    assert "'BUY' (1 rows), 'view' (1 rows)" in error.value.do


@pytest.mark.parametrize(
    "text, cure",
    [
        ('user,item\n1,"101, 102"\n', "refuse_lists = false"),
        ('user,item\n1,"101, 102"\n', "item: explode = true"),
        ('user,item\n"1,001",a\n', "user: [ids] refuse_lists = false"),
        ('user,item\n"1,001",a\n', "without commas between thousands"),
        ("user,item\n1.79E+18,a\n", "as integers or as text"),
    ],
)
def test_what_is_no_id_is_answered_with_its_own_cure(text: str, cure: str, tmp_path: Path) -> None:
    """That a user's id may be exploded was said, too, which no source can."""
    with pytest.raises(InputError, match="none of the 1 rows") as error:
        read(tmp_path, text)
    assert cure in error.value.do and "separator" not in error.value.do
    assert ("explode" in error.value.do) == ("101" in text)


def test_values_that_are_no_numbers_are_answered_by_what_they_are(tmp_path: Path) -> None:
    for values, cure in ((["1.234,5", "2,25"], "decimal = ','"), (["4/5", "good"], "export them as numbers")):
        rows = "".join(f'1,i{at},"{value}"\n' for at, value in enumerate([*values, "3"]))
        (warning,) = report(read(tmp_path, "user,item,value\n" + rows, threshold=1.0)).warnings
        assert cure in warning and ("decimal" in warning) == ("decimal" in cure)


def test_a_zero_date_is_no_time(tmp_path: Path) -> None:
    """As MySQL writes it: the row stays."""
    rows = "1,a,0000-00-00 00:00:00\n1,b,2021-01-01\n1,c,0000-00-00\n"
    assert report(read(tmp_path, "user,item,time\n" + rows)).kept == 3


def test_ids_that_are_spelled_otherwise_than_the_catalogues_are_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,title\nB1,one\nB2,two\n")
    with pytest.raises(InputError, match="item not in the catalogue") as error:
        read(tmp_path, "user,item\n1,1\n1,2\n", {"kind": "items", "path": "items.csv"})
    assert "spelled like 'B1'" in error.value.do
