"""The ServerApp of a hostile coordinator: gives its ClientApp orders, and keeps what comes home."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from shared.base.settings import Settings, flatten, unflatten
from shared.model.adapter import initial

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    home = Path(os.environ["FEDFUSE_SERVER"])
    while not list(grid.get_node_ids()):
        time.sleep(0.2)
    known = flatten(Settings())
    settings = unflatten({key: value for key, value in context.run_config.items() if key in known}, where="hostile")
    arrays = ArrayRecord({name: Array(value) for name, value in initial(settings).items()})
    record = RecordDict({"orders": ConfigRecord({"what": (home / "orders.json").read_text()}), "adapter": arrays})
    nodes = list(grid.get_node_ids())
    ids = list(grid.push_messages([Message(record, node, MessageType.QUERY, ttl=600.0, group_id="loot") for node in nodes]))
    replies: list[Message] = []
    end = time.monotonic() + 500
    while len(replies) < len(ids) and time.monotonic() < end:
        replies += list(grid.pull_messages(ids))
        time.sleep(0.2)
    loot = [
        {"error": reply.error.code} if reply.has_error() else json.loads(str(reply.content["loot"]["json"])) for reply in replies
    ]
    (home / f"loot-{context.run_config['run']}.json").write_text(json.dumps(loot))
