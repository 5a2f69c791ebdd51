"""What `fedfuse check` shows is what training reads, found by a look at a few users alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.config.platform_file import PlatformFile, load
from client.examples.preview import ALL_MET, ONE_LIKED, preview
from client.model.prepared_platform import read_platform
from client.sources.platform_tables import read_tables
from shared.base.settings import Settings
from shared.model.backbone import EMBEDDED, load_backbone, tokenizer_of

FILE = """
name = "p"
users = 30
[privacy]
epsilon = 8.0
[sources.log]
kind = "interactions"
path = "log.csv"
[sources.items]
kind = "items"
path = "items.csv"
[sources.people]
kind = "profiles"
path = "people.csv"
text = ["town"]
[sources.said]
kind = "reviews"
path = "said.csv"
[sources.friends]
kind = "social"
path = "friends.csv"
influence = 2
friends = 2
"""


@pytest.fixture
def platform(tmp_path: Path) -> PlatformFile:
    random = np.random.default_rng(5)
    rows = [(user, item, time) for user in range(30) for time, item in enumerate(random.permutation(20)[: 1 + user % 7])]
    files = {
        "log.csv": ["user,item,time", *(f"u{user},i{item},{1_600_000_000 + time}" for user, item, time in rows)],
        "items.csv": ["item,title", *(f"i{item},Thing {item}: part" for item in range(20))],
        "people.csv": ["user,town", *(f"u{user},Town {user} by the long river" for user in range(0, 30, 2))],
        "said.csv": ["user,item,text", *(f"u{user},i{item},rather {item}" for user, item, _ in rows[::3])],
        "friends.csv": ["user,friend", *(f"u{user},u{friend}" for user in range(30) for friend in random.permutation(40)[:4])],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "p.toml").write_text(FILE, encoding="utf-8")
    return load(tmp_path / "p.toml")


def test_the_shown_texts_are_those_that_training_reads(platform: PlatformFile) -> None:
    tables, split, catalogue, friends, reader, texts = read_platform(platform, Settings())
    shown = preview(platform, Settings(), read_tables(platform))
    users = [user for user in range(split.users) if len(split.train[user])][:2]
    assert list(shown.users) == [
        {
            "user": tables.user_ids[user],
            "text": texts.words(reader.sequence(user, split.train[user][::-1], serving=False)),
            "held_out": tables.item_titles[split.held[user]] if split.held[user] >= 0 else None,
            "because": "" if split.held[user] >= 0 else ONE_LIKED,
        }
        for user in users
    ]
    assert (shown.item, shown.group_size) == (texts.words(catalogue.sequences[0]), friends.group_size)
    assert shown.evaluated == int((split.held >= 0).sum())
    # Of a budget of eight tokens four are for a profile, which is more than its key and a town.
    assert shown.cut["people"] == (0, 15) and shown.cut["items"] == (0, 20)
    small = preview(platform, Settings.model_validate({"model": {"user_tokens": 8, "item_tokens": 4}}), read_tables(platform))
    assert small.cut["people"] == (15, 15) and small.cut["items"] == (20, 20)
    # The friends' lines are in it, or the test would compare nothing of them.
    assert any(len(friends.shown(user, serving=False)) for user in users)


def test_who_met_all_items_that_are_looked_at_met_few_of_the_catalogue(platform: PlatformFile) -> None:
    """A look at two users knows few items, all of which they have met: they must not be taken for the catalogue."""
    others = {"people.csv": "user,town\na,Rome\n", "said.csv": "user,item,text\na,i0,fine\n", "friends.csv": "user,friend\na,c\n"}
    for name, text in others.items():
        (platform.path.parent / name).write_text(text, encoding="utf-8")
    rows = ["user,item,time", "a,i0,1", "a,i1,2", *(f"b,i{item},{item}" for item in range(20))]
    (platform.path.parent / "log.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shown = preview(platform, Settings(), read_tables(platform))
    assert [(user["user"], user["held_out"]) for user in shown.users] == [("a", "Thing 1: part"), ("b", None)]
    assert [user["because"] for user in shown.users] == ["", ALL_MET]
    rows = [row for row in rows if not row.startswith("b")]
    (platform.path.parent / "log.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shown = preview(platform, Settings(), read_tables(platform))
    assert [user["held_out"] for user in shown.users] == ["Thing 1: part"] and shown.evaluated == 1


@given(st.lists(st.text(max_size=40), max_size=5))
@settings(deadline=None, max_examples=30)
def test_the_plain_tokenizer_gives_the_same_ids(texts: list[str]) -> None:
    whole, plain = load_backbone(EMBEDDED).tokenizer, tokenizer_of(EMBEDDED)
    asked = {"add_special_tokens": False, "truncation": True, "max_length": 16, "return_attention_mask": False}
    ids = plain(texts, **asked)["input_ids"]
    assert ids == (whole(texts, **asked)["input_ids"] if texts else [])
    assert [plain.decode(one, skip_special_tokens=True) for one in ids] == [
        whole.decode(one, skip_special_tokens=True) for one in ids
    ]
    assert (plain.cls_token_id, plain.sep_token_id) == (whole.cls_token_id, whole.sep_token_id)
