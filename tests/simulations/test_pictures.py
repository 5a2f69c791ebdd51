"""The pictures of the generated shop say what its texts do not, and the recommender finds out; mixed up they do not help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from client.config.platform_file import load
from client.examples.split import Split, leave_one_out
from client.recommender.evidence import VECTORS
from client.recommender.lists.explanation import explained
from client.recommender.model_comparison import COMPARED, bootstrap_interval, rank_users
from client.recommender.own_model import fit_own
from client.recommender.platform_model import PlatformModel, ScorePart
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from simulations.worlds.generated import write_world

IMAGES = VECTORS.format("images")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tables, Split]:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=0)
    tables = read_tables(load(folder / "shop.toml"))
    return tables, leave_one_out(tables, seed=0)


def with_pictures(tables: Tables, order: np.ndarray) -> Tables:
    own = tables.item_vectors["images"]
    return replace(
        tables, item_vectors={**tables.item_vectors, "images": replace(own, values=own.values[order], present=own.present[order])}
    )


def test_pictures_help_and_those_of_other_things_do_not(shop: tuple[Tables, Split]) -> None:
    tables, split = shop
    mixed = np.random.default_rng(0).permutation(tables.items)
    bare = replace(tables, item_vectors={name: one for name, one in tables.item_vectors.items() if name != "images"})
    seen, without, wrong = (fit_own(one, split, seed=0).model for one in (tables, bare, with_pictures(tables, mixed)))
    assert seen.weights[IMAGES] > 0 and IMAGES not in without.weights
    ranked = rank_users({"seen": seen, "without": without, "wrong": wrong}, split).quality
    auc = COMPARED.index("auc")
    gain = {name: bootstrap_interval((ranked[name] - ranked["without"])[:, auc], seed=0) for name in ("seen", "wrong")}
    assert gain["seen"].low > 0.005
    assert gain["wrong"].mean < 0.2 * gain["seen"].mean
    reasons = why_of(seen, tables, split)
    assert any(reason.startswith("you liked ") for reason in reasons)


def why_of(model: PlatformModel, tables: Tables, split: Split) -> list[str]:
    history = split.train[0]
    parts = model.parts(replace(model.histories, liked=split.train.some(np.zeros(1, np.int64)), weight=None))
    images: list[ScorePart] = [part for part in parts if part.name == IMAGES]
    order = np.sort(history).tolist()
    return [one.because for one in explained(images, np.arange(tables.items), order, tables.item_titles)]
