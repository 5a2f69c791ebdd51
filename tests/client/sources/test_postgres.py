"""A real PostgreSQL as a source: its types, its rights, its errors, and rows that are streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sql

from client.config.platform_file import load
from client.setup.schema_inference import guess
from client.setup.table_preview import sample_database
from client.sources.platform_tables import read_tables
from shared.base.errors import InputError

SECRET = "zebrafinch-secret"


@pytest.fixture(scope="module")
def shop(postgres: Callable[[str], str]) -> str:
    url = postgres("shop")
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        for statement in (
            "create schema crm",
            "create table orders (id bigserial primary key, customer uuid, sku text, what text, at timestamptz, price numeric)",
            """insert into orders (customer, sku, what, at, price)
               select ('00000000-0000-0000-0000-' || lpad(mod(n, 9)::text, 12, '0'))::uuid, 's' || mod(n, 7),
                      case when mod(n, 3) = 0 then 'buy' else 'view' end,
                      timestamptz '2026-01-01 00:00+02' + n * interval '1 hour', n
               from generate_series(1, 90) n""",
            "create table products (sku text primary key, name text, tags text[], facts jsonb, picture real[])",
            """insert into products select 's' || n, 'thing ü ' || n, array['a', 'b'], '{"x": 1}', array[n, 1.5]
               from generate_series(0, 6) n""",
            "create view crm.people as select distinct customer, 'x'::text as country from orders",
            f"create role reader login password '{SECRET}'",
            "grant select on products to reader",
        ):
            connection.exec_driver_sql(statement)
    engine.dispose()
    return url


def platform(tmp_path: Path, url: str, extra: str = "") -> Path:
    path = tmp_path / "shop.toml"
    path.write_text(
        'name = "shop"\nusers = 10\n[privacy]\nepsilon = 8.0\n'
        f'[sources.orders]\nkind = "interactions"\nurl = {json.dumps(url)}\ntable = "orders"\n'
        'columns = { user = "customer", item = "sku", event = "what", time = "at" }\nevents = { view = 0.2, buy = 1.0 }\n'
        f'[sources.products]\nkind = "items"\nurl = {json.dumps(url)}\nquery = "select sku, name, tags from products"\n'
        f'columns = {{ item = "sku", title = "name", category = "tags" }}\n{extra}',
        encoding="utf-8",
    )
    return path


def test_its_types_are_read_as_they_are_meant(shop: str, tmp_path: Path) -> None:
    extra = (
        f'[sources.pictures]\nkind = "vectors"\nurl = {json.dumps(shop)}\ntable = "products"\n'
        'columns = { item = "sku", vector = "picture" }\nbound = 10.0\n'
    )
    read = read_tables(load(platform(tmp_path, shop, extra)))
    assert (read.users, read.items) == (9, 7)
    assert read.user_ids[0].startswith("00000000-0000-0000-0000-")
    assert sorted(read.item_titles)[0].startswith("thing ü")
    assert read.interactions.time is not None
    # 2026-01-01 00:00+02 is 2025-12-31 22:00 UTC; hours later.
    assert int(read.interactions.time.min()) >= 1767218400
    orders = next(report for report in read.reports if report.source == "orders")
    assert orders.read == 90
    pictures = next(report for report in read.reports if report.source == "pictures")
    assert pictures.kept == 7


def test_nothing_is_written(shop: str, tmp_path: Path) -> None:
    engine = sql.create_engine(shop)
    with engine.connect() as connection:
        before = connection.exec_driver_sql("select sum(n_tup_ins + n_tup_upd + n_tup_del) from pg_stat_user_tables").scalar()
        read_tables(load(platform(tmp_path, shop)))
        connection.rollback()
        after = connection.exec_driver_sql("select sum(n_tup_ins + n_tup_upd + n_tup_del) from pg_stat_user_tables").scalar()
    engine.dispose()
    assert before == after


def test_tables_are_drafted(shop: str) -> None:
    found = {sample.name: guess(sample) for sample in sample_database(shop)}
    assert set(found) == {"orders", "products"}
    orders, products = found["orders"], found["products"]
    assert orders is not None and orders.kind == "interactions"
    assert orders.columns == {"user": "customer", "item": "sku", "time": "at", "event": "what"}
    assert products is not None


def test_rights_and_passwords(shop: str, tmp_path: Path) -> None:
    url = sql.make_url(shop).set(username="reader", password=SECRET).render_as_string(hide_password=False)
    with pytest.raises(InputError, match="permission denied") as caught:
        read_tables(load(platform(tmp_path, url)))
    assert SECRET not in str(caught.value)
    nowhere = sql.make_url(shop).set(host="127.0.0.1", port=1, query={}).set(username="reader", password=SECRET)
    with pytest.raises(InputError) as caught:
        read_tables(load(platform(tmp_path, nowhere.render_as_string(hide_password=False))))
    assert SECRET not in str(caught.value)


def test_a_time_that_python_cannot_hold_costs_its_row_alone(postgres: Callable[[str], str], tmp_path: Path) -> None:
    """One row's 'infinity', or a year after 9999, made the driver refuse the whole answer."""
    url = postgres("odd")
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("create table orders (customer numeric(30), sku text, at timestamptz, day date)")
        connection.exec_driver_sql(
            """insert into orders values (12345678901234567890123, 's1', '2026-01-01 00:00+02', '2026-01-01'),
               (7.0, 's1', 'infinity', 'infinity'), (8, 's2', '20000-01-01', '20000-01-01'),
               (12345678901234567890124, 's2', '2026-01-01 00:00', '2026-01-02')"""
        )
    engine.dispose()
    path = tmp_path / "shop.toml"
    for time in ("at", "day"):
        path.write_text(
            'name = "shop"\nusers = 10\n[privacy]\nepsilon = 8.0\n'
            f'[sources.orders]\nkind = "interactions"\nurl = {json.dumps(url)}\ntable = "orders"\n'
            f'columns = {{ user = "customer", item = "sku", time = "{time}" }}\n'
        )
        read = read_tables(load(path))
        assert list(read.user_ids) == ["12345678901234567890123", "12345678901234567890124"]
        assert {drop.reason: drop.rows for drop in read.reports[0].dropped} == {"impossible time": 2}
        assert read.interactions.time is not None
        assert read.interactions.time.tolist()[0] == {"at": 1767218400, "day": 1767225600}[time]


def test_a_table_that_is_not_there(shop: str, tmp_path: Path) -> None:
    path = platform(tmp_path, shop)
    path.write_text(path.read_text().replace('table = "orders"', 'table = "order"'))
    with pytest.raises(InputError, match="order"):
        read_tables(load(path))


def test_a_query_of_another_schema(shop: str, tmp_path: Path) -> None:
    extra = (
        f'[sources.people]\nkind = "profiles"\nurl = {json.dumps(shop)}\nquery = "select * from crm.people"\n'
        'columns = { user = "customer" }\ntext = ["country"]\n'
    )
    people = next(report for report in read_tables(load(platform(tmp_path, shop, extra))).reports if report.source == "people")
    assert people.kept == 9


def test_a_query_is_the_persons_own(shop: str, tmp_path: Path) -> None:
    """Percent signs, colons and casts are what they are in SQL, and no parameters."""
    path = platform(tmp_path, shop)
    query = "select sku, name, tags from products where name like '%thing%' and '10:30' = '10:30'::text and ' :x' <> '%(y)s'"
    path.write_text(path.read_text().replace("select sku, name, tags from products", query))
    assert read_tables(load(path)).items == 7
