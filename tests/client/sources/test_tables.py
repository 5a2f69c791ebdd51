"""What each kind of source becomes in the tables."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.config.platform_file import load
from client.sources.platform_tables import read_tables
from client.sources.tables import UNTIMED, Notes, Tables
from shared.base.errors import InputError

LOG = "user,item\nann,1\nann,2\nbob,3\nbob,1\n"


def read(folder: Path, files: dict[str, str | bytes], sources: dict[str, dict[str, Any]]) -> Tables:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if not any(source["kind"] == "interactions" for source in sources.values()):
        (folder / "log.csv").write_text(LOG, encoding="utf-8")
        sources = {**sources, "log": {"kind": "interactions", "path": "log.csv"}}
    path = folder / "platform.toml"
    path.write_text(tomli_w.dumps({"name": "p", "users": 2, "privacy": {"epsilon": 1.0}, "sources": sources}), encoding="utf-8")
    return read_tables(load(path))


def met(folder: Path, content: str | bytes, **keys: Any) -> Tables:
    return read(folder, {"met.csv": content}, {"met": {"kind": "interactions", "path": "met.csv", **keys}})


def dropped(tables: Tables, source: str) -> dict[str, int]:
    return {drop.reason: drop.rows for report in tables.reports if report.source == source for drop in report.dropped}


def rows(tables: Tables) -> list[tuple[str, str, float, bool]]:
    log = tables.interactions
    user = np.repeat(np.arange(tables.users), np.diff(log.offsets))
    return [
        (tables.user_ids[u], tables.item_ids[i], float(w), bool(p))
        for u, i, w, p in zip(user, log.item, log.weight, log.positive, strict=True)
    ]


def notes_of(tables: Tables, notes: Notes) -> dict[str, list[tuple[str | None, str]]]:
    return {
        user: [
            (tables.item_ids[i] if i >= 0 else None, text)
            for i, text in zip(notes.item[begin:end], notes.text[begin:end], strict=True)
        ]
        for user, begin, end in zip(tables.user_ids, notes.offsets, notes.offsets[1:], strict=False)
    }


class TestInteractions:
    def test_sorted_by_user_then_time_and_users_by_first_appearance(self, tmp_path: Path) -> None:
        tables = met(tmp_path, "user,item,time\nz,1,30\na,9,20\nz,2,10\na,1,5\nz,3,20\n")
        assert tables.user_ids == ["z", "a"]
        assert tables.item_ids == ["1", "2", "3", "9"]
        assert [row[:2] for row in rows(tables)] == [("z", "2"), ("z", "3"), ("z", "1"), ("a", "1"), ("a", "9")]
        assert tables.interactions.time is not None
        assert tables.interactions.time.tolist() == [10, 20, 30, 5, 20]
        assert [
            array.dtype.name for array in (tables.interactions.offsets, tables.interactions.item, tables.interactions.weight)
        ] == [
            "int64",
            "int32",
            "float32",
        ]
        assert tables.item_titles == tables.item_ids

    def test_threshold_makes_known_or_positive(self, tmp_path: Path) -> None:
        tables = met(tmp_path, "user,item,value\na,1,4\na,2,3.9\n", threshold=4)
        assert rows(tables) == [("a", "1", 1.0, True), ("a", "2", 0.0, False)]

    def test_events_weigh_and_the_unlisted_are_known(self, tmp_path: Path) -> None:
        content = "user,item,event\na,1,buy\na,2,view\na,3,return\na,4,\n"
        tables = met(tmp_path, content, events={"buy": 1.0, "view": 0.25})
        assert rows(tables) == [("a", "1", 1.0, True), ("a", "2", 0.25, True), ("a", "3", 0.0, False)]
        assert dropped(tables, "met") == {"missing event": 1}

    def test_log_weight(self, tmp_path: Path) -> None:
        tables = met(tmp_path, "user,item,value\na,1,99\na,2,0\na,3,-1\n", weight="log")
        assert [row[2] for row in rows(tables)] == pytest.approx([np.log(100), 0.0])
        assert [row[3] for row in rows(tables)] == [True, False]
        assert dropped(tables, "met") == {"value below 0": 1}

    def test_every_reason_is_counted(self, tmp_path: Path) -> None:
        content = (
            "user,item,value,time\na,1,5,10\n,1,5,10\nb,,5,10\nc,1,x,10\nc,1,,10\nc,1,inf,10\nc,1,5,-1\nc,1,5,9e9\n"
            "c,1,5,soon\nc,1,5,\na,1,5,20\nb,1,5,10,extra\n a ,2,5,10\n"
        )
        tables = met(tmp_path, content, threshold=4)
        assert dropped(tables, "met") == {
            "row with more columns than the first": 1,
            "missing user": 1,
            "missing item": 1,
            "missing time (row kept, before those with one)": 1,
            "impossible time": 3,
            "missing value": 1,
            "unparsable value": 1,
            "value not finite": 1,
            "duplicate (user, item)": 1,
        }
        report = tables.reports[0]
        assert (report.read, report.kept) == (13, 3)
        assert tables.interactions.time is not None
        assert tables.interactions.time.tolist() == [10, 20, UNTIMED]  # the last time of the doubled pair stays

    @given(
        log=st.lists(
            st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 5), st.integers(0, 50)), min_size=1, max_size=30
        ),
        cut=st.integers(0, 30),
        timed=st.booleans(),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_several_sources_are_merged_as_a_dictionary_would(
        self, log: list[tuple[str, int, int, int]], cut: int, timed: bool, tmp_path: Path
    ) -> None:
        parts = [part for part in (log[:cut], log[cut:]) if part]
        keys = {"kind": "interactions", "threshold": 3.0} | ({} if timed else {"columns": {"user": 1, "item": 2, "value": 3}})
        files: dict[str, str | bytes] = {}
        for number, part in enumerate(parts):
            lines = [f"{u},{i},{v}" + (f",{t}" if timed else "") for u, i, v, t in part]
            files[f"{number}.csv"] = "\n".join(["user,item,value" + ",time" * timed, *lines])
        tables = read(tmp_path, files, {name: {**keys, "path": name} for name in files})

        merged: dict[tuple[str, str], tuple[bool, int, int]] = {}
        for row, (user, item, value, time) in enumerate(log):
            so_far = merged.get((user, str(item)), (False, 0, 0))
            merged[user, str(item)] = (so_far[0] or value >= 3, max(so_far[1], time), row)
        users = list(dict.fromkeys(user for user, *_ in log))
        order = sorted(merged, key=lambda pair: (users.index(pair[0]), merged[pair][1] if timed else 0, merged[pair][2]))
        assert [(user, item) for user, item, *_ in rows(tables)] == order
        assert [positive for *_, positive in rows(tables)] == [merged[pair][0] for pair in order]
        assert (tables.interactions.time is not None) == timed
        if tables.interactions.time is not None:
            assert tables.interactions.time.tolist() == [merged[pair][1] for pair in order]
        assert sum(report.kept for report in tables.reports) == len(merged)
        assert sum(report.read for report in tables.reports) == len(log)

    def test_rows_of_a_source_without_times_are_before_all_others(self, tmp_path: Path) -> None:
        files: dict[str, str | bytes] = {"a.csv": "user,item,time\na,1,30\na,2,10\n", "b.csv": "user,item\na,3\n"}
        tables = read(tmp_path, files, {name: {"kind": "interactions", "path": name} for name in files})
        assert [row[1] for row in rows(tables)] == ["3", "2", "1"]
        tables = read(tmp_path, {"b.csv": files["b.csv"]}, {"b.csv": {"kind": "interactions", "path": "b.csv"}})
        assert tables.interactions.time is None

    @pytest.mark.parametrize(
        ("cell", "time_format"),
        [
            ("86400", None),
            ("86400.9", "unix"),
            ("86400000", "unix-ms"),
            ("1970-01-02", None),
            ("1970-01-02T00:00:00Z", None),
            ("1970-01-02 01:00:00+01:00", None),
            ("02.01.1970", "%d.%m.%Y"),
            ("02/Jan/1970 00:00", "%d/%b/%Y %H:%M"),
        ],
    )
    def test_times_in_many_formats(self, cell: str, time_format: str | None, tmp_path: Path) -> None:
        keys = {} if time_format is None else {"time_format": time_format}
        tables = met(tmp_path, f"user,item,time\na,1,{cell}\n", **keys)
        assert tables.interactions.time is not None
        assert tables.interactions.time.tolist() == [86400]

    def test_datetime_columns_are_taken_as_they_are(self, tmp_path: Path) -> None:
        zone = dt.timezone(dt.timedelta(hours=1))
        frame = pl.DataFrame({"user": ["a"], "item": [1.0], "time": [dt.datetime(1970, 1, 2, 1, tzinfo=zone)]})
        frame.write_parquet(tmp_path / "met.parquet")
        tables = read(tmp_path, {}, {"met": {"kind": "interactions", "path": "met.parquet"}})
        assert tables.item_ids == ["1"]
        assert tables.interactions.time is not None
        assert tables.interactions.time.tolist() == [86400]

    def test_a_user_whose_rows_are_only_known_is_a_user(self, tmp_path: Path) -> None:
        assert met(tmp_path, "user,item,value\na,1,1\n", threshold=5).user_ids == ["a"]


class TestItems:
    def test_the_item_table_is_the_catalogue(self, tmp_path: Path) -> None:
        tables = read(
            tmp_path, {"i.csv": "item,title\n3,C\n1,A\n9,Never met\n3,again\n"}, {"goods": {"kind": "items", "path": "i.csv"}}
        )
        assert tables.item_ids == ["3", "1", "9"]
        assert tables.item_titles == ["C", "A", "Never met"]
        assert [row[:2] for row in rows(tables)] == [("ann", "1"), ("bob", "3"), ("bob", "1")]
        assert dropped(tables, "log") == {"item not in the catalogue": 1}
        assert dropped(tables, "goods") == {"duplicate item": 1}

    def test_the_text_reads_on_from_the_title(self, tmp_path: Path) -> None:
        header = "item|title|category|description|price|Book_Publisher|by|new|used|weight\n"
        content = header + "1|Angels &amp;  Demons|Thriller|See https://x.y/z?a now!|9.5|Atria|D. Brown|1|0|12\n2|||||||0|0|\n"
        keys = {
            "text": ["Book_Publisher", "by"],
            "flags": {"first": "new", "names": ["New", "Used"]},
            "numbers": {"weight": {"min": 0, "max": 16, "words": ["light", "heavy"]}},
        }
        tables = read(tmp_path, {"i.csv": content}, {"goods": {"kind": "items", "path": "i.csv", "separator": "|", **keys}})
        assert tables.item_text["goods"] == [
            "Angels & Demons. category: Thriller, New. See now! book publisher: Atria. by D. Brown. price: 9.5. weight: heavy",
            "",
        ]
        assert tables.item_titles == ["Angels & Demons", "2"]
        vectors = tables.item_vectors["goods"]
        assert vectors.values.dtype == np.float32
        assert (vectors.values.tolist(), vectors.present.tolist()) == ([[0.75], [0.0]], [True, False])

    @pytest.mark.parametrize("cell, said", [("$1,100.50", True), ("900", True), ("4.5", False), ("", False)])
    def test_numbers_of_which_none_is_within_its_bounds_are_spoken_of(self, cell: str, said: bool, tmp_path: Path) -> None:
        source = {"kind": "items", "path": "i.csv", "numbers": {"price": {"min": 0, "max": 500}}}
        tables = read(tmp_path, {"i.csv": f'item,title,price\n1,A,"{cell}"\n2,B,"{cell}"\n'}, {"goods": source})
        (report,) = (one for one in tables.reports if one.source == "goods")
        assert any("no cell of 'price' is a number from 0 to 500" in warning for warning in report.warnings) is said

    def test_numbers_out_of_bounds_are_left_out_and_counted(self, tmp_path: Path) -> None:
        content = "item,price,size\n1,600,2\n2,cheap,\n3,0,-1\n"
        numbers = {"price": {"min": 0, "max": 500}, "size": {"min": 0, "max": 4}}
        tables = read(tmp_path, {"i.csv": content}, {"goods": {"kind": "items", "path": "i.csv", "numbers": numbers}})
        assert tables.item_text["goods"] == ["size: medium", "", "price: very low"]
        assert dropped(tables, "goods") == {
            "price: no number (row kept)": 1,
            "price: outside 0 to 500 (row kept)": 1,
            "size: outside 0 to 4 (row kept)": 1,
        }
        assert tables.item_vectors["goods"].present.tolist() == [True, False, True]
        assert tables.item_vectors["goods"].values.tolist() == [[0.5, 0.5], [0.0, 0.0], [0.0, 0.5]]

    def test_texts_are_cut(self, tmp_path: Path) -> None:
        tables = read(tmp_path, {"i.csv": f"item,title\n1,{'long ' * 1000}\n"}, {"goods": {"kind": "items", "path": "i.csv"}})
        assert 1990 < len(tables.item_text["goods"][0]) <= 2000

    def test_two_item_sources_add_up(self, tmp_path: Path) -> None:
        files: dict[str, str | bytes] = {"a.csv": "item,title\n1,A\n2,\n", "b.csv": "item,title\n2,B\n3,C\n1,other\n"}
        tables = read(tmp_path, files, {name: {"kind": "items", "path": name} for name in files})
        assert tables.item_ids == ["1", "2", "3"]
        assert tables.item_titles == ["A", "B", "C"]
        assert dict(tables.item_text) == {"a.csv": ["A", "", ""], "b.csv": ["other", "B", "C"]}

    def test_a_role_that_text_names_must_exist(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="'description'"):
            read(tmp_path, {"i.csv": "item\n1\n"}, {"goods": {"kind": "items", "path": "i.csv", "text": ["description"]}})


class TestProfiles:
    KEYS: ClassVar[dict[str, Any]] = {
        "kind": "profiles",
        "path": "p.csv",
        "columns": {"job": 4},
        "text": ["job", 5],
        "values": {"sex": {"F": "woman"}},
        "numbers": {"age": {"min": 0, "max": 100, "buckets": 2}},
    }

    def test_words_numbers_and_columns(self, tmp_path: Path) -> None:
        content = "user,sex,age,work,home town\nbob,X,,smith,\nzoe,F,3,x,y\nann,F,50,,Porto\nann,M,1,again,x\n,F,1,x,y\n"
        tables = read(tmp_path, {"p.csv": content}, {"people": self.KEYS})
        assert tables.user_ids == ["ann", "bob"]
        assert tables.user_text["people"] == ["woman. age: high. home town: Porto", "X. job: smith"]
        assert dropped(tables, "people") == {"user without interactions": 1, "duplicate user": 1, "missing user": 1}
        assert tables.user_vectors["people"].values.tolist() == [[0.5], [0.0]]
        assert tables.user_vectors["people"].present.tolist() == [True, False]

    def test_profiles_say_nothing_of_items(self, tmp_path: Path) -> None:
        tables = read(tmp_path, {"p.csv": "user,sex,age,work,town\nann,F,50,x,y\n"}, {"people": self.KEYS})
        assert not tables.item_text
        assert not tables.item_vectors


class TestReviews:
    CONTENT = (
        "user,item,text,time,stars\nann,2,late,20,\nann,1,early,10,4\nbob,1,fine,5,x\n"
        "zoe,1,stranger,1,5\nann,77,gone,1,\nann,1,,1,1\nann,2,late,20,\n"
    )

    def test_notes_by_user_and_time(self, tmp_path: Path) -> None:
        tables = read(tmp_path, {"r.csv": self.CONTENT}, {"said": {"kind": "reviews", "path": "r.csv"}})
        notes = tables.notes["said"]
        assert notes_of(tables, notes) == {
            "ann": [(None, "gone"), ("1", "4 stars: early"), ("2", "late")],
            "bob": [("1", "fine")],
        }
        assert dropped(tables, "said") == {
            "stars: no number (row kept)": 1,
            "missing text": 1,
            "duplicate (user, item, text)": 1,
            "user without interactions": 1,
        }

    def test_private_notes_never_enter_item_texts(self, tmp_path: Path) -> None:
        source = {"kind": "reviews", "path": "r.csv"}
        files: dict[str, str | bytes] = {"r.csv": self.CONTENT, "i.csv": "item,title\n1,A\n2,B\n3,C\n"}
        tables = read(tmp_path, files, {"goods": {"kind": "items", "path": "i.csv"}, "said": source})
        assert not tables.notes["said"].public
        assert dict(tables.item_text) == {"goods": ["A", "B", "C"]}
        tables = read(tmp_path, files, {"goods": {"kind": "items", "path": "i.csv"}, "said": {**source, "public": True}})
        assert tables.notes["said"].public
        # In the order of the file, strangers too; and a section of its own, after what the item table says.
        assert list(tables.item_text) == ["goods", "said"]
        assert tables.item_text["said"] == ["4 stars: early. fine. 5 stars: stranger", "late", ""]

    def test_codes_become_words(self, tmp_path: Path) -> None:
        files: dict[str, str | bytes] = {
            "r.csv": "user,item,text\nann,1,7\nann,2,8\nbob,1,99\n",
            "w.txt": "7::très bon::x\n8::ok".encode("latin-1"),
        }
        lookup = {
            "text": {
                "path": "w.txt",
                "separator": "::",
                "encoding": "latin-1",
                "header": False,
                "key": 1,
                "value": 2,
                "ragged": True,
            }
        }
        tables = read(tmp_path, files, {"tags": {"kind": "reviews", "path": "r.csv", "lookup": lookup}})
        assert tables.notes["tags"].text == ["très bon", "ok"]
        assert dropped(tables, "tags") == {"text: code without a word": 1}


class TestSocial:
    def test_ties(self, tmp_path: Path) -> None:
        content = "user,friend\nbob,ann\nann,ann\nann,bob\nann,zoe\nann,bob\n,ann\n"
        tables = read(
            tmp_path, {"s.csv": content}, {"friends": {"kind": "social", "path": "s.csv", "influence": 2, "friends": 5}}
        )
        ties = tables.ties["friends"]
        assert (ties.offsets.tolist(), ties.friend.tolist(), ties.influence, ties.friends) == ([0, 2, 3], [1, -1, 0], 2, 5)
        assert dropped(tables, "friends") == {
            "missing user": 1,
            "user as own friend": 1,
            "duplicate (user, friend)": 1,
            "friend who is no user here: unusable (row keeps its place)": 1,
        }

    def test_a_friend_without_interactions_keeps_the_place(self, tmp_path: Path) -> None:
        # In the fixed order of the pair: who leaves moves nobody up in another's list.
        names = ["ann", "zoe", "kim", "bob"]
        content = "user,friend\n" + "".join(f"bob,{name}\n" for name in names[:3])
        tables = read(tmp_path, {"s.csv": content}, {"friends": {"kind": "social", "path": "s.csv"}})
        order = sorted(names[:3], key=lambda name: hashlib.sha256(f"bob\0{name}".encode()).digest())
        bob, ann = (list(tables.user_ids).index(name) for name in ("bob", "ann"))
        ties = tables.ties["friends"]
        own = ties.friend[ties.offsets[bob] : ties.offsets[bob + 1]].tolist()
        assert own == [ann if name == "ann" else -1 for name in order]


class TestKnowledge:
    FILES: ClassVar[dict[str, str | bytes]] = {
        "k.csv": "e1,music.artist.origin,100\ne2,music.artist.origin,100\ne3,music.artist.origin,100\ne1,friendOf,e2\n"
        "e1,made_in,5\ne9,x,e1\ne1,friendOf,e2\ne2,self,e2\n,x,y\n",
        "l.csv": "item,entity\n1,e1\n2,e2\n3,e3\n88,e9\n",
        "i.csv": "item,title\n1,One\n2,Two\n3,Three\n",
        "n.csv": "entity,name\n5,Peru\n",
    }
    GOODS: ClassVar[dict[str, Any]] = {"kind": "items", "path": "i.csv"}
    GRAPH: ClassVar[dict[str, Any]] = {
        "kind": "knowledge",
        "path": "k.csv",
        "header": False,
        "columns": {"head": 1, "relation": 2, "tail": 3},
        "links": {"path": "l.csv"},
    }

    def test_titles_and_shared_facts(self, tmp_path: Path) -> None:
        tables = read(tmp_path, self.FILES, {"goods": self.GOODS, "graph": self.GRAPH})
        assert list(tables.item_text) == ["goods", "graph"]
        assert tables.item_text["graph"] == [
            "same music artist origin as Two, Three. friend of: Two",
            "same music artist origin as One, Three",
            "same music artist origin as One, Two",
        ]
        assert dropped(tables, "graph") == {
            "missing head": 1,
            "tail is the head itself": 1,
            "duplicate triple": 1,
            "item not in the catalogue": 1,
        }

    def test_names_make_tails_readable_and_neighbours_bound_them(self, tmp_path: Path) -> None:
        graph = {**self.GRAPH, "names": {"path": "n.csv"}}
        tables = read(tmp_path, self.FILES, {"goods": self.GOODS, "graph": graph})
        assert tables.item_text["graph"][0] == "same music artist origin as Two, Three. friend of: Two. made in: Peru"
        tables = read(tmp_path, self.FILES, {"goods": self.GOODS, "graph": {**graph, "neighbours": 1}})
        assert tables.item_text["graph"][0] == "same music artist origin as Two, Three"

    def test_an_item_id_is_its_entity_by_default(self, tmp_path: Path) -> None:
        files: dict[str, str | bytes] = {
            "k.csv": "head,relation,tail\n1,made_in,Peru\n2,sequel,1\n3,made_in,7\n",
            "i.csv": self.FILES["i.csv"],
        }
        tables = read(tmp_path, files, {"goods": self.GOODS, "graph": {"kind": "knowledge", "path": "k.csv"}})
        assert tables.item_text["graph"] == ["made in: Peru", "sequel: One", ""]


class TestVectors:
    def test_a_matrix_with_ids(self, tmp_path: Path) -> None:
        matrix = np.array([[3, 4], [0.3, 0.4], [np.nan, 1], [1, 1], [1, 1], [1, 1]], np.float32)
        np.save(tmp_path / "v.npy", matrix)
        source = {"kind": "vectors", "path": "v.npy", "ids": "v.txt", "columns": {"item": 1}}
        tables = read(tmp_path, {"v.txt": "1\r\n3\r\n2\r\n99\r\n1\r\n\r\n"}, {"images": source})
        vectors = tables.item_vectors["images"]
        assert vectors.values == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0.3, 0.4]]))
        assert vectors.present.tolist() == [True, False, True]
        assert dropped(tables, "images") == {
            "missing item": 1,
            "item not in the catalogue": 1,
            "value not finite": 1,
            "duplicate item": 1,
        }
        assert not tables.user_vectors

    def test_ids_and_matrix_must_agree_and_pickles_are_refused(self, tmp_path: Path) -> None:
        source = {"kind": "vectors", "path": "v.npy", "ids": "v.txt", "columns": {"user": 1}}
        np.save(tmp_path / "v.npy", np.ones((2, 2)))
        with pytest.raises(InputError, match="1 ids for 2 rows"):
            read(tmp_path, {"v.txt": "ann\n"}, {"v": source})
        np.save(tmp_path / "v.npy", np.array([{}, {}]), allow_pickle=True)
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path, {"v.txt": "ann\nbob\n"}, {"v": source})
        np.save(tmp_path / "v.npy", np.ones(2))
        with pytest.raises(InputError, match="matrix"):
            read(tmp_path, {"v.txt": "ann\nbob\n"}, {"v": source})

    @pytest.mark.parametrize("format_", ["jsonl", "parquet", "array", "csv"])
    def test_one_column_of_lists(self, format_: str, tmp_path: Path) -> None:
        frame = pl.DataFrame({"user": ["bob", "ann", "zoe"], "embedding": [[0.0, 2.0], [2.0, 0.0], [9.0, 9.0]]})
        path = tmp_path / f"v.{'parquet' if format_ == 'array' else format_}"
        if format_ == "jsonl":
            frame.write_ndjson(path)
            path.write_text(path.read_text() + '{"user": "ann", "embedding": [1.0]}\n{"user": "ann"}\n')
        elif format_ == "csv":
            path.write_text("user;embedding\nbob;[0, 2]\nann;2.0 0\nzoe;9 9\nann;1.0\nann;\n")
        else:
            frame.cast({"embedding": pl.Array(pl.Float64, 2)} if format_ == "array" else {}).write_parquet(path)
        columns = {"user": "user", "vector": "embedding"}
        source = {"kind": "vectors", "path": path.name, "columns": columns, "bound": 4.0, "separator": ";", "width": 2}
        tables = read(tmp_path, {}, {"voice": source})
        assert tables.user_vectors["voice"].values.tolist() == [[0.5, 0.0], [0.0, 0.5]]
        assert dropped(tables, "voice")["user without interactions"] == 1
        if format_ in ("jsonl", "csv"):
            assert dropped(tables, "voice") | {"vector whose length is not 2": 1, "missing vector": 1} == dropped(tables, "voice")

    def test_whose_they_are_must_be_plain(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="both columns"):
            read(tmp_path, {"v.csv": "user,item,vector\nann,1,2\n"}, {"v": {"kind": "vectors", "path": "v.csv"}})
        with pytest.raises(InputError, match="neither"):
            read(tmp_path, {"v.csv": "id,vector\nann,1\n"}, {"v": {"kind": "vectors", "path": "v.csv"}})
