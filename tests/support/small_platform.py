"""A small platform made of CSV files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

WORDS = ("jazz", "rock", "space", "garden", "cooking", "film", "novel", "old", "new", "red", "blue", "river", "city", "likes")


def small_platform(
    folder: Path,
    name: str = "shop",
    *,
    users: int = 30,
    items: int = 12,
    declared: int = 40,
    seed: int = 0,
    extra: str = "",
    files: Mapping[str, str] | None = None,
    privacy: str = "epsilon = 50.0\ndelta = 1e-3",
) -> Path:
    """Write a platform whose users have met three to six items each, and return its platform file.

    Args:
        declared: The number of users that the accounting is of.
        extra: Further lines of the platform file.
        files: Further files beside it, name -> content.
        privacy: Lines of its `[privacy]`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = ["user,item,time"]
    for user in range(users):
        for when, item in enumerate(random.permutation(items)[: int(random.integers(3, 7))]):
            rows.append(f"u{user},i{item},{1_700_000_000 + 1000 * user + when}")
    titles = ["item,title"] + [
        f"i{item},{WORDS[item % len(WORDS)]} {WORDS[(3 * item + 1) % len(WORDS)]} {item}" for item in range(items)
    ]
    written = {f"{name}-events.csv": "\n".join(rows) + "\n", f"{name}-items.csv": "\n".join(titles) + "\n", **(files or {})}
    written[f"{name}.toml"] = (
        f'name = "{name}"\nusers = {declared}\n[privacy]\n{privacy}\n'
        f'[sources.events]\nkind = "interactions"\npath = "{name}-events.csv"\n'
        f'[sources.items]\nkind = "items"\npath = "{name}-items.csv"\n{extra}\n'
    )
    for file, content in written.items():
        (folder / file).write_text(content, encoding="utf-8")
    return folder / f"{name}.toml"
