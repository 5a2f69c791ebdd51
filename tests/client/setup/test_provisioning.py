"""`fedfuse init client`: keys for their owner alone, and a platform file that is right as often as the columns say enough."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from client.config.deployment_folder import open_deployment
from client.config.platform_file import UNDECLARED_CATALOGUE, PlatformFile, load
from client.setup.provisioning import accept_invitation, create_platform_folder
from client.setup.schema_inference import Guess, guess
from client.setup.table_preview import Sample, sample_database, sample_file
from client.sources.platform_tables import read_tables
from client.supernode.sandbox import Wall
from client.supernode.supervisor import require_wall
from shared.base.errors import InputError
from shared.protocol.invitation import Invitation, parse_application
from shared.protocol.keys import ed25519_line, load_ed25519, load_node_key

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SECRET = "hunter2-zebrafinch"


@pytest.fixture(scope="module")
def invitation() -> Invitation:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    signed = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    return Invitation(
        federation="spring",
        platform="shop",
        address="fed.example.org:8000",
        minimum_version="0.1.0",
        coordinator=ed25519_line(KEY.public_key()),
        models=ed25519_line(KEY.public_key()),
        authority=signed.public_bytes(Encoding.PEM).decode(),
        members={"video": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
    )


def tables(folder: Path) -> Path:
    """A shop's tables, in every format, with columns as people name them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orders.csv").write_text(
        "orderNo;customerId;sku;action;created_at\n"
        + "".join(f"{n};c{n % 5};s{n % 7};{('view', 'buy')[n % 2]};2026-01-0{1 + n % 9}\n" for n in range(40))
    )
    (folder / "products.tsv").write_text(
        "sku\tname\tdepartment\tunit_price\n" + "".join(f"s{n}\tthing {n}\ttoys\t{n}.5\n" for n in range(7))
    )
    (folder / "customers.jsonl").write_text(
        "".join(f'{{"customerId": "c{n}", "country": "x", "age": {20 + n}}}\n' for n in range(5))
    )
    pl.DataFrame({"sku": [f"s{n}" for n in range(7)], "embedding": [[float(n), 1.0] for n in range(7)]}).write_parquet(
        folder / "pics.parquet"
    )
    (folder / "trusts.csv").write_text("user_id,trusted\nc1,c2\n")
    (folder / "weather.csv").write_text("day,rain\n1,2\n")
    return folder


def made(tmp_path: Path, invitation: Invitation, **over: Any) -> tuple[PlatformFile, list[tuple[Sample, Guess | None]]]:
    values: dict[str, Any] = {"data": [tables(tmp_path / "data")], "users": 1000, "epsilon": 8.0, "delta": 1e-5, **over}
    result = create_platform_folder(tmp_path / "platform", invitation, **values)
    return load(result.deployment.file), result.guesses


class TestAPlatform:
    def test_its_file_can_be_used_as_it_is(self, tmp_path: Path, invitation: Invitation) -> None:
        file, guesses = made(tmp_path, invitation)
        kinds = {name: source.kind for name, source in file.sources.items()}
        assert kinds == {
            "orders": "interactions", "products": "items", "customers": "profiles", "pics": "vectors", "trusts": "social"
        }  # fmt: skip
        assert [sample.name for sample, found in guesses if found is None] == ["weather"]
        orders = file.sources["orders"]
        assert (orders.columns, orders.separator) == (
            {"user": "customerId", "item": "sku", "event": "action", "time": "created_at"}, ";"
        )  # fmt: skip
        assert (file.name, file.users, file.privacy.epsilon) == ("shop", 1000, 8.0)
        assert file.federation.coordinator == invitation.coordinator
        assert file.federation.maximum_epsilon_per_run == 4.0  # no run takes all, whoever asks
        assert file.federation.identities == {}  # the coordinator's word alone does not make anyone trusted
        read = read_tables(file)
        assert (read.users, read.items) == (5, 7)

    def test_secrets_are_for_their_owner_alone(self, tmp_path: Path, invitation: Invitation) -> None:
        made(tmp_path, invitation)
        deployment = open_deployment(tmp_path / "platform")
        for path in (deployment.identity, deployment.node_key):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for folder in (deployment.folder, deployment.worker, deployment.node):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        public = parse_application(deployment.application.read_bytes(), where="x")
        text = deployment.application.read_text()
        for key in (deployment.identity, deployment.node_key):
            assert not any(line in text for line in key.read_text().splitlines() if "---" not in line)
        # The keys that go out are those that stay.
        import base64

        assert base64.b64decode(public.identity) == load_ed25519(deployment.identity).public_key().public_bytes_raw()
        assert load_node_key(deployment.node_key).curve.name == "secp384r1"

    def test_what_the_invitation_says_is_in_its_place(self, tmp_path: Path, invitation: Invitation) -> None:
        import yaml

        made(tmp_path, invitation)
        deployment = open_deployment(tmp_path / "platform")
        assert deployment.invited() == invitation
        assert deployment.authority.read_text() == invitation.authority
        assert list(yaml.safe_load(deployment.trusted.read_text()).values()) == [invitation.coordinator]
        models = load_pem_public_key(deployment.model_key.read_bytes())
        assert models == KEY.public_key()

    def test_a_newer_invitation_is_for_the_same_platform(self, tmp_path: Path, invitation: Invitation) -> None:
        made(tmp_path, invitation)
        deployment = open_deployment(tmp_path / "platform")
        accept_invitation(deployment, invitation.model_copy(update={"members": {}, "minimum_version": "0.2.0"}))
        assert deployment.invited().minimum_version == "0.2.0"
        moved = invitation.model_copy(update={"address": "new.example.org:1"})
        accept_invitation(deployment, moved, replace={"address": "new.example.org:1"})
        assert deployment.invited().address == "new.example.org:1"
        with pytest.raises(InputError, match="is for platform 'video'"):
            accept_invitation(deployment, invitation.model_copy(update={"platform": "video"}))

    def test_nothing_is_made_of_what_cannot_be_used(self, tmp_path: Path, invitation: Invitation) -> None:
        (tmp_path / "w.csv").write_text("day,rain\n1,2\n")
        with pytest.raises(InputError, match="no table looks like interactions") as caught:
            made(tmp_path, invitation, data=[tmp_path / "w.csv"])
        assert "rain" in str(caught.value)
        assert not (tmp_path / "platform").exists()
        (tmp_path / "platform").mkdir()
        (tmp_path / "platform" / "x").touch()
        with pytest.raises(InputError, match="not empty"):
            made(tmp_path, invitation, data=[tmp_path / "data"])

    @pytest.mark.parametrize("over", [{"epsilon": 0.0}, {"epsilon": -1.0}, {"delta": 0.0}])
    def test_a_wrong_number_leaves_nothing_and_can_be_corrected(
        self, tmp_path: Path, invitation: Invitation, over: dict[str, float]
    ) -> None:
        right = {"users": 1000, "epsilon": 8.0, "delta": 1e-5}
        data = [tables(tmp_path / "data") / "orders.csv", tmp_path / "data" / "products.tsv"]
        with pytest.raises(InputError) as caught:
            create_platform_folder(tmp_path / "platform", invitation, data=data, **{**right, **over})  # type: ignore[arg-type]
        assert caught.value.where == "the options"
        assert not (tmp_path / "platform").exists()
        create_platform_folder(tmp_path / "platform", invitation, data=data, **right)  # type: ignore[arg-type]

    def test_bounds_are_never_the_datas_own(self, tmp_path: Path, invitation: Invitation) -> None:
        """A bound that is taken from the rows would tell of them; only the person may declare one."""
        made(tmp_path, invitation)
        text = (tmp_path / "platform" / "platform.toml").read_text()
        assert "# numbers = { unit_price = { min = 0, max = 100" in text or "# numbers" in text
        assert not any(line.startswith("numbers") for line in text.splitlines())
        assert "users = 1000" in text  # declared, and not the five that were found

    def test_the_catalogue_is_declared_or_said_to_be_missing(self, tmp_path: Path, invitation: Invitation) -> None:
        file, _ = made(tmp_path, invitation)
        assert file.catalogue_declared and file.warnings == ()
        assert "the ids of 'products'" in (tmp_path / "platform" / "platform.toml").read_text()

        (tmp_path / "clicks.jsonl").write_text('{"user": "a", "item": "i"}\n{"user": "b", "item": "j"}\n')
        result = create_platform_folder(
            tmp_path / "bare", invitation, data=[tmp_path / "clicks.jsonl"], users=10, epsilon=8.0, delta=1e-5
        )
        bare, text = load(result.deployment.file), result.deployment.file.read_text()
        assert bare.catalogue == "from-interactions" and bare.warnings == (UNDECLARED_CATALOGUE,)
        assert read_tables(bare).catalogue_public is False
        # The line that the draft proposes is one that can be used.
        proposed = next(line.removeprefix("#").strip() for line in text.splitlines() if "items.csv" in line)
        (tmp_path / "bare" / "items.csv").write_text("item\ni\n")
        result.deployment.file.write_text(
            "\n".join(proposed if line.startswith('catalogue = "from') else line for line in text.splitlines())
        )
        mended = load(result.deployment.file)
        assert mended.catalogue_declared and mended.warnings == ()
        assert list(read_tables(mended).item_ids) == ["i"] and read_tables(mended).catalogue_public

    def test_users_vectors_get_a_width(self, tmp_path: Path, invitation: Invitation) -> None:
        pl.DataFrame({"user": ["a", "b"], "item": ["i", "j"]}).write_csv(tmp_path / "clicks.csv")
        pl.DataFrame({"user": ["a", "b"], "voice": [[1.0, 2.0], [0.0, 1.0]]}).write_parquet(tmp_path / "voices.parquet")
        data = [tmp_path / "clicks.csv", tmp_path / "voices.parquet"]
        result = create_platform_folder(tmp_path / "bare", invitation, data=data, users=10, epsilon=8.0, delta=1e-5)
        file = load(result.deployment.file)
        assert file.sources["voices"].width == 2  # type: ignore[union-attr]
        assert read_tables(file).user_vectors["voices"].values.shape == (2, 2)


class TestDatabases:
    @pytest.fixture
    def database(self, tmp_path: Path) -> Path:
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as connection:
            connection.execute('create table "Order Lines" (buyer text, isbn text, rating real, "when" text)')
            rows = [(f"b{n % 4}", f"i{n % 6}", n % 5 + 1.0, f"2026-01-0{1 + n % 9} 10:00:00") for n in range(30)]
            connection.executemany('insert into "Order Lines" values (?, ?, ?, ?)', rows)
            connection.execute("create table books (id text, headline text, body text)")
            connection.executemany("insert into books values (?, ?, ?)", [(f"i{n}", f"book {n}", "words") for n in range(6)])
        connection.close()
        return path

    def test_every_table_is_looked_at(self, tmp_path: Path, database: Path, invitation: Invitation) -> None:
        file, _ = made(tmp_path, invitation, data=[], urls=[f"sqlite:///{database}"])
        assert {name: source.kind for name, source in file.sources.items()} == {"order-lines": "interactions", "books": "items"}
        assert file.sources["books"].columns == {"item": "id", "title": "headline", "description": "body"}
        read = read_tables(file)
        assert (read.users, read.items) == (4, 6)

    def test_a_password_stays_a_variable(
        self, tmp_path: Path, database: Path, invitation: Invitation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SHOP_DATABASE", str(database))
        file, _ = made(tmp_path, invitation, data=[], urls=["sqlite:///${SHOP_DATABASE}"])
        assert "${SHOP_DATABASE}" in (tmp_path / "platform" / "platform.toml").read_text()
        assert str(database) in (file.sources["books"].url or "")

    @pytest.mark.parametrize(
        "url", [f"postgresql://u:{SECRET}@127.0.0.1:1/x", f"nonsense:{SECRET}", f"sqlite:////nowhere/{SECRET}/x.db"]
    )
    def test_errors_never_quote_a_password(self, url: str) -> None:
        with pytest.raises(InputError) as caught:
            list(sample_database(url))
        assert SECRET not in str(caught.value).replace(f"/nowhere/{SECRET}", "")

    def test_a_variable_that_is_not_set_is_named(self) -> None:
        with pytest.raises(InputError, match="environment variable NO_SUCH_PASSWORD is not set") as caught:
            list(sample_database(f"postgresql://u:${{NO_SUCH_PASSWORD}}{SECRET}@127.0.0.1:1/x"))
        assert SECRET not in str(caught.value)

    def test_a_table_that_is_not_there(self, database: Path) -> None:
        with pytest.raises(InputError, match="no table 'orders'") as caught:
            list(sample_database(f"sqlite:///{database}", ["orders"]))
        assert "books" in caught.value.do


class TestSamples:
    @pytest.mark.parametrize(
        ("content", "keys"),
        [
            (b"user,item\na,b\n", {}),
            (b"user;item\na;b\n", {"separator": ";"}),
            (b"user::item\na::b\n", {"separator": "::"}),
            ("user,item\nü,b\n".encode("latin-1"), {"encoding": "cp1252"}),
        ],
    )
    def test_separator_and_encoding_are_found(self, tmp_path: Path, content: bytes, keys: dict[str, str]) -> None:
        path = tmp_path / "t.csv"
        path.write_bytes(content)
        sample = sample_file(path)
        assert dict(sample.keys) == {"path": str(path), **keys}
        assert sample.frame.columns == ["user", "item"]

    def test_only_the_beginning_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        with path.open("w") as file:
            file.write("user,item\n")
            for number in range(600_000):
                file.write(f"u{number},i{number}\n")
        assert sample_file(path).frame.height == 5000

    def test_numbers_of_a_text_file_are_numbers(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("user,item,rating\na,b,4\nc,d,\n")
        assert sample_file(tmp_path / "t.csv").frame.schema["rating"] == pl.Float64


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (["userId", "movieId", "rating", "timestamp"], "interactions"),
        (["User-ID", "ISBN", "Book-Rating"], "interactions"),
        (["ISBN", "Book-Title", "Book-Author"], "items"),
        (["user_id", "friend_id"], "social"),
        (["head", "relation", "tail"], "knowledge"),
        (["a", "b"], None),
    ],
)
def test_names_of_columns_say_what_a_table_is(columns: list[str], kind: str | None) -> None:
    frame = pl.DataFrame({name: ["1", "2"] if "ating" not in name else [1.0, 5.0] for name in columns})
    found = guess(Sample(name="t", keys={"path": "t.csv"}, frame=frame))
    assert (found.kind if found else None) == kind


def test_reviews_are_told_from_ratings(make_frame: Callable[[str], pl.DataFrame]) -> None:
    assert getattr(guess(Sample(name="t", keys={}, frame=make_frame("what a lovely book"))), "kind", None) == "reviews"
    assert getattr(guess(Sample(name="t", keys={}, frame=make_frame("x"))), "kind", None) == "interactions"


@pytest.fixture
def make_frame() -> Callable[[str], pl.DataFrame]:
    return lambda text: pl.DataFrame({"user": ["a", "b"], "item": ["c", "d"], "text": [text, text]})


def test_a_start_without_a_wall_must_be_asked_for() -> None:
    none, old, new = Wall(landlock=0, sockets=False), Wall(landlock=3, sockets=False), Wall(landlock=6, sockets=True)
    whole = require_wall(wall=new, users=(None, None), allowed=False)
    assert "Landlock 6 and seccomp" in whole and "NOT closed" not in whole
    partial = require_wall(wall=old, users=(None, None), allowed=False)  # what is missing is never silent
    assert all(word in partial for word in ("Landlock 3", "NOT closed", "Unix sockets", "TCP", "signals"))
    assert "NOT closed" in require_wall(wall=old, users=(1, 2), allowed=False)
    assert "another user, and not caged" in require_wall(wall=none, users=(1, 2), allowed=False)
    for users in ((None, None), (1, 1), (1, None)):
        with pytest.raises(InputError, match="nothing would keep"):
            require_wall(wall=none, users=users, allowed=False)
    assert "NO WALL" in require_wall(wall=none, users=(None, None), allowed=True)


def test_other_platforms_are_trusted_by_a_person(tmp_path: Path, invitation: Invitation) -> None:
    from client.config.trusted_peers import identities_in, read_peers, trust_identities
    from shared.protocol.invitation import fingerprint_of

    made(tmp_path, invitation)
    folder = tmp_path / "platform"
    (tmp_path / "video").mkdir()
    named = invitation.model_copy(update={"platform": "video"})
    other = create_platform_folder(tmp_path / "video" / "p", named, data=[tmp_path / "data"], users=10, epsilon=1.0, delta=1e-5)
    found = identities_in(other.deployment.application, federation="spring")
    assert found == {"video": other.application.identity}
    assert identities_in(folder / "invitation.toml", federation="spring") == invitation.members
    assert trust_identities(folder / "peers.toml", found) == found
    assert trust_identities(folder / "peers.toml", found) == {}
    assert load(folder / "platform.toml").federation.identities == found
    assert read_peers(folder / "peers.toml") == found
    assert fingerprint_of(other.application.identity) != fingerprint_of(invitation.members["video"])
    (folder / "peers.toml").write_text("video = 3")
    with pytest.raises(InputError, match="peers"):
        load(folder / "platform.toml")
    with pytest.raises(InputError):
        identities_in(folder / "platform.toml", federation="spring")
