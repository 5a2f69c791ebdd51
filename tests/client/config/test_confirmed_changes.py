"""What people confirmed once is replaced by nothing that they did not name: invitations and other platforms' identities."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.config.confirmed_changes import IdentityChange, ask, parse_replacements, require_agreed
from client.config.deployment_folder import Deployment, open_deployment
from client.config.trusted_peers import forget_identities, identities_of, read_peers, trust_identities
from client.setup.provisioning import accept_invitation, create_platform_folder, invitation_changes
from server.deployment.folder import CoordinatorFolder
from server.deployment.provisioning import create_coordinator_folder, make_invitation
from shared.base.errors import InputError
from shared.protocol.authorities import certificates_in
from shared.protocol.fingerprint_words import federation_number, fingerprint_words
from shared.protocol.invitation import Application, Invitation, fingerprint_of, read_application
from shared.protocol.keys import ed25519_line
from tests.support.called_command import called

OLD, NEW, OTHER = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorFolder:
    return create_coordinator_folder(
        tmp_path_factory.mktemp("c") / "c", host="fed.example.org", name="spring", port=8000, control_port=8001, listen="0.0.0.0"
    )


@pytest.fixture(scope="module")
def impostor(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorFolder:
    """Calls its federation by the same name."""
    return create_coordinator_folder(
        tmp_path_factory.mktemp("i") / "c", host="evil.example", name="spring", port=8000, control_port=8001, listen="0.0.0.0"
    )


@pytest.fixture
def invitation(coordinator: CoordinatorFolder) -> Invitation:
    return make_invitation(coordinator, "shop")


@pytest.fixture
def deployment(tmp_path: Path, invitation: Invitation) -> Deployment:
    (tmp_path / "orders.csv").write_text("customer,sku,at\n" + "".join(f"u{n},i{n % 5},{1_700_000_000 + n}\n" for n in range(20)))
    create_platform_folder(tmp_path / "shop", invitation, data=[tmp_path / "orders.csv"], users=20, epsilon=8.0, delta=1e-5)
    return open_deployment(tmp_path / "shop")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestAnInvitation:
    @pytest.fixture
    def foreign(self, impostor: CoordinatorFolder) -> Invitation:
        return make_invitation(impostor, "shop")

    def test_of_another_coordinator_is_not_taken(self, deployment: Deployment, foreign: Invitation) -> None:
        """One file in the post made a stranger the one whose code runs here."""
        before = contents(deployment.folder)
        with pytest.raises(InputError) as caught:
            accept_invitation(deployment, foreign)
        for name, mark in foreign.fingerprints().items():
            assert f"{name} CHANGED" in caught.value.found and mark in caught.value.found
            assert deployment.invited().fingerprints()[name] in caught.value.found
        assert contents(deployment.folder) == before

    @pytest.mark.parametrize("name", ["address", "authority", "coordinator", "models"])
    def test_every_part_has_to_be_named(self, deployment: Deployment, foreign: Invitation, name: str) -> None:
        before = contents(deployment.folder)
        marks = foreign.fingerprints()
        rest = {one: mark for one, mark in marks.items() if one != name}
        for replace in (rest, {**marks, name: deployment.invited().fingerprints()[name]}, {**marks, name: ""}):
            with pytest.raises(InputError, match=f"{name} CHANGED"):
                accept_invitation(deployment, foreign, replace=replace)
        assert contents(deployment.folder) == before
        accept_invitation(deployment, foreign, replace=marks)
        assert deployment.invited() == foreign

    def test_each_part_counts_by_itself(self, deployment: Deployment, invitation: Invitation, foreign: Invitation) -> None:
        for name in invitation.fingerprints():
            one = invitation.model_copy(update={name: getattr(foreign, name)})
            with pytest.raises(InputError, match=f"{name} CHANGED"):
                accept_invitation(deployment, one)

    def test_fewer_of_the_authorities_that_are_believed_is_no_change(
        self, deployment: Deployment, invitation: Invitation, foreign: Invitation, tmp_path: Path
    ) -> None:
        """After a change of authorities the messenger knows the old one beside the new one for up to a minute longer."""
        third = create_coordinator_folder(
            tmp_path / "third", host="fed.example.org", name="spring", port=8000, control_port=8001, listen="0.0.0.0"
        )
        old, new, other = invitation.authority, foreign.authority, make_invitation(third, "shop").authority

        def named(authority: str) -> Invitation:
            return invitation.model_copy(update={"authority": authority})

        for first, second in ((old, new), (new, old)):
            for few in (old, new, second + first):
                deployment.authority.write_text(first + second)
                assert invitation_changes(deployment, named(few)) == []
                accept_invitation(deployment, named(few))
                assert set(certificates_in(deployment.authority.read_text())) == set(certificates_in(few))
        for more in (other, old + other, old + new + other):
            deployment.authority.write_text(old + new)
            assert [change.name for change in invitation_changes(deployment, named(more))] == ["authority"]
        deployment.authority.write_text(new)
        assert [change.name for change in invitation_changes(deployment, named(old))] == ["authority"]

    def test_of_another_federation_never(self, deployment: Deployment, invitation: Invitation) -> None:
        other = invitation.model_copy(update={"federation": "autumn"})
        with pytest.raises(InputError, match="is for federation 'autumn'"):
            accept_invitation(deployment, other, replace=other.fingerprints())

    def test_at_the_command_line(self, deployment: Deployment, invitation: Invitation, tmp_path: Path) -> None:
        path, before = tmp_path / "new.invitation", contents(deployment.folder)
        key = ed25519_line(Ed25519PrivateKey.generate().public_key())
        path.write_text(invitation.model_copy(update={"models": key, "address": "new.example.org:1"}).text())
        new = invitation.model_copy(update={"models": key}).fingerprints()["models"]
        words = ["client", "accept", deployment.folder, path]
        refused = called(*words)
        assert refused.returncode == 3 and "CHANGED" in refused.stderr and new in refused.stderr
        assert called(*words, "--replace", f"models={new}").returncode == 3  # the address is not named
        assert called(*words, terminal="y\nn\n").returncode == 3
        assert contents(deployment.folder) == before
        assert called(*words, terminal="y\ny\n").returncode == 0
        path.write_text(invitation.text())
        back = [f"models={invitation.fingerprints()['models']}", f"address={invitation.address}"]
        done = called(*words, *(word for one in back for word in ("--replace", one)))
        assert done.returncode == 0 and contents(deployment.folder) == before, done.stderr


class TestAnIdentity:
    def test_a_known_one_is_not_replaced(self, tmp_path: Path) -> None:
        peers = tmp_path / "peers.toml"
        trust_identities(peers, {"video": OLD})
        for replace in ({}, {"video": fingerprint_of(OLD)}, {"video": fingerprint_of(OTHER)}, {"news": fingerprint_of(NEW)}):
            with pytest.raises(InputError):
                trust_identities(peers, {"video": NEW, "news": OTHER}, replace=replace)
        assert read_peers(peers) == {"video": OLD}  # and what is new was not written either
        trust_identities(peers, {"video": NEW, "news": OTHER}, replace={"video": fingerprint_of(NEW)})
        assert read_peers(peers) == {"video": NEW, "news": OTHER}

    def test_files_that_disagree(self, tmp_path: Path, invitation: Invitation) -> None:
        one = tmp_path / "one"
        one.write_text(invitation.model_copy(update={"members": {"video": OLD}}).text())
        two = tmp_path / "two"
        two.write_text(invitation.model_copy(update={"members": {"video": NEW, "news": OTHER}}).text())
        with pytest.raises(InputError, match=fingerprint_of(NEW)):
            identities_of([one, two], federation="spring")
        assert identities_of([one, one], federation="spring") == {"video": OLD}

    def test_at_the_command_line(self, deployment: Deployment, tmp_path: Path) -> None:
        peers, words = deployment.folder / "peers.toml", ["client", "trust", deployment.folder, tmp_path / "a.toml"]
        identity = apply(tmp_path / "a.toml")
        alone = called(*words)
        assert alone.returncode == 3 and not peers.exists()
        assert "nobody is at a terminal" in alone.stderr and "--yes" in alone.stderr
        assert called(*words, "--yes").returncode == 0
        changed = apply(tmp_path / "a.toml")
        for more, typed in ((["--yes"], None), ([], None), (["--yes"], "n\n"), (["--yes", "--replace", f"video={OLD}"], None)):
            refused = called(*words, *more, terminal=typed)
            assert refused.returncode == 3 and read_peers(peers) == {"video": identity}
            shown = refused.stdout + refused.stderr
            assert "CHANGED" in shown and fingerprint_of(identity) in shown and fingerprint_of(changed) in shown
        assert called(*words, "--replace", f"video={fingerprint_of(changed)}").returncode == 0
        assert read_peers(peers) == {"video": changed}
        again = apply(tmp_path / "a.toml")
        assert called(*words, terminal="y\n").returncode == 0 and read_peers(peers) == {"video": again}

    def test_one_number_stands_for_all(self, deployment: Deployment, tmp_path: Path) -> None:
        """Each side has the other's application, and both show one number."""
        peers, words = deployment.folder / "peers.toml", ["client", "trust", deployment.folder, tmp_path / "a.toml"]
        identity, own = apply(tmp_path / "a.toml"), read_application(deployment.application)
        number = federation_number("spring", {"shop": own.identity, "video": identity})
        alone = called(*words)
        assert f"number {number} of shop, video" in alone.stdout and f"--number {number}" in alone.stderr
        wrong = called(*words, "--number", federation_number("spring", {"shop": own.identity, "video": OLD}))
        assert wrong.returncode == 3 and "--number says" in wrong.stderr and not peers.exists()
        assert called(*words, "--number", number).returncode == 0
        assert read_peers(peers) == {"video": identity}
        shown = called("client", "identity", deployment.folder).stdout
        assert number in shown and own.fingerprint in shown and fingerprint_words(own.fingerprint) in shown

    def test_words_stand_for_the_fingerprint(self, deployment: Deployment, tmp_path: Path) -> None:
        words = ["client", "trust", deployment.folder, tmp_path / "a.toml"]
        apply(tmp_path / "a.toml")
        assert called(*words, "--yes").returncode == 0
        changed = apply(tmp_path / "a.toml")
        spoken = fingerprint_words(fingerprint_of(changed))
        assert spoken in called(*words).stderr
        assert called(*words, "--replace", f"video={spoken}").returncode == 0
        assert read_peers(deployment.folder / "peers.toml") == {"video": changed}

    def test_another_identity_for_this_platform_is_refused(
        self, deployment: Deployment, invitation: Invitation, tmp_path: Path
    ) -> None:
        """The others would have been given it as well."""
        (tmp_path / "members").write_text(invitation.model_copy(update={"members": {"shop": OLD, "video": NEW}}).text())
        found = called("client", "trust", deployment.folder, tmp_path / "members", "--yes")
        assert found.returncode == 3 and fingerprint_of(OLD) in found.stderr
        assert not (deployment.folder / "peers.toml").exists()

    def test_files_of_another_federation(self, deployment: Deployment, invitation: Invitation, tmp_path: Path) -> None:
        autumn = invitation.model_copy(update={"federation": "autumn", "members": {"video": NEW}})
        (tmp_path / "members").write_text(autumn.text())
        found = called("client", "trust", deployment.folder, tmp_path / "members", "--yes")
        assert found.returncode == 3 and "'autumn'" in found.stderr
        assert not (deployment.folder / "peers.toml").exists()


def apply(path: Path) -> str:
    """A new application of platform video; its identity."""
    from shared.protocol.keys import make_node_key

    (path.parent / "node.key").unlink(missing_ok=True)
    line = make_node_key(path.parent / "node.key")
    made = Application.make(
        identity=Ed25519PrivateKey.generate(), federation="spring", platform="video", node_key=line, version="0.1.0"
    )
    path.write_text(made.text())
    return made.identity


class TestReplacements:
    def test_are_names_with_fingerprints(self) -> None:
        assert parse_replacements(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
        for words in (["a"], ["a="], ["=1"], ["a=1", "a=2"], [""]):
            with pytest.raises(InputError):
                parse_replacements(words)

    def test_a_person_is_asked_for_each(self) -> None:
        changes = [IdentityChange(name=name, old="1", new="2") for name in "abc"]
        asked: list[str] = []

        def confirm(question: str) -> bool:
            asked.append(question)
            return question.startswith("b")

        assert ask(changes, {"a": "2"}, confirm=confirm) == {"a": "2", "b": "2"}
        assert [question[0] for question in asked] == ["b", "c"]

    @pytest.mark.parametrize("replace", [{}, {"a": "1"}, {"a": "2", "b": "2"}, {"b": "2"}])
    def test_nothing_else_is_agreed_to(self, replace: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            require_agreed([IdentityChange(name="a", old="1", new="2")], replace, where="x")
        require_agreed([IdentityChange(name="a", old="1", new="2")], {"a": "2"}, where="x")
        require_agreed([], {}, where="x")


class TestForgetting:
    def test_who_has_left_is_forgotten_and_the_others_stay(self, tmp_path: Path) -> None:
        peers = tmp_path / "peers.toml"
        trust_identities(peers, {"video": OLD, "news": NEW, "books": OTHER})
        with pytest.raises(InputError, match="not trusted: radio"):
            forget_identities(peers, ["video", "radio"])
        assert set(read_peers(peers)) == {"video", "news", "books"}  # all is checked, then changed
        forget_identities(peers, ["video", "books"])
        assert read_peers(peers) == {"news": NEW}
        # Whoever comes back under the name is new, and nothing is replaced.
        trust_identities(peers, {"video": OTHER})
        assert read_peers(peers) == {"news": NEW, "video": OTHER}
