"""Worlds: a folder is opened or refused with a reason; the generated one is reproducible, readable and worth learning."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from client.config.platform_file import load
from client.sources.item_keys import gtin_key
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from shared.base.errors import InputError, StorageError
from simulations.worlds import corner, files, news, shop, taste, video
from simulations.worlds.crowd import DAY, START, Crowd, Sizes, appearances, gather, population
from simulations.worlds.generated import IN_COMMON, PLATFORMS, crowds, sizes_at, write_world
from simulations.worlds.products import gtin13
from simulations.worlds.taste import AXES, Strengths
from simulations.worlds.vocabulary import FIRST_NAMES, LAST_NAMES, MANNER, TOPICS
from simulations.worlds.world import open_world
from simulations.worlds.writers import Writer

SCALE = 0.25
LARGE = Sizes(users=1000, items=300, positives=24.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), scale=SCALE).folder


def digests(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


class TestOpening:
    def write(self, folder: Path, **platforms: str) -> None:
        for stem, text in platforms.items():
            (folder / f"{stem}.toml").write_text(text, encoding="utf-8")

    def test_platforms_come_in_the_order_of_their_names_not_of_their_files(self, tmp_path: Path) -> None:
        self.write(tmp_path, a='name = "zebra"', b='name = "mule"', c='name = "ant"')
        (tmp_path / "notes.md").write_text("not a platform")
        (tmp_path / "inner").mkdir()
        self.write(tmp_path / "inner", d="not toml at all")
        assert [path.name for path in open_world(tmp_path).platforms] == ["c.toml", "b.toml", "a.toml"]

    def test_one_platform_is_a_world(self, tmp_path: Path) -> None:
        self.write(tmp_path, only='name = "only"')
        assert open_world(tmp_path).platforms == (tmp_path / "only.toml",)

    @pytest.mark.parametrize(
        ("platforms", "found"),
        [
            ({}, "no platform file"),
            ({"a": 'name = "same"', "b": 'name = "same"'}, "a.toml and b.toml"),
            ({"a": "users = 3"}, "no `name`"),
            ({"a": "name = 3"}, "no `name`"),
            ({"a": 'name = ""'}, "no `name`"),
            ({"a": "name ="}, "not a TOML file"),
        ],
    )
    def test_a_folder_that_is_no_world_is_refused(self, tmp_path: Path, platforms: dict[str, str], found: str) -> None:
        self.write(tmp_path, **platforms)
        with pytest.raises(InputError, match=found) as caught:
            open_world(tmp_path)
        assert str(tmp_path) in caught.value.where and caught.value.do

    def test_a_file_in_another_encoding_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_bytes('name = "caf\xe9"'.encode("latin-1"))
        with pytest.raises(InputError, match="not a TOML file"):
            open_world(tmp_path)

    def test_a_folder_named_like_a_platform_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").mkdir()
        with pytest.raises(InputError, match="cannot be read"):
            open_world(tmp_path)

    def test_missing_folder_and_file_are_told_apart(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such folder"):
            open_world(tmp_path / "nowhere")
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="not a folder"):
            open_world(tmp_path / "file")


class TestWriting:
    def test_same_seed_same_bytes_and_another_seed_another_world(self, folder: Path, tmp_path: Path) -> None:
        again, other = tmp_path / "again", tmp_path / "other"
        write_world(again, scale=SCALE)
        write_world(other, scale=SCALE, seed=1)
        assert digests(again) == digests(folder)
        same = {name for name, digest in digests(other).items() if digests(folder)[name] == digest}
        assert same == {f"{name}.toml" for name in PLATFORMS}

    def test_declared_users_are_those_that_there_are(self, folder: Path) -> None:
        for name, sizes in sizes_at(SCALE).items():
            assert load(folder / f"{name}.toml").users == sizes.users == len(read_tables(load(folder / f"{name}.toml")).user_ids)

    def test_its_readme_says_the_sizes(self, folder: Path) -> None:
        text = (folder / "README.md").read_text()
        for name, (crowd, _) in crowds(seed=0, sizes=sizes_at(SCALE)).items():
            (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
            assert f"| {len(crowd.people)} | {len(crowd.items)} |" in line

    def test_the_smallest_world_and_a_large_range_can_be_written(self, tmp_path: Path) -> None:
        assert len(write_world(tmp_path, scale=0.1).platforms) == len(PLATFORMS)

    def test_writing_over_an_earlier_world_leaves_only_the_new_one(self, folder: Path, tmp_path: Path) -> None:
        write_world(tmp_path, scale=0.1, seed=5)
        write_world(tmp_path, scale=SCALE)
        assert digests(tmp_path) == digests(folder)

    def test_another_worlds_platform_files_are_not_mixed_in(self, tmp_path: Path) -> None:
        (tmp_path / "bank.toml").write_text('name = "bank"')
        with pytest.raises(InputError, match=r"bank\.toml"):
            write_world(tmp_path, scale=0.1)
        assert [path.name for path in tmp_path.iterdir()] == ["bank.toml"]

    @pytest.mark.parametrize("values", [{"scale": 0.0}, {"scale": 0.09}, {"scale": 11}, {"scale": float("nan")}, {"seed": -1}])
    def test_values_out_of_range_are_refused_before_anything_is_written(self, tmp_path: Path, values: dict[str, float]) -> None:
        with pytest.raises(InputError):
            write_world(tmp_path / "world", **values)  # type: ignore[arg-type]
        assert not (tmp_path / "world").exists()

    def test_a_file_in_the_way_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "world").touch()
        with pytest.raises(InputError, match="not a folder"):
            write_world(tmp_path / "world", scale=0.1)

    def test_an_interrupted_write_leaves_the_old_file_and_no_draft(self, tmp_path: Path) -> None:
        path = tmp_path / "table.csv"
        files.write_csv(path, [{"a": 1}])
        with pytest.raises(StorageError, match="disk is full") as caught, files.write_folder(path) as draft:
            draft.write_text("half")
            raise OSError(28, "disk is full")
        assert caught.value.where == str(path)
        assert path.read_text() == "a\n1\n"
        assert list(tmp_path.iterdir()) == [path]


class TestReading:
    """Every generated source is read without any loss but the dirt that the README tells of."""

    @pytest.fixture(scope="class", params=sorted(PLATFORMS))
    def platform(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_only_the_planted_dirt_is_dropped(self, folder: Path, platform: str) -> None:
        tables = read_tables(load(folder / f"{platform}.toml"))
        lost = {report.source: sum(dropped.rows for dropped in report.dropped) for report in tables.reports}
        assert {source: rows for source, rows in lost.items() if rows} == self.expected(folder)[platform]

    def expected(self, folder: Path) -> dict[str, dict[str, int]]:
        events = pl.read_csv(folder / "shop" / "events.csv")
        dirty = shop.UNKNOWN + shop.KEYLESS
        # A view and the purchase that it led to are one (user, item): counted from the file itself.
        sold = events.filter(pl.col("customer").is_not_null() & (pl.col("product") != "P9999X"))
        assert events.height - sold.height == dirty
        repeated = sold.height - sold.unique(["customer", "product"]).height
        assert sold.height - sold.unique().height == shop.REPEATED
        return {
            "shop": {"events": dirty + repeated},
            "corner": {"till": corner.UNKNOWN + corner.KEYLESS},
            "video": {"ratings": video.KEYLESS, "follows": video.UNKNOWN},
            "news": {"clicks": news.UNKNOWN},
        }

    def test_the_reader_finds_the_choices_that_were_made(self, folder: Path, platform: str) -> None:
        tables = read_tables(load(folder / f"{platform}.toml"))
        crowd, _ = crowds(seed=0, sizes=sizes_at(SCALE))[platform]
        assert (tables.users, tables.items) == (len(crowd.people), len(crowd.items))
        rows = tables.interactions
        histories = [
            tuple(rows.item[start:stop][rows.positive[start:stop]].tolist())
            for start, stop in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
        ]
        assert min(map(len, histories)) >= PLATFORMS[platform].sizes.least
        assert sorted(histories) == sorted(tuple(chosen.tolist()) for chosen in crowd.chosen)

    def test_every_source_says_something(self, folder: Path, platform: str) -> None:
        tables = read_tables(load(folder / f"{platform}.toml"))
        assert all(report.kept > 0 for report in tables.reports)
        assert len(set(tables.item_titles)) == tables.items
        for texts in tables.item_text.values():
            assert all(texts)

    def test_pictures_keep_their_lengths_within_the_declared_bound(self, folder: Path) -> None:
        bound = tomllib.loads((folder / "shop.toml").read_text())["sources"]["images"]["bound"]
        lengths = np.linalg.norm(np.array(pl.read_parquet(folder / "shop" / "images.parquet")["image"].to_list()), axis=1)
        assert lengths.max() < bound

    def test_declared_numbers_are_within_their_bounds(self, folder: Path) -> None:
        prices = pl.read_csv(folder / "shop" / "products.csv")["price"]
        years = [json.loads(line)["year"] for line in (folder / "video" / "films.jsonl").read_text().splitlines()]
        assert 0 <= prices.min() < prices.max() <= 500  # type: ignore[operator]
        assert 1920 <= min(years) < max(years) <= 2030

    def test_ids_tell_nothing_of_another_platform(self, folder: Path) -> None:
        with sqlite3.connect(folder / "news" / "news.db") as database:
            readers = {str(reader) for (reader,) in database.execute("SELECT reader FROM readers")}
        customers = set(pl.read_csv(folder / "shop" / "profiles.csv")["customer"].to_list())
        viewers = {str(viewer) for viewer in pl.read_parquet(folder / "video" / "ratings.parquet")["viewer"]}
        cards = {str(card) for card in pl.read_csv(folder / "corner" / "till.csv", separator=";")["card"].drop_nulls()}
        everybody = (customers, cards, viewers, readers)
        assert len(set().union(*everybody)) == sum(map(len, everybody))


class TestTwoShops:
    """What both shops sell is found by the keys, and by nothing else."""

    @pytest.fixture(scope="class")
    def tables(self, folder: Path) -> tuple[Tables, Tables]:
        return read_tables(load(folder / "shop.toml")), read_tables(load(folder / "corner.toml"))

    def test_every_product_has_a_key_of_its_own(self, tables: tuple[Tables, Tables]) -> None:
        for shop_ in tables:
            assert all(key.startswith("gtin:") for key in shop_.item_keys)
            assert len(set(shop_.item_keys)) == shop_.items

    def test_a_part_of_the_small_range_is_in_the_large_one(self, tables: tuple[Tables, Tables]) -> None:
        large, small = tables
        assert len(set(large.item_keys) & set(small.item_keys)) == round(IN_COMMON * small.items)

    def test_ids_titles_and_spellings_tell_nothing_of_it(self, folder: Path, tables: tuple[Tables, Tables]) -> None:
        large, small = tables
        assert not set(large.item_ids) & set(small.item_ids)
        assert not set(large.item_titles) & set(small.item_titles)
        spelled = pl.read_csv(folder / "shop" / "products.csv", infer_schema=False)["gtin"]
        other = pl.read_csv(folder / "corner" / "range.csv", separator=";", infer_schema=False)["barcode"]
        assert set(spelled.str.len_chars()) == {13} and set(other.str.len_chars()) == {12, 14}

    def test_both_sell_the_same_thing_under_one_key(self) -> None:
        made = crowds(seed=0, sizes=sizes_at(SCALE))
        (large, _), (small, _) = made["shop"], made["corner"]
        place = {product.gtin: number for number, product in enumerate(large.products)}
        both = [(place[product.gtin], number) for number, product in enumerate(small.products) if product.gtin in place]
        for one, other in both:
            assert large.products[one] == small.products[other]
            assert_allclose(large.items.mix[one], small.items.mix[other])
            assert large.items.popularity[one] == small.items.popularity[other]

    def test_the_small_shop_has_short_histories_and_the_large_one_thousands_of_likes(self) -> None:
        made = crowds(seed=0, sizes=sizes_at(1.0))
        lengths = {name: np.array([len(chosen) for chosen in crowd.chosen]) for name, (crowd, _) in made.items()}
        assert len(lengths["corner"]) < len(lengths["shop"]) / 2 and np.mean(lengths["corner"] <= 4) > 0.5
        assert lengths["shop"].sum() > 5000

    @given(st.integers(0, 99_999), st.booleans())
    def test_a_gtin_is_one_in_both_spellings(self, number: int, american: bool) -> None:
        gtin = gtin13(number, american=american)
        assert gtin_key(gtin) == gtin_key(corner.barcode(gtin)) == f"0{gtin}"
        assert gtin.isdecimal() and len(gtin) == 13 and len(corner.barcode(gtin)) == (12 if american else 14)


class TestNews:
    """Articles are new every day, and read within the days after."""

    @pytest.fixture(scope="class")
    def crowd(self) -> Crowd:
        return crowds(seed=0, sizes=sizes_at(1.0))["news"][0]

    def ages(self, crowd: Crowd) -> np.ndarray:
        assert crowd.published is not None
        return (np.concatenate(crowd.times) - crowd.published[np.concatenate(crowd.chosen)]) / DAY

    def test_articles_are_read_in_the_days_after_their_publication(self, crowd: Crowd) -> None:
        ages = self.ages(crowd)
        assert ages.min() >= 0 and np.median(ages) < 1.5 and np.mean(ages < 4) > 0.95

    def test_nothing_is_read_before_it_appears_and_nothing_twice_in_a_small_world_either(self) -> None:
        crowd = crowds(seed=0, sizes=sizes_at(0.1))["news"][0]
        assert self.ages(crowd).min() >= 0
        assert all(len(set(chosen.tolist())) == len(chosen) for chosen in crowd.chosen)

    def test_some_articles_appear_on_every_day(self, crowd: Crowd) -> None:
        assert crowd.published is not None
        days, counts = np.unique(crowd.published // DAY, return_counts=True)
        assert (np.diff(days) == 1).all() and counts[1:].min() >= 5  # the oldest are the rest of a day

    @given(st.integers(2, 2000), st.integers(1, 100))
    def test_as_many_as_anybody_reads_are_there_when_the_season_begins(self, items: int, most: int) -> None:
        sizes = Sizes(items=items, most=most)
        published = appearances(sizes)
        assert len(published) == items and (np.diff(published) >= 0).all()
        assert (published < START).sum() == min(most, items // 2)

    def test_most_held_out_articles_had_few_clicks_before(self, crowd: Crowd) -> None:
        items, times = np.concatenate(crowd.chosen), np.concatenate(crowd.times)
        before = [
            int(((items == chosen[-1]) & (times < time[-1])).sum())
            for chosen, time in zip(crowd.chosen, crowd.times, strict=True)
        ]
        assert np.median(before) <= 4 and np.mean(np.array(before) == 0) > 0.1

    def test_days_of_publication_are_in_the_database(self, folder: Path) -> None:
        with sqlite3.connect(folder / "news" / "news.db") as database:
            early = database.execute(
                "SELECT count(*) FROM clicks JOIN articles ON article = id WHERE clicked_at < published"
            ).fetchone()
            articles, days = database.execute("SELECT count(*), count(DISTINCT date(published)) FROM articles").fetchone()
        assert early == (0,) and articles > days > 30


class TestTitles:
    def test_a_title_that_cannot_be_drawn_anew_is_numbered(self) -> None:
        writer = Writer(np.random.default_rng(0))
        assert [writer.title(lambda: "Dune") for _ in range(3)] == ["Dune", "Dune, No. 2", "Dune, No. 3"]

    @pytest.mark.parametrize("platform", sorted(PLATFORMS))
    def test_titles_differ_in_a_large_world_too(self, tmp_path: Path, platform: str) -> None:
        sizes = {name: replace(trade.sizes, users=20, items=1500) for name, trade in PLATFORMS.items()}
        crowd, rng = crowds(seed=3, sizes=sizes)[platform]
        PLATFORMS[platform].write(tmp_path, crowd=crowd, rng=rng)
        (tmp_path / f"{platform}.toml").write_text(PLATFORMS[platform].file.format(users=20))
        titles = read_tables(load(tmp_path / f"{platform}.toml")).item_titles
        assert len(set(titles)) == len(titles) == 1500


class TestTaste:
    def test_affinity_is_symmetric_and_gives_every_topic_one_strong_and_one_weak_companion(self) -> None:
        assert_allclose(taste.AFFINITY, taste.AFFINITY.T)
        assert_allclose(np.sort(taste.AFFINITY, axis=1)[:, -3:], np.tile([0.0, 0.4, 1.0], (len(TOPICS), 1)))
        assert not np.diag(taste.AFFINITY).any()

    def test_words_do_not_say_two_things(self) -> None:
        manners = [word for axis in MANNER for side in axis.values() for word in side]
        assert len(set(manners)) == len(manners)
        for part in ("name", "department", "section"):
            assert len({getattr(topic, part) for topic in TOPICS}) == len(TOPICS)
        for part in ("things", "figures", "scenes", "doings"):
            words = [word for topic in TOPICS for word in getattr(topic, part)]
            assert len(set(words)) == len(words)
        assert len(MANNER) == len(AXES)
        assert len(FIRST_NAMES) * len(LAST_NAMES) > len(TOPICS) * 4 + 40

    def test_choices_follow_the_softmax(self) -> None:
        logits = np.log(np.array([0.5, 0.3, 0.2]))
        rng = np.random.default_rng(0)
        draws = np.array([taste.choose(rng, np.tile(logits, (2, 1))) for _ in range(4000)])
        assert_allclose(np.bincount(draws[:, 0]) / len(draws), [0.5, 0.3, 0.2], atol=0.03)
        # Without replacement: after 0 the rest shares what 0 leaves, 3 to 2.
        after = draws[draws[:, 0] == 0, 1]
        assert_allclose(np.mean(after == 1), 0.6, atol=0.04)

    @given(st.integers(1, 12), st.integers(0, 2**31))
    def test_nothing_is_chosen_twice(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        assert len(set(taste.choose(rng, rng.normal(size=(count, 12))).tolist())) == count

    def test_interest_moves_from_the_first_love_to_the_last_and_to_its_companion(self) -> None:
        rng = np.random.default_rng(0)
        person = taste.people(rng, count=1)
        items = taste.taste_catalogue(rng, count=600)
        strengths = Strengths(style=0.0, popularity=0.0)
        logits = taste.appeal(person, items, np.array([0.0, 1.0]), strengths=strengths)
        pure = np.flatnonzero(items.mix.max(axis=1) == 1.0)
        topic = items.mix[pure].argmax(axis=1)
        first, last = person.loves[0]
        by_topic = [{number: logits[moment, pure][topic == number].mean() for number in range(len(TOPICS))} for moment in (0, 1)]
        assert max(by_topic[0], key=by_topic[0].__getitem__) == first
        assert_allclose(by_topic[1][last], strengths.topic)
        companion = int(taste.AFFINITY[last].argmax())
        assert_allclose(by_topic[1][companion], strengths.topic)
        companion = int(taste.AFFINITY[first].argmax())
        assert_allclose(by_topic[0][companion], strengths.topic * strengths.companion)

    def test_a_fifth_of_the_people_is_on_every_larger_platform(self) -> None:
        sizes = [Sizes(users=users, items=60) for users in (100, 20, 50)]
        born = population(np.random.default_rng(0), sizes=sizes)
        persons = [{tuple(style) for style in people.style} for people in born]
        assert [len(found) for found in persons] == [100, 20, 50]
        for one, other, common in ((0, 1, 4), (0, 2, 10), (1, 2, 4)):
            assert len(persons[one] & persons[other]) == common

    def test_the_shuffle_hides_who_is_on_every_platform(self) -> None:
        sizes = {name: replace(trade.sizes, users=200, items=60) for name, trade in PLATFORMS.items()}
        made = crowds(seed=0, sizes=sizes)
        styles = [crowd.people.style for crowd, _ in made.values()]
        same_place = (styles[0] == styles[1]).all(axis=1)
        assert same_place.sum() <= 3  # by luck alone, where 40 would be without the shuffle

    def test_a_short_history_is_a_short_part_of_the_way(self) -> None:
        sizes = Sizes(users=60, items=80, positives=3.0, least=1, most=4)
        rng = np.random.default_rng(0)
        people, items = population(rng, sizes=[sizes])[0], taste.taste_catalogue(rng, count=sizes.items)
        moments = gather(rng, people=people, items=items, sizes=sizes).moments
        assert 0 <= moments.min() < 0.2 and 0.8 < moments.max() <= 1


def ndcg_at_10(crowd: Crowd, *, oracle: bool) -> float:
    """Mean NDCG@10 of everyone's last choice, ranked among all items that they had not chosen before."""
    counts = np.bincount(np.concatenate([chosen[:-1] for chosen in crowd.chosen]), minlength=len(crowd.items))
    gains = []
    for user, chosen in enumerate(crowd.chosen):
        scores = crowd.appeal_now(user) if oracle else counts.astype(float)
        scores[chosen[:-1]] = -np.inf
        rank = int((scores > scores[chosen[-1]]).sum())
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
    return float(np.mean(gains))


class TestWorthLearning:
    @pytest.fixture(scope="class")
    def crowd(self) -> Crowd:
        rng = np.random.default_rng(11)
        people = population(rng, sizes=[LARGE])[0]
        return gather(rng, people=people, items=taste.taste_catalogue(rng, count=LARGE.items), sizes=LARGE)

    def test_who_knows_the_tastes_is_far_above_popularity(self, crowd: Crowd) -> None:
        assert 0.25 < ndcg_at_10(crowd, oracle=True) < 0.5
        assert 0.03 < ndcg_at_10(crowd, oracle=False) < 0.1

    def test_histories_are_as_long_as_the_sizes_say(self, crowd: Crowd) -> None:
        lengths = np.array([len(chosen) for chosen in crowd.chosen])
        assert lengths.min() >= LARGE.least and lengths.max() <= LARGE.most
        assert 20 <= lengths.mean() <= 30

    def test_popularity_is_long_tailed(self, crowd: Crowd) -> None:
        counts = np.sort(np.bincount(np.concatenate(crowd.chosen), minlength=len(crowd.items)))[::-1]
        assert counts[:30].sum() > 0.25 * counts.sum()
        assert counts[150:].sum() < 0.35 * counts.sum()

    def test_recent_choices_tell_more_than_early_ones(self, crowd: Crowd) -> None:
        def agreement(start: int, stop: int | None) -> float:
            mixes = crowd.items.mix
            return float(np.mean([(mixes[chosen[start:stop]] @ mixes[chosen[-1]]).mean() for chosen in crowd.chosen]))

        assert agreement(-5, -1) > 1.5 * agreement(0, 4)
