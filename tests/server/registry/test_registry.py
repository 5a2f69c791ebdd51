"""The registry: what was published is there whole, in one order, for every kind of store, whatever else goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from server.registry.pull import pull_model
from server.registry.registry import INDEX, Registry
from server.registry.store import FolderStore, ObjectStore, Store, open_store, shown_address
from shared.base.errors import FedfuseError, InputError, StorageError
from shared.model.adapter import adapter_digest
from shared.model.peft_export import load_published
from shared.registry.manifest import MANIFEST, Manifest, parse_manifest
from shared.registry.signing import Signer, Untrusted

MakeRun = Callable[..., Path]
Keys = Callable[[str], tuple[Signer, Path]]


@pytest.fixture(params=["folder", "memory", "s3", "gcs"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "registry")
    if request.param in ("s3", "gcs"):
        return str(request.getfixturevalue(request.param))
    return f"memory://{tmp_path.name}/models"


@pytest.fixture
def signer(keys: Keys) -> Signer:
    return keys("coordinator")[0]


def registry_at(address: str, *signers: Signer) -> Registry:
    return Registry(open_store(address), [signer.public for signer in signers])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestEveryStore:
    def test_versions_follow_each_other(self, address: str, make_run: MakeRun, signer: Signer, tmp_path: Path) -> None:
        registry = registry_at(address, signer)
        assert registry.newest() is None and list(registry.versions()) == []
        first = registry.publish(make_run("spring", seed=1), signer)
        second = registry.publish(make_run("summer", seed=2), signer, name="warm")
        assert (first.version, first.previous, second.version, second.previous) == (1, "", 2, first.sha256)
        assert [m.origin.name for m in registry_at(address, signer).versions()] == ["warm", "spring"]
        assert registry.named("1") == registry.named("spring") == first
        assert registry.named("2") == registry.named("warm") == second

    def test_what_is_pulled_is_what_the_run_wrote(self, address: str, make_run: MakeRun, signer: Signer, tmp_path: Path) -> None:
        run = make_run()
        published = registry_at(address, signer).publish(run, signer)
        pulled = pull_model(address, tmp_path / "out", trusted=[signer.public])
        assert pulled.manifest == published and pulled.signer == signer.public.fingerprint and pulled.fresh and pulled.backbone
        wrote, got = contents(run / "model"), contents(tmp_path / "out")
        assert wrote.keys() == got.keys()
        assert all(wrote[name] == got[name] for name in wrote if name not in (MANIFEST, "README.md"))
        assert parse_manifest(got[MANIFEST], "") == published
        assert adapter_digest(load_published(tmp_path / "out").adapter) == published.origin.adapter_sha256

    def test_a_model_is_published_once(self, address: str, make_run: MakeRun, signer: Signer) -> None:
        registry, run = registry_at(address, signer), make_run()
        first = registry.publish(run, signer)
        registry.publish(make_run("summer", seed=2), signer)
        assert registry.publish(run, signer) == first
        assert registry.publish(run / "model", signer) == first
        assert registry.newest().version == 2  # type: ignore[union-attr]
        assert registry.publish(run, signer, name="again").version == 3

    @pytest.mark.parametrize("index", [None, 1], ids=["lost", "old"])
    def test_the_index_is_only_a_hint(
        self, address: str, make_run: MakeRun, signer: Signer, index: int | None, tmp_path: Path
    ) -> None:
        registry = registry_at(address, signer)
        for number in (1, 2, 3):
            registry.publish(make_run(f"r{number}", seed=number), signer)
        if index is None:
            remove(registry.store, INDEX)
        else:
            registry.store.replace(INDEX, b'{"format":1,"newest":1}')
        assert pull_model(address, tmp_path / "out", trusted=[signer.public]).manifest.version == 3
        registry.publish(make_run("r4", seed=4), signer)  # mends it
        assert json.loads(registry.store.open(INDEX).read()) == {"format": 1, "newest": 4}

    def test_files_without_a_manifest_are_no_version(self, address: str, make_run: MakeRun, signer: Signer) -> None:
        registry = registry_at(address, signer)
        registry.publish(make_run("a", seed=1), signer)
        second = registry.publish(make_run("b", seed=2), signer)
        remove(registry.store, "manifests/000002.json")
        registry.store.replace(INDEX, b'{"format":1,"newest":1}')
        assert [m.version for m in registry.versions()] == [1]
        again = registry.publish(make_run("b", seed=2), signer)  # the same files, and now they count
        assert (again.version, again.previous, again.signer) == (2, second.previous, second.signer)
        assert [m.version for m in registry.versions()] == [2, 1]

    def test_an_index_that_points_beyond_is_an_error(self, address: str, make_run: MakeRun, signer: Signer) -> None:
        registry = registry_at(address, signer)
        registry.publish(make_run(), signer)
        registry.store.replace(INDEX, b'{"format":1,"newest":7}')
        with pytest.raises(StorageError):
            registry.newest()

    def test_publishers_at_one_time_get_different_numbers(self, address: str, make_run: MakeRun, signer: Signer) -> None:
        runs = [make_run(f"r{number}", seed=number) for number in range(4)]
        gate, made, errors = threading.Barrier(len(runs)), [], []

        def one(run: Path) -> None:
            gate.wait()
            try:
                made.append(registry_at(address, signer).publish(run, signer))
            except Exception as error:  # noqa: BLE001 - a thread's error must reach the test
                errors.append(error)

        threads = [threading.Thread(target=one, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert sorted(manifest.version for manifest in made) == [1, 2, 3, 4]
        listed = list(registry_at(address, signer).versions())
        assert {m.sha256 for m in listed} == {m.sha256 for m in made}
        assert [m.version for m in listed] == [4, 3, 2, 1]

    def test_where_nothing_is(self, address: str, tmp_path: Path, signer: Signer) -> None:
        with pytest.raises(InputError, match=r"no manifest\.json"):
            pull_model(address, tmp_path / "out", trusted=[signer.public])
        assert not (tmp_path / "out").exists()


def remove(store: Store, name: str) -> None:
    if isinstance(store, FolderStore):
        (Path(store.where) / name).unlink()
    else:
        assert isinstance(store, ObjectStore)
        store._system.rm_file(f"{store._root}/{name}")


class TestCreate:
    """Of many writers of one name one learns that its bytes are the ones."""

    def test_one_of_many(self, address: str) -> None:
        store, told = open_store(address), []
        gate = threading.Barrier(6)

        def create(number: int) -> None:
            mine = open_store(address)
            gate.wait()
            told.append((mine.create("manifests/1.json", b"%d" % number), b"%d" % number))

        threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [data for won, data in told if won]
        assert store.open("manifests/1.json").read() == winner
        assert store.create("manifests/1.json", winner)  # a repeated request whose answer was lost
        assert not store.create("manifests/1.json", winner + b"more")

    def test_a_service_that_knows_no_condition(self, make_run: MakeRun, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever is written over at once learns of it, and publishes again."""
        from fsspec.implementations.memory import MemoryFileSystem

        real, late = MemoryFileSystem.pipe_file, []

        def pipe(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite", **more: object) -> None:
            if mode == "create" and not late:
                late.append(path)
                real(self, path, value)
                real(self, path, other)  # at the same moment, another publisher of this number
            else:
                real(self, path, value)

        registry = registry_at("memory://unconditional", signer)
        other = registry.publish(make_run("other", seed=5), signer).content
        remove(registry.store, "manifests/000001.json")
        remove(registry.store, INDEX)
        monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe)
        assert registry.publish(make_run("mine", seed=6), signer).version == 2
        assert [m.origin.name for m in registry.versions()] == ["mine", "other"]


class TestHistory:
    def test_a_rewritten_one_is_noticed(self, make_run: MakeRun, signer: Signer, tmp_path: Path) -> None:
        registry = registry_at(str(tmp_path / "r"), signer)
        for number in (1, 2, 3):
            registry.publish(make_run(f"r{number}", seed=number), signer)
        # The holder of the key itself cannot quietly give an old number to another model.
        forged = registry_at(str(tmp_path / "s"), signer).publish(make_run("r9", seed=9), signer)
        (tmp_path / "r" / "manifests" / "000001.json").write_bytes(forged.content)
        with pytest.raises(Untrusted, match="version 2 was not published after the version 1"):
            list(registry.versions())

    def test_a_fork_is_not_followed(self, make_run: MakeRun, signer: Signer, tmp_path: Path) -> None:
        one, two = registry_at(str(tmp_path / "r"), signer), registry_at(str(tmp_path / "s"), signer)
        one.publish(make_run("a", seed=1), signer)
        two.publish(make_run("b", seed=2), signer)
        two.publish(make_run("c", seed=3), signer)
        copy = (tmp_path / "s" / "manifests" / "000002.json").read_bytes()
        (tmp_path / "r" / "manifests" / "000002.json").write_bytes(copy)
        with pytest.raises(Untrusted, match="history"):
            one.newest()

    def test_a_manifest_under_another_number(self, make_run: MakeRun, signer: Signer, tmp_path: Path) -> None:
        registry = registry_at(str(tmp_path / "r"), signer)
        registry.publish(make_run("a", seed=1), signer)
        folder = tmp_path / "r" / "manifests"
        (folder / "000002.json").write_bytes((folder / "000001.json").read_bytes())
        with pytest.raises(InputError, match="manifest of version 1"):
            registry.newest()

    def test_keys_may_change(self, make_run: MakeRun, keys: Keys, tmp_path: Path) -> None:
        """The first version under the new key vouches for those before it."""
        old, new = keys("old")[0], keys("new")[0]
        address = str(tmp_path / "r")
        first = registry_at(address, old).publish(make_run("a", seed=1), old)
        with pytest.raises(Untrusted):
            registry_at(address, new).publish(make_run("b", seed=2), new)  # would vouch for what it cannot check
        registry_at(address, new, old).publish(make_run("b", seed=2), new)
        assert [m.version for m in registry_at(address, new).versions()] == [2, 1]
        assert pull_model(address, tmp_path / "one", trusted=[new.public], model="1").manifest == first
        with pytest.raises(Untrusted, match="signed by key"):
            pull_model(address, tmp_path / "two", trusted=[old.public])

    def test_lineage_names_the_version_that_training_began_from(self, make_run: MakeRun, signer: Signer, tmp_path: Path) -> None:
        registry = registry_at(str(tmp_path / "r"), signer)
        registry.publish(make_run("a", seed=1), signer)
        start = load_published(pull_model(str(tmp_path / "r"), tmp_path / "m", trusted=[signer.public]).folder).adapter
        registry.publish(make_run("b", seed=2, start=start), signer)
        pulled = pull_model(str(tmp_path / "r"), tmp_path / "m", trusted=[signer.public])
        assert pulled.manifest.origin.start_sha256 == adapter_digest(start)
        card = (tmp_path / "m" / "README.md").read_text()
        assert "training began from version 1 of this registry" in card and "# A cross-platform" in card


class TestPublish:
    def test_a_damaged_model_is_not_published(self, make_run: MakeRun, signer: Signer, tmp_path: Path) -> None:
        run = make_run()
        path = run / "model" / "head.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        registry = registry_at(str(tmp_path / "r"), signer)
        with pytest.raises(StorageError, match="not what the run wrote"):
            registry.publish(run, signer)
        assert registry.newest() is None

    @pytest.mark.parametrize("name", ["", ".", "runs"])
    def test_what_is_no_run(self, tmp_path: Path, signer: Signer, name: str) -> None:
        with pytest.raises(InputError):
            registry_at(str(tmp_path / "r"), signer).publish(tmp_path / name, signer)

    def test_a_name_that_is_none(self, make_run: MakeRun, tmp_path: Path, signer: Signer) -> None:
        with pytest.raises(InputError, match="name"):
            registry_at(str(tmp_path / "r"), signer).publish(make_run(), signer, name="../up")

    def test_http_is_for_reading(self, make_run: MakeRun, tmp_path: Path, signer: Signer, serve: Callable[[Path], str]) -> None:
        with pytest.raises(InputError, match="reading only"):
            registry_at(serve(tmp_path), signer).publish(make_run(), signer)

    def test_a_full_disk_publishes_nothing(
        self, make_run: MakeRun, tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import os

        run, registry = make_run(), registry_at(str(tmp_path / "r"), signer)
        real = os.fsync
        for limit in range(40):

            def full(descriptor: int, left: list[int] = [limit]) -> None:  # noqa: B006 - counted down on purpose
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(28, "No space left on device")
                real(descriptor)

            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", full)
                try:
                    registry.publish(run, signer)
                    break
                except StorageError as error:
                    assert "No space left" in error.found
            assert all(whole(registry, m) for m in registry.versions())
        assert limit > 8  # it did fail at every step on the way
        assert registry.newest() is not None


def whole(registry: Registry, manifest: Manifest) -> bool:
    return all(
        len(registry.store.open(f"{manifest.folder}/{entry.name}").read()) == entry.size and entry.size
        for entry in manifest.files
    )


class TestAddresses:
    @pytest.mark.parametrize("address", ["nosuch://x/y", "https://models.example/x?token=secret"])
    def test_that_cannot_be_opened(self, address: str) -> None:
        with pytest.raises(InputError) as caught:
            open_store(address)
        assert "secret" not in str(caught.value)

    def test_never_show_their_secrets(self, tmp_path: Path, signer: Signer) -> None:
        address = "http://ann:secret@127.0.0.1:9/models"
        with pytest.raises(FedfuseError) as caught:
            pull_model(address, tmp_path / "out", trusted=[signer.public])
        assert "secret" not in str(caught.value) and "127.0.0.1" in str(caught.value)
        assert shown_address("s3://bucket/x") == "s3://bucket/x"

    def test_of_a_service_that_is_away(self, tmp_path: Path, signer: Signer, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
        import s3fs

        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(StorageError, match="cannot be read") as caught:
            pull_model(s3, tmp_path / "out", trusted=[signer.public])
        assert "secret-of-s3" not in str(caught.value)

    def test_of_a_bucket_that_is_not_there(self, tmp_path: Path, signer: Signer, s3: str, make_run: MakeRun) -> None:
        with pytest.raises(StorageError, match="NoSuchBucket"):
            registry_at("s3://no-such-bucket/models", signer).publish(make_run(), signer)
