"""What was read of a platform, as a test compares it."""

from __future__ import annotations

from client.sources.tables import Tables


def rows_of(tables: Tables) -> dict[str, list[str]]:
    """User -> items, sorted."""
    log = tables.interactions
    return {
        user: sorted(tables.item_ids[item] for item in log.item[log.offsets[at] : log.offsets[at + 1]])
        for at, user in enumerate(tables.user_ids)
    }
