"""What version 0.1.0 left behind is read, and what cannot go on is refused with words that say what to do.

`support/state-0.1.0.tar.gz` was made by that version's own commands, before ledgers were signed (format 2): a coordinator with
two platforms, of which one is revoked; the platforms' folders, with keys, an identity that is trusted, a ledger of three charges
and the state of a run; and a registry with a signed model. `video/platform.toml` names a key that has another name since.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from client.config.deployment_folder import open_deployment
from client.config.platform_file import load
from client.config.trusted_peers import read_peers
from client.privacy.ledger_writer import LedgerWriter
from client.run.run_state import load_run_state
from client.secagg.persistent_participant import identity_of
from client.setup.provisioning import accept_invitation, invitation_changes
from client.supernode.checkup import check_platform
from client.supernode.status import state_of
from server.deployment.approved_platforms import Platforms
from server.deployment.authority_rotation import RotationStage, begin_rotation, rotation_stage, tell_authorities, trusted_bundle
from server.deployment.checkup import check_coordinator
from server.deployment.folder import open_coordinator
from server.deployment.provisioning import make_invitation
from server.registry.pull import pull_model
from server.run import checkpoint
from server.run.last_receipts import LastReceipts
from shared.base.errors import InputError, StorageError
from shared.doctor.findings import Level
from shared.ledger.format import IdentityRecord, canonical_json
from shared.ledger.reading import parse_ledger, read_ledger
from shared.privacy.releases import Release, ReleaseKind
from shared.protocol.invitation import read_application
from shared.protocol.keys import load_ed25519, load_node_key
from shared.registry.signing import load_trusted

STATE = Path(__file__).parent / "support" / "state-0.1.0.tar.gz"
SPENT = 0.2080


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(STATE) as archive:
        # Debian 12's Python 3.11.2 is from before filters; what is taken out here is our own.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return tmp_path


def test_a_coordinators_folder_is_read(old: Path) -> None:
    coordinator = open_coordinator(old / "coordinator")
    platforms = Platforms(coordinator.platforms)
    assert [one.name for one in platforms.approved()] == ["shop"]
    assert [(one.name, one.revoked is None) for one in platforms.all()] == [("shop", True), ("video", False)]
    load_ed25519(coordinator.federation_key)
    # An authority that nobody has changed yet is the only one, before the server is started and after.
    assert rotation_stage(coordinator.certificates) is RotationStage.NONE
    alone = trusted_bundle(coordinator.certificates)
    tell_authorities(coordinator.certificates)
    assert trusted_bundle(coordinator.certificates) == alone
    begin_rotation(coordinator)
    assert rotation_stage(coordinator.certificates) is RotationStage.BEGUN
    LastReceipts(coordinator.receipts).gather(coordinator.folder / "runs")  # there were no runs, and no receipts
    found = list(check_coordinator(coordinator.folder))
    assert not [one for one in found if one.level is Level.ERROR and one.what not in ("ports",)]


def test_a_platforms_folder_is_read(old: Path) -> None:
    shop = open_deployment(old / "shop")
    file = load(shop.file)
    assert (file.name, file.federation.maximum_epsilon_per_run) == ("shop", None)
    load_node_key(shop.node_key)
    application = read_application(shop.application)
    assert application.platform == "shop"
    assert list(read_peers(shop.folder / "peers.toml")) == ["video"]
    assert state_of(shop).spent == pytest.approx(SPENT, abs=1e-3)
    found = list(check_platform(shop.folder))
    assert [one.what for one in found if one.level is Level.ERROR] == ["coordinator"]  # which does not run
    assert any(one.what == "ledger" and "whole: 3 lines" in one.found for one in found)
    # A newer invitation of the same coordinator changes nothing that people have to confirm.
    invitation = make_invitation(open_coordinator(old / "coordinator"), "shop")
    assert invitation_changes(shop, invitation) == []
    accept_invitation(shop, invitation)


def test_a_ledger_goes_on_signed_and_forgets_nothing(old: Path) -> None:
    file = load(old / "shop" / "platform.toml")
    before = read_ledger(file.ledger)
    assert before.header.version == 2 and before.identity == ""
    identity = identity_of(file.state, make=False)
    with LedgerWriter.open(
        file.ledger, platform="shop", budget=file.privacy.epsilon, delta=file.privacy.delta, identity=identity
    ) as writer:
        assert writer.epsilon == before.epsilon == pytest.approx(SPENT, abs=1e-3)
        release = Release(kind=ReleaseKind.TRAIN, noise_multiplier=4.0, sample_rate=0.1, steps=5)
        charge = writer.charge(release, run="autumn", round=1, question="9" * 64)
        writer.record_release("a" * 64, charge=charge.hash, run="autumn", round=1)
    after = read_ledger(file.ledger)
    assert after.lines[:3] == before.lines and isinstance(after.lines[3], IdentityRecord)
    assert after.epsilon > before.epsilon
    for budget in (9.0, 7.0):
        with pytest.raises(Exception, match="begun with budget 8"):
            LedgerWriter.open(file.ledger, platform="shop", budget=budget, delta=file.privacy.delta, identity=identity)


def test_a_ledger_of_a_later_version_says_what_to_do(old: Path) -> None:
    head = json.loads((old / "shop" / "worker" / "ledger" / "shop.jsonl").read_text().splitlines()[0])
    values = {name: value for name, value in head.items() if name != "hash"} | {"version": 9}
    later = canonical_json({**values, "hash": hashlib.sha256(canonical_json(values)).hexdigest()}) + b"\n"
    with pytest.raises(StorageError) as caught:
        parse_ledger(later, where="x")
    assert "update" in str(caught.value)


def test_a_key_with_another_name_says_which(old: Path) -> None:
    with pytest.raises(InputError, match="maximum_epsilon is called maximum_epsilon_per_run"):
        load(old / "video" / "platform.toml")


def test_a_registrys_model_is_pulled_and_its_signature_holds(old: Path) -> None:
    pulled = pull_model(str(old / "registry"), old / "model", trusted=[load_trusted(old / "shop" / "models.pub")])
    assert pulled.manifest.version == 1
    assert (old / "model" / "preferences.safetensors").exists()


def test_a_platforms_state_of_a_run_is_read_or_left(old: Path) -> None:
    """A run that was begun is finished with the version that began it; its charges stay, whatever becomes of its state."""
    path = old / "shop" / "worker" / "runs" / "spring-1.safetensors"
    state = load_run_state(path)
    assert state is not None and state.finished == 0
    path.write_bytes(path.read_bytes().replace(b'"version":"4"', b'"version":"3"'))
    with pytest.raises(StorageError) as caught:
        load_run_state(path)
    assert "charges stay in the ledger" in str(caught.value)


def test_a_run_that_an_earlier_version_began_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_settings: object
) -> None:
    settings = tiny_settings()  # type: ignore[operator]
    then = {key: value for key, value in json.loads(json.dumps(checkpoint.flatten(settings))).items() if key != "privacy.share"}
    facts = {"run": "spring", "round": 1, "settings": then, "tallies": {}}
    monkeypatch.setattr(checkpoint, "_read", lambda path: (facts, {}))
    (tmp_path / checkpoint.NAME).touch()
    with pytest.raises(InputError) as caught:
        checkpoint.load_checkpoint(tmp_path, run="spring", settings=settings, layout={})
    assert "privacy.share: None then" in str(caught.value) and "version that began it" in str(caught.value)
    facts["settings"] = {**then, "privacy.share": 0.5}
    with pytest.raises(InputError, match="resume with the same settings"):
        checkpoint.load_checkpoint(tmp_path, run="spring", settings=settings, layout={})
