"""What a run keeps on disk between phases: sealed shares, chosen items and sums come back as they were, or not at all."""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.run.local_round import _noise_of
from server.run.preference_store import PreferenceStore
from server.run.share_store import MailFolder
from shared.base.errors import StorageError
from shared.preferences.popularity_axis import PopularityAxis
from shared.preferences.shared_preferences import SharedPreferences
from shared.preferences.summed_preferences import ChosenItems, PreferenceQuestion, PreferenceSum
from shared.preferences.taste_map import TasteMap
from shared.secagg.fixed_point import FixedPoint
from shared.secagg.messages import Parcel

PARCELS = [Parcel(sender=sender, sealed=bytes([sender]) * size) for sender, size in ((7, 3), (2, 1), (11, 300))]


def test_parcels_come_by_sender_and_the_last_of_each_counts(tmp_path: Path) -> None:
    mail = MailFolder(tmp_path / "mail")
    assert mail.parcels(3) == ()
    for parcel in [Parcel(sender=2, sealed=b"before"), *PARCELS]:
        mail.put(parcel, receiver=3)
    mail.put(PARCELS[0], receiver=30)
    assert mail.parcels(3) == (PARCELS[1], PARCELS[0], PARCELS[2]) and mail.parcels(30) == (PARCELS[0],)
    assert MailFolder(tmp_path / "mail").parcels(3) == mail.parcels(3)  # another process
    assert stat.S_IMODE((tmp_path / "mail").stat().st_mode) == 0o700
    mail.discard(3)
    mail.discard(3)
    assert mail.parcels(3) == () and mail.parcels(30) == (PARCELS[0],)
    mail.empty()
    assert mail.parcels(30) == ()


@given(st.integers(0, 400))
@settings(deadline=None)
def test_of_a_torn_file_the_whole_parcels_are_there(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    mail = MailFolder(tmp_path_factory.mktemp("mail"))
    ends = []
    for parcel in PARCELS:
        mail.put(parcel, receiver=0)
        ends.append((ends[-1] if ends else 0) + 8 + len(parcel.sealed))
    (path,) = mail._folder.iterdir()
    assert path.stat().st_size == ends[-1]
    path.write_bytes(path.read_bytes()[:length])
    whole = [parcel for parcel, end in zip(PARCELS, ends, strict=True) if end <= length]
    assert mail.parcels(0) == tuple(sorted(whole, key=lambda parcel: parcel.sender))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "mail").write_text("a file")
    with pytest.raises(StorageError, match="sealed shares cannot be written"):
        MailFolder(tmp_path / "mail").put(PARCELS[0], receiver=0)


def chosen() -> ChosenItems:
    axis = PopularityAxis(direction=np.array([0.6, 0.0, 0.8], np.float32), share=0.25)
    return ChosenItems(items=np.array([3, 5, 2**64 - 1], np.uint64), axis=axis)


def test_what_was_chosen_is_asked_again_after_a_break(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path)
    assert store.chosen() is None
    store.choose(chosen())
    found = PreferenceStore(tmp_path).chosen()
    assert found is not None and found.axis.share == 0.25
    np.testing.assert_array_equal(found.items, chosen().items)
    np.testing.assert_array_equal(found.axis.direction, chosen().axis.direction)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="chosen items cannot be read"):
        store.chosen()


def test_sums_are_kept_and_whoever_watches_is_told(tmp_path: Path) -> None:
    told: list[Any] = []
    store = PreferenceStore(tmp_path, told=lambda *both: told.append(both))
    assert store.load() is None and store.load_taste() is None
    matrix = np.array([[1.0, 0.5], [0.5, 2.0]], np.float32)
    taste = TasteMap(matrix=matrix, noise=0.5, users=9, backbone="b", backbone_sha256="", width=4, item_tokens=8)
    store.save_taste(taste)
    assert store.load() is None
    made = SharedPreferences(
        items=chosen().items, factors=np.ones((1, 3), np.float32), popularity=np.ones(3, np.float32), noise=0.5, users=9
    )
    store.save(made)
    kept, map_ = store.load(), store.load_taste()
    assert kept is not None and np.array_equal(kept.factors, made.factors) and map_ is not None
    assert np.array_equal(map_.matrix, matrix)
    question, answer = PreferenceQuestion(directions=2), PreferenceSum(vector=np.zeros(3), noise=1.0, users=9)
    assert store.watched(lambda asked: answer if asked is question else pytest.fail())(question) is answer
    assert told == [(question, answer)]

    def ask(asked: PreferenceQuestion) -> PreferenceSum:
        return answer

    assert PreferenceStore(tmp_path).watched(ask) is ask


def test_noises_of_platforms_add_up_as_variances_and_who_adds_none_counts_for_none() -> None:
    points = [FixedPoint.own(dimension=10, clip=1.0, noise_multiplier=multiplier).noise for multiplier in (0.5, 2.0)]
    assert points == pytest.approx([0.5, 2.0], rel=1e-2)
    assert _noise_of([0.5, 2.0, 0.0], 10) == pytest.approx(math.hypot(*points))
    assert _noise_of([], 10) == _noise_of([0.0], 10) == 0.0
