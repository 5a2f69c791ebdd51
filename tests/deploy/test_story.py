"""docs/deploy.md as one test: a coordinator and three platforms as processes of their own, from invitation to recommendation."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sql

from shared.ledger.audit import audit_run
from shared.ledger.reading import read_ledger
from simulations.worlds.generated import write_world
from tests.deploy.stage import Stage, until

SECURE = [
    "--strategy",
    "secure-sum",
    "--set",
    "secure.threshold=0.6",
    "--set",
    "secure.colluders=0",
    "--set",
    "server.minimum_platforms=2",
]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_world(tmp_path / "world", seed=1, scale=0.2).folder


@pytest.fixture
def news_database(world: Path, postgres: Callable[[str], str]) -> str:
    """The generated news site's tables in a real PostgreSQL."""
    url = postgres("news")
    engine = sql.create_engine(url)
    with sqlite3.connect(world / "news" / "news.db") as source, engine.begin() as target:
        for table in ("clicks", "articles", "readers"):
            cursor = source.execute(f"select * from {table}")
            names, rows = [column[0] for column in cursor.description], cursor.fetchall()
            target.exec_driver_sql(f"create table {table} ({', '.join(f'{name} text' for name in names)})")
            marks = ", ".join(f":{name}" for name in names)
            values = [{name: None if cell is None else str(cell) for name, cell in zip(names, row, strict=True)} for row in rows]
            target.execute(sql.text(f"insert into {table} values ({marks})"), values)
    source.close()
    engine.dispose()
    return url


@pytest.mark.slow
@pytest.mark.deploy
@pytest.mark.timeout(1500)
def test_from_invitation_to_recommendation(
    stage: Stage, world: Path, news_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The coordinator.
    stage.make()
    registry = stage.root / "registry"
    toml = stage.coordinator / "server.toml"
    toml.write_text(toml.read_text().replace('registry = ""', f'registry = "{registry}"'))
    stage.serve()
    assert "healthy" in stage.fedfuse("server", "health", stage.coordinator).stdout

    # Three platforms: CSV, Parquet, PostgreSQL.
    stage.make_platform("shop", "--data", world / "shop" / "events.csv", "--data", world / "shop" / "products.csv")
    video = stage.root / "video-tables"
    video.mkdir()
    pl.read_parquet(world / "video" / "ratings.parquet").write_parquet(video / "ratings.parquet")
    pl.read_ndjson(world / "video" / "films.jsonl").write_parquet(video / "films.parquet")
    stage.make_platform("video", "--data", video)
    stage.environment["NEWS_DATABASE"] = news_database  # a secret would be here; platform.toml names the variable
    stage.make_platform("news", "--url", "${NEWS_DATABASE}")
    assert news_database not in (stage.root / "news" / "platform.toml").read_text()
    # They know each other's identities, for the secure sum: each compares the others' fingerprints and writes them down.
    names = ("shop", "video", "news")
    for name in names:
        stage.trust(name, names)
        # With one colluder among three a round would need all of them, and could lose nobody.
        stage.edit(stage.root / name, "colluders = 1 ", "colluders = 0 ")
    for name in ("video", "news"):
        stage.join(name)
    checked = json.loads(stage.fedfuse("check", stage.root / "shop", "--json").stdout)
    assert checked["platform"] == "shop" and checked["interactions"] > 0
    stage.join("shop")

    # The federation, with a secure sum: it waits for all three. One platform's worker is killed in the middle.
    words = ("run", "--server", stage.coordinator, "--name", "first", "--rounds", "4", "--platforms", "3")
    federation = stage.spawn("run", *words, *stage.tiny(), *SECURE)
    stage.await_online(*names)
    assert stat.S_IMODE((stage.root / "shop" / "socket" / "worker.sock").stat().st_mode) == 0o600
    stage.await_round("first", 1)
    (worker,) = stage.below("video", "client worker")
    worker.kill()
    until(lambda: federation.poll() is not None, "the run is over", stage.logs, seconds=600)
    assert federation.returncode == 0, stage.logs()
    state = stage.state("first")
    assert (state["state"], state["round"]) == ("finished", 4)
    assert {name: line["rounds"] for name, line in state["platforms"].items()} == dict.fromkeys(names, 4)
    assert stage.below("video", "client worker")  # another one, which its supervisor started

    # Every charge is in a ledger, once for each release; an auditor agrees, and so do the coordinator's receipts.
    for name, line in state["platforms"].items():
        ledger = read_ledger(stage.root / name / "worker" / "ledger" / f"{name}.jsonl")
        kinds = [str(entry.kind) for entry in ledger.entries]
        assert kinds == ["popularity", "evaluate", *["train"] * 4, "evaluate"]
        assert ledger.epsilon == pytest.approx(line["epsilon"]) and ledger.epsilon <= 50.0
        assert audit_run(stage.root / name / "worker").ok
    status = stage.status()
    assert {one["name"]: one["left"] >= 0 for one in status["platforms"]} == dict.fromkeys(names, True)

    # The model: published, pulled with the key from the invitation, verified, loaded with stock PEFT, recommending.
    model = stage.root / "pulled"
    pulled = json.loads(
        stage.fedfuse("pull", registry, "--trust", stage.root / "shop" / "models.pub", "--out", model, "--json").stdout
    )
    assert pulled["version"] == 1 and pulled["signer"]
    require_stock_peft(model, stage.backbone)
    user = pl.read_csv(world / "shop" / "events.csv")["customer"][0]
    words = (
        "recommend",
        "--model",
        model,
        "--platform",
        stage.root / "shop" / "platform.toml",
        "--user",
        str(user),
        "--top",
        "5",
        "--json",
    )
    assert len(json.loads(stage.fedfuse(*words).stdout)) == 5

    # A platform that is revoked is out, and reads so.
    stage.fedfuse("revoke", "news", "--server", stage.coordinator)
    until(lambda: stage.processes["news"].poll() is not None, "news has stopped", stage.logs)
    assert stage.processes["news"].returncode == 6
    assert "has revoked this platform" in (stage.root / "news.log").read_text()


def require_stock_peft(model: Path, backbone: str) -> None:
    """What anyone would do with the published folder, and nothing of ours."""
    import torch
    from peft import PeftModel
    from transformers import AutoModel

    base = AutoModel.from_pretrained(backbone, add_pooling_layer=False)
    plain = {name: value.clone() for name, value in base.state_dict().items()}
    tuned = PeftModel.from_pretrained(base, str(model))
    ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        changed = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        untouched = AutoModel.from_pretrained(backbone, add_pooling_layer=False)
        assert all((untouched.state_dict()[name] == value).all() for name, value in plain.items())
        before = untouched(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert torch.isfinite(changed).all()
    assert not torch.allclose(changed, before)
