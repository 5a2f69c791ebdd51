"""At every bound of reading: what is still inside, and what is the first outside."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.config.source_schema import NumberRange
from client.sources.cell_values import EARLIEST, LATEST, LONGEST_TEXT, as_texts, as_times
from client.sources.cleaning import Cleaning
from client.sources.number_buckets import bucket_words, bucketed
from client.sources.tables import Tables
from client.sources.time_formats import LikelyFormats, likely_formats
from shared.base.errors import InputError
from tests.client.sources.one_log import read, report


class TestTimes:
    @pytest.mark.parametrize("form", [None, "unix"])
    def test_from_1970_until_2100_each_second_is_possible(self, form: str | None) -> None:
        texts = ["-1", "0", "1", str(LATEST - 1), str(LATEST)]
        inside = [None, EARLIEST, 1, LATEST - 1, None]
        assert as_times(pl.Series(texts), "unix").to_list() == inside
        assert as_times(pl.Series([int(text) for text in texts]), form).to_list()[:4] == inside[:4]

    @pytest.mark.parametrize("size", [10**3, 10**6, 10**9])
    def test_the_size_of_a_number_says_what_it_counts(self, size: int) -> None:
        """From 1973-03-03 on, which is 10^8 seconds after 1970, until the end of 2100."""
        counts = [10**8 * size, 10**8 * size + size // 2, (LATEST - 1) * size]
        seconds = [10**8, 10**8, LATEST - 1]
        for column in (pl.Series(counts), pl.Series(list(map(str, counts)))):
            assert as_times(column, None).to_list() == seconds
        # One less is a number of the next larger unit, of 1973 no longer, and of the smallest it is seconds.
        before = as_times(pl.Series([10**8 * size - 1]), None).to_list()[0]
        assert before is None or before > LATEST // 100

    @pytest.mark.parametrize(("digits", "inside"), [
        ("19000101", None), ("18991231", 18_991_231), ("20991231", 4_102_358_400), ("21000101", 21_000_101),
        ("20200100", 20_200_100), ("20201301", 20_201_301), ("202001011159", 1_577_879_940), ("20200101115958", 1_577_879_998),
    ])  # fmt: skip
    def test_digits_are_a_date_where_they_begin_as_one_of_two_centuries(self, digits: str, inside: int | None) -> None:
        for column in (pl.Series([digits]), pl.Series([int(digits)])):
            assert as_times(column, None).to_list() == [inside]

    def test_a_format_reads_more_than_half_or_is_none(self) -> None:
        good, bad = "13/02/2021", "no time"
        for read_, of, known in ((1, 1, True), (1, 2, False), (2, 3, True), (2, 4, False)):
            found = likely_formats(pl.Series([good] * read_ + [bad] * (of - read_)))
            assert (found.formats, found.read, found.of) == ((("%d/%m/%Y",), read_, of) if known else ((), 0, of))
        assert likely_formats(pl.Series(["x"])) == LikelyFormats(formats=(), read=0, of=1)
        assert likely_formats(pl.Series([None, None], dtype=pl.String)).formats == ()

    def test_words_of_formats(self) -> None:
        one = likely_formats(pl.Series(["13/02/2021", "14/02/2021", "soon"]))
        assert one.words() == 'time_format = "%d/%m/%Y", which reads 2 of 3'
        assert likely_formats(pl.Series(["13/02/2021"])).words() == 'time_format = "%d/%m/%Y"'
        both = likely_formats(pl.Series(["03/02/2021"])).words()
        assert both == (
            'time_format = "%d/%m/%Y", or time_format = "%m/%d/%Y": the values do not tell which is meant, '
            "whoever exported them knows"
        )

    def test_the_first_five_shapes_are_looked_at(self) -> None:
        shapes = ["x", "x 1", "x 1 1", "x 1 1 1", "13/02/2021"]
        assert likely_formats(pl.Series([*shapes, *["14/02/2021"] * 9])).formats == ("%d/%m/%Y",)
        assert likely_formats(pl.Series(["y", *shapes, *["14/02/2021"] * 9])).formats == ()

    @pytest.mark.parametrize(("first", "last", "cure"), [
        (1900, 2100, '"%Y"'), (1899, 2100, "unix-ms"), (1900, 2101, "unix-ms"),
        (20_000, 80_000, '"excel"'), (19_999, 80_000, "unix-ms"), (20_000, 80_001, "unix-ms"),
    ])  # fmt: skip
    def test_small_numbers_are_years_or_a_spreadsheets_days(self, first: int, last: int, cure: str, tmp_path: Path) -> None:
        (warning,) = report(read(tmp_path, f"user,item,time\n1,a,{first}\n2,b,{last}\n")).warnings
        assert cure in warning and "before 1990" in warning and ('"%Y"' in warning) == (cure == '"%Y"')
        assert ("if a spreadsheet" in warning) == (cure == '"excel"')

    def test_times_that_end_before_1990_are_hardly_meant(self, tmp_path: Path) -> None:
        for last, warned in ((631_151_999, True), (631_152_000, False)):
            found = report(read(tmp_path, f"user,item,time\n1,a,5\n2,b,{last}\n"))
            assert bool(found.warnings) is warned and found.times == (5, last)


class TestNumbers:
    @given(
        st.fractions(-1000, 1000, max_denominator=8), st.fractions(Fraction(1, 8), 1000, max_denominator=8),
        st.integers(2, 9), st.lists(st.fractions(-1200, 1200, max_denominator=8), max_size=8),
    )  # fmt: skip
    def test_a_bucket_is_its_share_of_the_bounds(
        self, low: Fraction, width: Fraction, buckets: int, cells: list[Fraction]
    ) -> None:
        """Against exact arithmetic; the bounds are inside, and an edge belongs to the bucket above it."""
        high = low + width
        cells = [*cells, low, high, low - Fraction(1, 8), high + Fraction(1, 8)]
        bounds = NumberRange(min=float(low), max=float(high), buckets=buckets)
        cleaning = Cleaning(source="s", kind="items", where="", lenient=True)
        got = bucketed(pl.Series([float(cell) for cell in cells]), bounds, cleaning, name="n")
        words, expected, places = bucket_words(bounds), [], []
        for cell in cells:
            inside = low <= cell <= high
            share = (cell - low) / width
            expected.append(words[min(int(share * buckets), buckets - 1)] if inside else None)
            places.append(float(share) if inside else None)
        near = [cell for cell in cells if low <= cell <= high and (cell - low) / width * buckets % 1 != 0]
        for cell, word, wanted, place, share in zip(cells, got.words, expected, got.coordinates, places, strict=True):
            # On an edge that no float is, the last bit decides.
            assert word == wanted or (cell not in near and word is not None)
            assert (place is None) == (share is None) and (place is None or math.isclose(place, share or 0.0, abs_tol=1e-9))
        outside = sum(not low <= cell <= high for cell in cells)
        (lost,) = cleaning.report(0).dropped
        assert (lost.rows, lost.reason) == (outside, f"n: outside {float(low):g} to {float(high):g} (row kept)")

    def test_each_scale_has_its_words(self) -> None:
        scales = {2: 2, 3: 3, 4: 4, 5: 5, None: 5, 6: 6, 9: 9}
        for buckets, count in scales.items():
            words = bucket_words(NumberRange(min=0, max=1, buckets=buckets) if buckets else NumberRange(min=0, max=1))
            assert len(words) == len(set(words)) == count
        assert bucket_words(NumberRange(min=0, max=1, buckets=6)) == tuple(f"{at} of 6" for at in range(1, 7))

    def test_what_says_nothing_is_spoken_of(self) -> None:
        bounds = NumberRange(min=0, max=9)
        for cells, lost, warned in (
            (["x", "11", ""], {"n: no number (row kept)": 1, "n: outside 0 to 9 (row kept)": 1}, True),
            (["x"], {"n: no number (row kept)": 1}, True),
            (["11"], {"n: outside 0 to 9 (row kept)": 1}, True),
            (["x", "9"], {"n: no number (row kept)": 1}, False),
            (["", None], {}, False),
            (["inf"], {"n: no number (row kept)": 1}, True),
        ):
            cleaning = Cleaning(source="s", kind="items", where="", lenient=True)
            got = bucketed(pl.Series(cells, dtype=pl.String), bounds, cleaning, name="n")
            found = cleaning.report(1)
            assert {one.reason: one.rows for one in found.dropped} == lost
            assert bool(found.warnings) is warned and got.words.null_count() == len(cells) - ("9" in cells)


class TestTexts:
    def test_the_longest_text(self) -> None:
        for length in (LONGEST_TEXT - 1, LONGEST_TEXT, LONGEST_TEXT + 1):
            assert as_texts(pl.Series(["a" * length])).str.len_chars().to_list() == [min(length, LONGEST_TEXT)]
        assert as_texts(pl.Series(["a b"]), longest=2).to_list() == ["a"]

    @pytest.mark.parametrize(("text", "read_as"), [
        ("5.0", "5"), ("-5.0", "-5"), ("5.00", "5.00"), ("5.05", "5.05"), (".0", ".0"), ("v5.0", "v5.0"), ("5.0 m", "5.0 m"),
        ("a &lt; b &amp;amp; c", "a < b &amp; c"), ("a\x00b", "a b"), ("", None), (" \t ", None), ("https://x.y", None),
        ("at HTTP://x.y/z?a=1 now", "at now"), ("xhttp://y", "xhttp://y"),
    ])  # fmt: skip
    def test_a_text_is_as_a_person_reads_it(self, text: str, read_as: str | None) -> None:
        assert as_texts(pl.Series([text, "other"])).to_list() == [read_as, "other"]


class TestEvents:
    def log(self, kinds: int) -> str:
        return "user,item,event\n" + "".join(f"1,i{at},e{at:02}\n" for at in range(kinds))

    def test_few_kinds_of_event_have_no_weights(self, tmp_path: Path) -> None:
        for kinds, warned in ((1, False), (2, True), (11, True), (50, True), (51, False)):
            found = report(read(tmp_path, self.log(kinds))).warnings
            assert bool(found) is warned, kinds
            if found:  # ten are named
                assert found[0].count("(1 rows)") == found[0].count(" = 1.0") == min(kinds, 10)

    def test_ten_events_without_a_weight_are_named(self, tmp_path: Path) -> None:
        for kinds in (1, 10, 11):
            text = self.log(kinds) + "2,i0,buy\n"
            (warning,) = report(read(tmp_path, text, events={"buy": 1.0})).warnings
            assert warning.count("(1 rows)") == min(kinds, 10) and (", ..." in warning) is (kinds == 11)

    def test_values_weigh_and_a_threshold_is_enough(self, tmp_path: Path) -> None:
        text = "user,item,value\n" + "".join(f"1,i{at},{value}\n" for at, value in enumerate((-0.5, 0.0, 1.0, 3.0, 3.5)))
        log = read(tmp_path, text, threshold=3.0).interactions
        assert log.positive.tolist() == [False, False, False, True, True] and log.weight.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
        tables = read(tmp_path, text, weight="log")
        assert tables.interactions.weight == pytest.approx(np.log1p([0.0, 1.0, 3.0, 3.5]), rel=1e-6)
        assert tables.interactions.positive.tolist() == [False, True, True, True]
        assert [(one.reason, one.rows) for one in report(tables).dropped] == [("value below 0", 1)]
        both = read(tmp_path, text, weight="log", threshold=3.0).interactions
        assert both.weight == pytest.approx([0.0, 0.0, math.log1p(3.0), math.log1p(3.5)], rel=1e-6)

    def test_of_several_rows_the_last_time_and_the_largest_weight_stay(self, tmp_path: Path) -> None:
        rows = "1,a,buy,30\n1,b,view,20\n1,a,view,10\n2,a,view,5\n1,a,hide,40\n"
        tables = read(
            tmp_path, "user,item,event,time\n" + rows, events={"buy": 2.0, "view": 0.5, "hide": 0.0}, time_format="unix"
        )
        log = tables.interactions
        assert [tables.item_ids[item] for item in log.item] == ["b", "a", "a"] and log.offsets.tolist() == [0, 2, 3]
        assert log.weight.tolist() == [0.5, 2.0, 0.5] and log.time is not None and log.time.tolist() == [20, 40, 5]
        assert [(one.reason, one.rows) for one in report(tables).dropped] == [("duplicate (user, item)", 2)]


class TestVectors:
    def vectors(self, folder: Path, lines: list[str], **source: Any) -> Tables:
        (folder / "v.csv").write_text("item,vector\n" + "".join(f"{line}\n" for line in lines))
        rows = "".join(f"1,i{at}\n" for at in range(len(lines)))
        return read(
            folder,
            "user,item\n" + rows,
            {"kind": "vectors", "path": "v.csv", "columns": {"item": "item"}, "bound": 1.0, **source},
        )

    def test_the_width_is_what_most_have_and_of_equally_many_the_smaller(self, tmp_path: Path) -> None:
        two, three = '"[1, 0]"', '"[0, 1, 0]"'
        for cells, width in (([two, three, three], 3), ([three, two], 2)):
            tables = self.vectors(tmp_path, [f"i{at},{cell}" for at, cell in enumerate(cells)])
            found = report(tables, "other")
            other = len(cells) - cells.count(two if width == 2 else three)
            lost = [(f"vector whose length is not {width}", other)] if other else []
            assert [(one.reason, one.rows) for one in found.dropped] == lost

    def test_what_is_no_vector_is_left_out_with_its_reason(self, tmp_path: Path) -> None:
        lines = ['i0,"[1, 0]"', "i1,", 'i2,"[1, nan]"', 'gone,"[1, 0]"', 'i0,"[0, 1]"', 'i4,"[3, 4]"']
        tables = self.vectors(tmp_path, lines, width=2)
        assert {one.reason: one.rows for one in report(tables, "other").dropped} == {
            "missing vector": 1, "value not finite": 1, "item not in the catalogue": 1, "duplicate item": 1
        }  # fmt: skip


def test_a_source_that_says_nothing_names_the_reasons() -> None:
    def cleaning(**over: Any) -> Cleaning:
        made = Cleaning(**{"source": "s", "kind": "items", "where": "f.csv", **over})
        made.read = 3
        made.lose("too old", 2)
        made.lose("none", 0)
        return made

    with pytest.raises(InputError, match=r"none of the 3 rows of source 's' is usable \(too old: 2\)") as caught:
        cleaning().report(0)
    assert caught.value.do.startswith("check separator, header") and caught.value.do.endswith("or leave the source out")
    warned = cleaning()
    for _ in range(2):
        warned.warn("it is thus")
    with pytest.raises(InputError) as caught:
        warned.report(0)
    assert caught.value.do == "it is thus; or leave the source out"
    with pytest.raises(InputError, match="source 's' is empty"):
        Cleaning(source="s", kind="items", where="f.csv").report(0)
    for kept, usable in ((1, None), (0, 1)):
        found = cleaning().report(kept, usable=usable)
        assert (found.read, found.kept) == (3, kept) and [(one.reason, one.rows) for one in found.dropped] == [("too old", 2)]
    with pytest.raises(InputError):
        cleaning().report(1, usable=0)
    assert cleaning(lenient=True).report(0).kept == 0
