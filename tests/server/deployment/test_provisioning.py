"""`fedfuse init server`, `make_invitation`, `approve`, `revoke`: what is made, that no secret gets out, and the list of
platforms."""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import json
import os
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.supercore.fab import Fab
from flwr.supernode.start_client_internal import _verify_fab
from hypothesis import given
from hypothesis import strategies as st

from server.deployment.approved_platforms import Platforms
from server.deployment.bundle import build_bundle, key_id
from server.deployment.certificates import Certificates
from server.deployment.folder import CoordinatorFolder, open_coordinator
from server.deployment.provisioning import create_coordinator_folder, make_invitation
from shared.base.errors import InputError, StorageError
from shared.protocol.fingerprint_words import fingerprint_words
from shared.protocol.invitation import Application, fingerprint_of, parse_application, parse_invitation
from shared.protocol.keys import ed25519_line, load_ed25519, load_node_key, make_ed25519, make_node_key, node_key_from_line
from shared.registry.signing import make_key_pair
from tests.support.called_command import called

ROOT = Path(__file__).parents[3]
NODE = ec.derive_private_key(7, ec.SECP384R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorFolder:
    folder = tmp_path_factory.mktemp("coordinator") / "made"
    return create_coordinator_folder(
        folder, host="fed.example.org", name="spring", port=8000, control_port=8001, listen="0.0.0.0"
    )


def application(folder: Path, name: str, *, federation: str = "spring") -> Application:
    folder.mkdir(parents=True, exist_ok=True)
    line = make_node_key(folder / f"{name}.key")
    identity = make_ed25519(folder / f"{name}-identity.key")
    return Application.make(identity=identity, federation=federation, platform=name, node_key=line, version="0.1.0")


class TestAFolder:
    def test_secrets_are_for_their_owner_alone(self, coordinator: CoordinatorFolder) -> None:
        assert stat.S_IMODE(coordinator.folder.stat().st_mode) == 0o700
        secrets = [path for path in coordinator.folder.rglob("*") if path.suffix == ".key"]
        assert {path.name for path in secrets} == {"ca.key", "server.key", "federation.key", "models.key", "operator.key"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_nobody_else_writes_into_what_holds_keys_whatever_the_umask(self, tmp_path: Path, umask: int) -> None:
        before = os.umask(umask)
        try:
            made = create_coordinator_folder(
                tmp_path / "made", host="fed.example.org", name="spring", port=8000, control_port=8001, listen="0.0.0.0"
            )
        finally:
            os.umask(before)
        for path in made.folder.rglob("*"):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o022, path

    def test_an_address_in_brackets_is_that_address(self, tmp_path: Path) -> None:
        made = create_coordinator_folder(
            tmp_path / "made", host="[2001:db8::1]", name="spring", port=8000, control_port=8001, listen="::"
        )
        assert (made.file.host, made.address) == ("2001:db8::1", "[2001:db8::1]:8000")

    def test_it_can_be_opened(self, coordinator: CoordinatorFolder) -> None:
        found = open_coordinator(coordinator.folder)
        assert (found.file.name, found.address, found.control) == ("spring", "fed.example.org:8000", "127.0.0.1:8001")
        assert os.access(coordinator.folder / "start.sh", os.X_OK)

    def test_it_is_not_written_over(self, coordinator: CoordinatorFolder) -> None:
        with pytest.raises(InputError, match="not empty"):
            create_coordinator_folder(coordinator.folder, host="x", name="spring", port=8000, control_port=8001, listen="0.0.0.0")

    @pytest.mark.parametrize(
        "over",
        [{"host": "two words"}, {"host": "-"}, {"host": ""}, {"name": "Spring!"}, {"port": 0}, {"port": 8001}, {"host": "ü.org"}],
    )
    def test_what_cannot_be(self, tmp_path: Path, over: dict[str, Any]) -> None:
        values = {"host": "h", "name": "n", "port": 8000, "control_port": 8001, "listen": "0.0.0.0", **over}
        with pytest.raises(InputError):
            create_coordinator_folder(tmp_path / "c", **values)
        assert not (tmp_path / "c").exists()

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no coordinator's folder"):
            open_coordinator(tmp_path)
        (tmp_path / "server.toml").write_text('name = "x"\nhost = 3\nsecret = 1\n')
        with pytest.raises(InputError, match="host") as caught:
            open_coordinator(tmp_path)
        assert "secret" in str(caught.value)


class TestCertificates:
    def test_the_servers_is_for_the_host_and_this_machine(self, coordinator: CoordinatorFolder) -> None:
        server = x509.load_pem_x509_certificate(coordinator.certificates.server.read_bytes())
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
        assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
        authority = x509.load_pem_x509_certificate(coordinator.certificates.authority.read_bytes())
        server.verify_directly_issued_by(authority)
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert (constraints.ca, constraints.path_length) == (True, 0)
        assert server.not_valid_before_utc < datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)

    def test_renewing_keeps_the_authority(self, tmp_path: Path) -> None:
        certificates = Certificates.of(tmp_path)
        certificates.make_authority("spring")
        certificates.issue("h", days=-1)
        with pytest.raises(StorageError, match="expired") as caught:
            certificates.require_valid()
        assert "fedfuse server renew" in caught.value.do
        before = certificates.authority.read_bytes(), certificates.server_key.read_bytes()
        certificates.issue("h")
        certificates.require_valid()
        assert 364 < certificates.days_left() <= 365
        assert certificates.authority.read_bytes() == before[0]
        assert certificates.server_key.read_bytes() != before[1]

    def test_an_authority_is_not_replaced(self, coordinator: CoordinatorFolder) -> None:
        with pytest.raises(InputError, match="authority is there"):
            coordinator.certificates.make_authority("spring")


class TestInvitations:
    def test_hold_no_secret(self, coordinator: CoordinatorFolder) -> None:
        text = make_invitation(coordinator, "shop").text()
        assert "PRIVATE" not in text
        for path in coordinator.folder.rglob("*.key"):
            body = [line for line in path.read_text().splitlines() if "---" not in line]
            assert body and not any(line in text for line in body)

    def test_come_back_whole(self, coordinator: CoordinatorFolder) -> None:
        made = make_invitation(coordinator, "shop")
        assert parse_invitation(made.text(), where="x") == made
        assert parse_invitation(made.text().replace("\n", "\r\n").encode(), where="x") == made
        assert made.coordinator == ed25519_line(load_ed25519(coordinator.federation_key).public_key())

    def test_name_the_others(self, tmp_path: Path, coordinator: CoordinatorFolder) -> None:
        mine = CoordinatorFolder(folder=coordinator.folder, file=coordinator.file)
        asked = application(tmp_path, "video")
        Platforms(mine.platforms).approve(asked)
        assert make_invitation(mine, "shop").members == {"video": asked.identity}
        assert make_invitation(mine, "video").members == {}
        assert make_invitation(mine, "shop").fingerprint == make_invitation(mine, "video").fingerprint  # one to compare, for all

    def test_a_name_that_cannot_be(self, coordinator: CoordinatorFolder) -> None:
        with pytest.raises(InputError, match="platform"):
            make_invitation(coordinator, "../shop")

    @pytest.mark.parametrize(
        ("key", "value"),
        [("address", '"nowhere"'), ("address", '"h:0"'), ("address", '"h:99999"'), ("address", '"a b:8000"'), ("format", "2"),
         ("coordinator", '"ssh-rsa AAAA"'), ("authority", '"x"'), ("minimum_version", '"soon"'), ("platform", '"Shop"')],
    )  # fmt: skip
    def test_mistakes_are_named(self, coordinator: CoordinatorFolder, key: str, value: str) -> None:
        import tomli_w

        values = {**make_invitation(coordinator, "shop").model_dump(), "members": {}}
        text = tomli_w.dumps({name: one for name, one in values.items() if name != key})
        with pytest.raises(InputError, match=key):
            parse_invitation(f"{key} = {value}\n" + text, where="x")

    @given(st.binary(max_size=300))
    def test_any_bytes_are_an_input_error(self, data: bytes) -> None:
        for parse in (parse_invitation, parse_application):
            with pytest.raises(InputError):
                parse(data, where="x")

    def test_a_large_one_is_not_read(self) -> None:
        with pytest.raises(InputError, match="larger"):
            parse_invitation(b"#" * (2 << 20), where="x")

    def test_a_node_key_with_a_compressed_point_is_refused(self) -> None:
        key = ec.derive_private_key(7, ec.SECP384R1()).public_key()
        whole = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        kind, blob = NODE.split()
        compressed = base64.b64decode(blob).replace(whole, b"\x02" + whole[1:])
        with pytest.raises(ValueError, match="OpenSSH form"):
            node_key_from_line(f"{kind} {base64.b64encode(compressed).decode()}")

    @given(at=st.integers(0, 10_000), bits=st.integers(1, 255))
    def test_a_changed_application_is_noticed(self, at: int, bits: int) -> None:
        """Any byte changed on the way: refused, or no part that matters."""
        key = Ed25519PrivateKey.from_private_bytes(bytes(32))
        made = Application.make(identity=key, federation="spring", platform="shop", node_key=NODE, version="0.1.0")
        raw = bytearray(made.text().encode())
        raw[at % len(raw)] ^= bits
        try:
            got = parse_application(bytes(raw), where="x")
        except InputError:
            return
        assert (got.federation, got.platform, got.node_key, got.identity) == (
            made.federation, made.platform, made.node_key, made.identity
        )  # fmt: skip


class TestTheListOfPlatforms:
    def test_approve_and_revoke(self, tmp_path: Path) -> None:
        platforms = Platforms(tmp_path / "platforms.json")
        asked = application(tmp_path, "shop")
        platforms.approve(asked)
        assert [one.name for one in platforms.approved()] == ["shop"]
        assert platforms.by_key(asked.node_key) is not None
        assert stat.S_IMODE((tmp_path / "platforms.json").stat().st_mode) == 0o600
        platforms.revoke("shop")
        known = platforms.by_key(asked.node_key)
        assert platforms.approved() == [] and known is not None and known.revoked is not None
        with pytest.raises(InputError, match="no platform 'shop' is approved"):
            platforms.revoke("shop")
        platforms.approve(asked)  # it may be let in again
        assert [one.name for one in platforms.approved()] == ["shop"]

    def test_another_process_sees_it_at_once(self, tmp_path: Path) -> None:
        watching = Platforms(tmp_path / "platforms.json")
        assert watching.all() == []
        asked = application(tmp_path, "shop")
        Platforms(tmp_path / "platforms.json").approve(asked)
        assert watching.by_key(asked.node_key) is not None
        Platforms(tmp_path / "platforms.json").revoke("shop")
        assert watching.approved() == []

    def test_another_key_needs_to_be_said(self, tmp_path: Path) -> None:
        platforms = Platforms(tmp_path / "platforms.json")
        first, second = application(tmp_path / "a", "shop"), application(tmp_path / "b", "shop")
        platforms.approve(first)
        for word in ("", "yes", first.fingerprint):
            with pytest.raises(InputError, match="another key") as caught:
                platforms.approve(second, replace_with=word)
        assert f"--replace {second.fingerprint}" in caught.value.do and "CHANGED" in caught.value.found
        platforms.approve(second, replace_with=second.fingerprint)
        old = platforms.by_key(first.node_key)
        assert old is not None and old.revoked is not None
        assert [one.node_key for one in platforms.approved()] == [second.node_key]

    def test_another_identity_needs_to_be_said(self, tmp_path: Path) -> None:
        """The SuperNode's key is public: whoever knows it can make an application with it and an identity of their own."""
        platforms = Platforms(tmp_path / "platforms.json")
        asked = application(tmp_path, "shop")
        made = platforms.approve(asked)
        platforms.registered(asked.node_key, 4711)
        forged = Application.make(
            identity=Ed25519PrivateKey.generate(), federation="spring", platform="shop", node_key=asked.node_key, version="0.1.0"
        )
        with pytest.raises(InputError, match="another identity"):
            platforms.approve(forged)
        assert [one.identity for one in platforms.approved()] == [made.identity]
        platforms.revoke("shop")
        with pytest.raises(InputError, match="another identity"):
            platforms.approve(forged)
        platforms.approve(asked)
        platforms.registered(asked.node_key, 4711)
        platforms.approve(forged, replace_with=forged.fingerprint)
        assert [(one.identity, one.node) for one in platforms.approved()] == [(forged.identity, 4711)]

    def test_another_spelling_is_the_same_key(self, tmp_path: Path) -> None:
        """Base64 has four spellings of 32 bytes: none of them makes another identity of one."""
        asked = application(tmp_path, "shop")
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        spelt = asked.identity[:-2] + letters[letters.index(asked.identity[-2]) + 1] + "="
        assert base64.b64decode(spelt) == base64.b64decode(asked.identity) and spelt != asked.identity
        got = parse_application(asked.text().replace(asked.identity, spelt), where="x")
        assert got.identity == asked.identity

    def test_keys_and_identities_are_of_one_platform(self, tmp_path: Path) -> None:
        platforms = Platforms(tmp_path / "platforms.json")
        shop = application(tmp_path, "shop")
        platforms.approve(shop)
        identity = load_ed25519(tmp_path / "shop-identity.key")
        other_key = make_node_key(tmp_path / "other.key")
        for node_key in (shop.node_key, other_key):
            stolen = Application.make(
                identity=identity, federation="spring", platform="video", node_key=node_key, version="0.1.0"
            )
            with pytest.raises(InputError, match="belongs to platform 'shop'"):
                platforms.approve(stolen)

    def test_writers_at_one_moment_lose_nothing(self, tmp_path: Path) -> None:
        asked = [application(tmp_path, f"p{number}") for number in range(12)]
        threads = [threading.Thread(target=Platforms(tmp_path / "platforms.json").approve, args=(one,)) for one in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(Platforms(tmp_path / "platforms.json").approved()) == 12

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2, "platforms": []}', '{"format": 1, "platforms": [{}]}'])
    def test_a_damaged_list_is_an_error(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "platforms.json").write_text(content)
        with pytest.raises(StorageError, match="list of platforms"):
            Platforms(tmp_path / "platforms.json").approved()


class TestKeys:
    def test_others_must_not_read_them(self, tmp_path: Path) -> None:
        make_ed25519(tmp_path / "k")
        (tmp_path / "k").chmod(0o640)
        with pytest.raises(StorageError, match="others may read"):
            load_ed25519(tmp_path / "k")

    def test_they_are_not_written_over(self, tmp_path: Path) -> None:
        make_node_key(tmp_path / "k")
        for make in (make_node_key, make_ed25519):
            with pytest.raises(InputError, match="a key is there"):
                make(tmp_path / "k")

    def test_of_many_at_one_moment_one_is_kept(self, tmp_path: Path) -> None:
        """Between a look and a write another had made theirs; it was lost, though its public half was out already."""
        for number in range(10):
            path, gate, made = tmp_path / f"k{number}", threading.Barrier(4), []

            def one(path: Path = path, gate: threading.Barrier = gate, made: list[str] = made) -> None:
                gate.wait()
                with contextlib.suppress(InputError):
                    made.append(make_node_key(path))

            threads = [threading.Thread(target=one) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            key = load_node_key(path).public_key()
            assert made == [key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")]
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}  # and no draft is left

    @pytest.mark.parametrize("there", ["a key", "a link", "a folder", "a dangling link"])
    def test_what_appeared_a_moment_ago_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
        """However late it came: nothing here depends on a look beforehand."""
        path, elsewhere = tmp_path / "k", tmp_path / "elsewhere"
        if there == "a key":
            path.write_text("mine")
        elif there == "a folder":
            path.mkdir()
        else:
            if there == "a link":
                elsewhere.write_text("mine")
            path.symlink_to(elsewhere)
        before = path.lstat()
        monkeypatch.setattr(Path, "exists", lambda self, **how: self.parent == tmp_path.parent or self == tmp_path)
        for make in (make_ed25519, make_node_key, lambda path: make_key_pair(path, tmp_path / "pub")):
            with pytest.raises(InputError, match="already"):
                make(path)
        assert path.lstat() == before and (there != "a link" or elsewhere.read_text() == "mine")
        assert there != "a dangling link" or not os.path.lexists(elsewhere)
        with pytest.raises(InputError, match="same time"):
            monkeypatch.setattr(Path, "is_symlink", lambda self: False)
            make_key_pair(tmp_path / "new.key", path)
        assert path.lstat() == before and not os.path.lexists(tmp_path / "new.key")

    def test_what_is_no_key(self, tmp_path: Path) -> None:
        make_ed25519(tmp_path / "ed")
        make_node_key(tmp_path / "node")
        (tmp_path / "zeros").write_bytes(bytes(100))
        (tmp_path / "huge").write_bytes(bytes(1 << 20))
        for path in tmp_path.iterdir():
            path.chmod(0o600)
        for load, names in ((load_ed25519, ["node", "zeros", "huge"]), (load_node_key, ["ed", "zeros", "huge"])):
            for name in names:
                with pytest.raises(InputError):
                    load(tmp_path / name)


class TestTheBundle:
    def test_holds_nothing_of_the_worker(self) -> None:
        names = zipfile.ZipFile(io.BytesIO(build_bundle().content)).namelist()
        assert sorted(name for name in names if name.startswith("client/")) == [
            "client/__init__.py",
            "client/app.py",
            *sorted(f"client/messenger/{path.name}" for path in (ROOT / "client" / "messenger").glob("*.py")),
        ]
        assert not any(name.startswith(("simulations", "tests")) or name.endswith((".key", ".pem")) for name in names)

    def test_is_the_same_every_time(self) -> None:
        assert build_bundle().digest == build_bundle().digest

    @pytest.mark.parametrize(("module", "heavy"), [("client.app", True), ("server.app", False)])
    def test_its_apps_run_from_it_alone(self, tmp_path: Path, module: str, heavy: bool) -> None:
        zipfile.ZipFile(io.BytesIO(build_bundle().content)).extractall(tmp_path)
        script = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {module} as m; "
            "assert m.__file__.startswith(sys.path[0]), m.__file__; print('torch' in sys.modules)"
        )
        environment = {**os.environ, "PYTHONPATH": ""}
        words = [sys.executable, "-c", script]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if heavy:
            assert done.stdout.strip() == "False"

    def test_flowers_supernode_verifies_the_signature(self) -> None:
        key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        bundle = build_bundle()
        fab = bundle.signed_by(key, now=1_800_000_000.0)
        trusted = {key_id(key.public_key().public_bytes_raw()): ed25519_line(key.public_key())}
        assert fab.verifications["valid_license"]
        assert _verify_fab(fab, trusted)
        assert not _verify_fab(Fab(fab.hash_str, fab.content + b"x", fab.verifications), trusted)
        assert not _verify_fab(bundle.signed_by(other), trusted)
        # Another coordinator's signature under this one's name.
        name = next(iter(trusted))
        forged = {
            name: bundle.signed_by(other).verifications[key_id(other.public_key().public_bytes_raw())],
            "valid_license": "x",
        }
        assert not _verify_fab(Fab(fab.hash_str, fab.content, forged), trusted)

    def test_its_configuration_has_every_setting(self) -> None:
        import tomllib

        from shared.base.settings import Settings, flatten

        project = tomllib.loads(zipfile.ZipFile(io.BytesIO(build_bundle().content)).read("pyproject.toml").decode())
        assert set(flatten(Settings())) <= set(project["tool"]["flwr"]["app"]["config"])


def test_commands_of_the_desk(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    assert called("init", "server", str(folder), "--host", "127.0.0.1", "--name", "spring").returncode == 0
    invited = called("invite", "shop", "--server", str(folder))
    assert parse_invitation(invited.stdout, where="x").platform == "shop"
    assert "fingerprint" in invited.stderr and "fingerprint" not in invited.stdout
    asked = application(tmp_path, "shop")
    (tmp_path / "application.toml").write_text(asked.text())
    for wrong in ("video", "spring"):
        refused = called("approve", wrong, str(tmp_path / "application.toml"), "--server", str(folder))
        assert (refused.returncode, "'shop'" in refused.stderr) == (3, True)
    words = ("approve", "shop", str(tmp_path / "application.toml"), "--server", str(folder))
    for more in ((), ("--fingerprint", "1efb-13e2-7f62-294c-1a0d-0ced-b0ed-11c5")):
        refused = called(*words, *more)  # the fingerprint is shown before anything is done
        assert refused.returncode == 3 and f"fingerprint {asked.fingerprint}" in refused.stdout
        assert not Platforms(folder / "platforms.json").all()
    approved = called(*words, "--fingerprint", fingerprint_words(asked.fingerprint))
    assert (approved.returncode, "when the server starts" in approved.stdout) == (0, True), approved.stderr
    status = json.loads(called("status", "--server", str(folder), "--json").stdout)
    assert [(one["name"], one["standing"], one["connection"]) for one in status["platforms"]] == [("shop", "approved", "unknown")]
    assert status["server"] is False
    (shown,) = [one["fingerprint"] for one in status["platforms"]]
    assert shown == asked.fingerprint == fingerprint_of(asked.identity)  # one fingerprint, wherever it is compared
    for more, said in (
        (("--platforms", "5"), "1 are approved: shop"),
        (("--strategy", "fedavgg"), "no strategy is named 'fedavgg'"),
    ):
        never = called("run", "--server", str(folder), "--rounds", "2", "--name", "r", *more)
        assert never.returncode == 3 and said in never.stderr, never.stderr
    assert not (folder / "runs" / "r").exists()
    assert called("revoke", "shop", "--server", str(folder)).returncode == 0
    again = application(tmp_path / "again", "shop")  # a new folder, with another identity: whoever approves is told
    (tmp_path / "application.toml").write_text(again.text())
    told = called(*words, "--fingerprint", again.fingerprint)
    assert told.returncode == 0 and f"NOTE: shop was approved before, with another identity ({asked.fingerprint}" in told.stdout
    assert called("revoke", "shop", "--server", str(folder)).returncode == 0
    assert called("server", "health", str(folder)).returncode == 1
    late = called(
        "run", "--server", str(folder), "--rounds", "2", "--name", "r", "--platforms", "1", "--set", "server.minimum_platforms=3"
    )
    assert late.returncode == 1 and "minimum_platforms" in late.stderr
