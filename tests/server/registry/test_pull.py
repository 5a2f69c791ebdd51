"""Pulling: what was signed arrives whole; nothing else does, nothing older, and nothing larger."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from server.registry.pull import PulledModel, pull_model
from server.registry.registry import Registry
from server.registry.store import open_store
from shared.base.errors import FedfuseError, InputError, StorageError
from shared.model.peft_export import load_published
from shared.registry.manifest import MANIFEST, Manifest, ManifestEntry, parse_manifest
from shared.registry.signing import Signer, Untrusted

MakeRun = Callable[..., Path]
Keys = Callable[[str], tuple[Signer, Path]]
Serve = Callable[..., str]


@pytest.fixture
def signer(keys: Keys) -> Signer:
    return keys("coordinator")[0]


@pytest.fixture
def registry(tmp_path: Path, make_run: MakeRun, signer: Signer) -> Path:
    """A registry with one version."""
    address = tmp_path / "registry"
    publish(address, make_run("spring", seed=1), signer)
    return address


def publish(address: Path, run: Path, signer: Signer) -> Manifest:
    return Registry(open_store(str(address)), [signer.public]).publish(run, signer)


def take(address: Path | str, out: Path, *signers: Signer, **how: Any) -> PulledModel:
    return pull_model(str(address), out, trusted=[signer.public for signer in signers], **how)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def drafts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_stock_peft_loads_what_was_pulled(registry: Path, signer: Signer, tmp_path: Path, tiny_bert: str) -> None:
    from peft import PeftModel
    from transformers import BertModel

    take(registry, tmp_path / "out", signer)
    model = PeftModel.from_pretrained(BertModel.from_pretrained(tiny_bert, add_pooling_layer=False), str(tmp_path / "out"))
    pulled = load_published(tmp_path / "out").adapter
    tensors = {name: value for name, value in model.named_parameters() if "lora_" in name}
    assert len(tensors) == len([name for name in pulled if not name.startswith("head")])
    for name, value in tensors.items():
        plain = name.removeprefix("base_model.model.").replace(".default.weight", "")
        torch.testing.assert_close(value.detach(), torch.from_numpy(pulled[plain]))


class TestSources:
    def test_a_run_its_model_folder_and_a_copy_of_a_pull(self, make_run: MakeRun, tmp_path: Path) -> None:
        run = make_run()
        for number, source in enumerate([str(run), str(run / "model"), (run / "model").as_uri(), f"{run}/model/"]):
            pulled = pull_model(source, tmp_path / f"out{number}", unsigned=True)
            assert contents(pulled.folder) == contents(run / "model")
            assert (pulled.signer, pulled.manifest.version) == ("", 0)
        again = pull_model(str(tmp_path / "out0"), tmp_path / "copy", unsigned=True)
        assert contents(again.folder) == contents(run / "model")

    def test_http(self, registry: Path, signer: Signer, make_run: MakeRun, tmp_path: Path, serve: Serve) -> None:
        url = serve(registry)
        first = take(url, tmp_path / "out", signer)
        assert contents(first.folder) == contents(take(registry, tmp_path / "here", signer).folder)
        publish(registry, make_run("summer", seed=2), signer)
        assert take(url, tmp_path / "out", signer).manifest.version == 2
        assert [m.version for m in Registry(open_store(url), [signer.public]).versions()] == [2, 1]

    def test_a_signed_copy_over_http(self, registry: Path, signer: Signer, tmp_path: Path, serve: Serve) -> None:
        take(registry, tmp_path / "mirror", signer)
        pulled = take(serve(tmp_path / "mirror"), tmp_path / "out", signer)
        assert pulled.manifest.version == 1 and contents(pulled.folder) == contents(tmp_path / "mirror")

    def test_by_name_and_number(self, registry: Path, signer: Signer, make_run: MakeRun, tmp_path: Path) -> None:
        publish(registry, make_run("summer", seed=2), signer)
        assert take(registry, tmp_path / "a", signer, model="spring").manifest.version == 1
        assert take(registry, tmp_path / "b", signer, model="2").manifest.origin.name == "summer"
        for name in ("3", "autumn", "..", "0", "9" * 40, "١"):
            with pytest.raises(InputError, match="no model"):
                take(registry, tmp_path / "c", signer, model=name)
        with pytest.raises(InputError, match="no registry"):
            pull_model(str(tmp_path / "a"), tmp_path / "c", unsigned=True, model="spring")


class TestTrust:
    def test_it_must_be_said_whose(self, registry: Path, signer: Signer, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="whose signature"):
            pull_model(str(registry), tmp_path / "out")
        with pytest.raises(InputError, match="--unsigned trusts nobody"):
            take(registry, tmp_path / "out", signer, unsigned=True)
        assert pull_model(str(registry), tmp_path / "out", unsigned=True).signer == ""

    def test_another_key(self, registry: Path, keys: Keys, tmp_path: Path) -> None:
        other = keys("somebody")[0]
        with pytest.raises(Untrusted, match=f"not by {other.public.fingerprint[:16]}"):
            take(registry, tmp_path / "out", other)
        assert not (tmp_path / "out").exists()
        assert take(registry, tmp_path / "out", other, keys("coordinator")[0]).manifest.version == 1

    def test_a_run_that_nobody_signed(self, make_run: MakeRun, signer: Signer, tmp_path: Path) -> None:
        with pytest.raises(Untrusted, match="nobody has signed"):
            take(make_run(), tmp_path / "out", signer)

    def test_every_field_of_the_manifest_is_signed(self, registry: Path, signer: Signer, tmp_path: Path) -> None:
        path = registry / "manifests" / "000001.json"
        honest = json.loads(path.read_text())
        places = [(key,) for key in honest] + [("origin", key) for key in honest["origin"]]
        places += [("files", 0, key) for key in honest["files"][0]]
        refused = 0
        for place in places:
            forged = json.loads(json.dumps(honest))
            inner = forged
            for step in place[:-1]:
                inner = inner[step]
            inner[place[-1]] = other_than(inner[place[-1]])
            # Rendered as the format wants it: the signature alone must stop it.
            path.write_text(json.dumps(forged, indent=1, sort_keys=True) + "\n")
            with pytest.raises(FedfuseError) as caught:
                take(registry, tmp_path / "out", signer)
            refused += isinstance(caught.value, Untrusted)
        assert refused > len(places) / 2  # the others are refused for what they say
        assert not (tmp_path / "out").exists()

    def test_a_signature_of_something_else(self, registry: Path, signer: Signer, tmp_path: Path, make_run: MakeRun) -> None:
        other = publish(tmp_path / "elsewhere", make_run("b", seed=2), signer)
        path = registry / "manifests" / "000001.json"
        mixed = parse_manifest(path.read_bytes(), "").model_copy(update={"signature": other.signature})
        path.write_bytes(mixed.content)
        with pytest.raises(Untrusted, match="changed after it was signed"):
            take(registry, tmp_path / "out", signer)

    def test_a_signature_without_the_domain(self, registry: Path, signer: Signer, tmp_path: Path) -> None:
        """The key signs manifests only: the bare content signed, as another protocol might have, is not enough."""
        import base64

        path = registry / "manifests" / "000001.json"
        manifest = parse_manifest(path.read_bytes(), "").model_copy(update={"signature": ""})
        bare = base64.b64encode(signer._key.sign(manifest.content)).decode()
        path.write_bytes(manifest.model_copy(update={"signature": bare}).content)
        with pytest.raises(Untrusted):
            take(registry, tmp_path / "out", signer)

    def test_unsigned_still_notices_damage(self, make_run: MakeRun, tmp_path: Path) -> None:
        run = make_run()
        spoil(run / "model" / "README.md")
        with pytest.raises(StorageError, match=r"README\.md has another SHA-256"):
            pull_model(str(run), tmp_path / "out", unsigned=True)


def other_than(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(value[:1], "b" if value[:1] == "a" else "a", 1) if value else "0" * 64
    return value + 1 if isinstance(value, int) else value[:1] if isinstance(value, list) and len(value) > 1 else {}


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class TestDamage:
    FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors", "fedfuse.json", "head.safetensors", "training.json")

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("how", ["spoilt", "longer", "shorter", "missing", "a folder", "a link", "a pipe"])
    def test_of_any_file(self, registry: Path, signer: Signer, tmp_path: Path, name: str, how: str) -> None:
        (path,) = registry.glob(f"models/*/{name}")
        before = path.read_bytes()
        if how == "spoilt":
            spoil(path)
        elif how == "longer":
            path.write_bytes(before + b" ")
        elif how == "shorter":
            path.write_bytes(before[:-1])
        else:
            path.unlink()
            if how == "a folder":
                path.mkdir()
            elif how == "a pipe":
                os.mkfifo(path)
            elif how == "a link":
                (tmp_path / "secret").write_bytes(before)
                path.symlink_to(tmp_path / "secret")
        with pytest.raises(StorageError):
            take(registry, tmp_path / "out", signer)
        assert not (tmp_path / "out").exists() and not drafts(tmp_path)

    def test_the_same_files_are_there(self, registry: Path) -> None:
        assert sorted(path.name for path in registry.glob("models/*/*")) == sorted(self.FILES)

    @pytest.mark.parametrize("linked", ["manifests", "models", "manifests/000001.json", "index.json"])
    def test_a_link_is_not_followed(self, registry: Path, signer: Signer, tmp_path: Path, linked: str) -> None:
        (registry / linked).rename(tmp_path / "moved")
        (registry / linked).symlink_to(tmp_path / "moved")
        with pytest.raises(StorageError, match="symbolic link"):
            take(registry, tmp_path / "out", signer)

    def test_tensors_that_are_none(self, registry: Path, signer: Signer, tmp_path: Path, make_run: MakeRun) -> None:
        """A trusted coordinator's mistake, too, is one clear error, and nothing takes the place of what was there."""
        run = make_run("broken", seed=2)
        (run / "model" / "head.safetensors").write_bytes(b"no tensors at all")
        remade(run)
        publish(registry, run, signer)
        take(registry, tmp_path / "out", signer, model="1")
        before = contents(tmp_path / "out")
        with pytest.raises(InputError, match=r"head\.safetensors holds no tensors"):
            take(registry, tmp_path / "out", signer)
        assert contents(tmp_path / "out") == before and not drafts(tmp_path)

    def test_a_model_that_does_not_fit_its_backbone(self, signer: Signer, tmp_path: Path, make_run: MakeRun) -> None:
        run = make_run("broken", seed=2)
        about = json.loads((run / "model" / "fedfuse.json").read_text())
        about["model"]["rank"] = 3
        (run / "model" / "fedfuse.json").write_text(json.dumps(about))
        remade(run)
        publish(tmp_path / "r", run, signer)
        with pytest.raises(InputError, match="shape"):
            take(tmp_path / "r", tmp_path / "out", signer)

    def test_of_the_backbone(self, registry: Path, signer: Signer, tmp_path: Path, tiny_bert: str) -> None:
        weights = Path(tiny_bert) / "model.safetensors"
        before = weights.read_bytes()
        try:
            spoil(weights)
            with pytest.raises(InputError, match=r"the backbone .* the model was trained on"):
                take(registry, tmp_path / "out", signer)
        finally:
            weights.write_bytes(before)
        assert not (tmp_path / "out").exists()

    def test_a_backbone_that_is_not_here(self, signer: Signer, tmp_path: Path, make_run: MakeRun, tiny_bert: str) -> None:
        elsewhere = tmp_path / "bert"
        shutil.copytree(tiny_bert, elsewhere)
        publish(tmp_path / "r", make_run(model={"backbone": str(elsewhere)}), signer)
        shutil.rmtree(elsewhere)
        assert not take(tmp_path / "r", tmp_path / "out", signer).backbone


def remade(run: Path) -> None:
    """Give a model that was changed a manifest that fits it, as its own coordinator could."""
    from shared.registry.manifest import describe

    folder = run / "model"
    (folder / MANIFEST).write_bytes(describe(folder, parse_manifest((folder / MANIFEST).read_bytes(), "").origin).content)


class TestTarget:
    def test_an_occupied_folder_is_left_alone(self, registry: Path, signer: Signer, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "mine").write_text("x")
        with pytest.raises(InputError, match="not empty"):
            take(registry, out, signer)
        assert contents(out) == {"mine": b"x"}
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="no folder"):
            take(registry, tmp_path / "file", signer)
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(InputError, match="no folder"):
            take(registry, tmp_path / "link", signer)

    def test_what_a_person_added_is_not_thrown_away(self, registry: Path, signer: Signer, tmp_path: Path) -> None:
        take(registry, tmp_path / "out", signer)
        (tmp_path / "out" / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"notes\.txt"):
            take(registry, tmp_path / "out", signer)
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"

    def test_the_same_version_again_mends_it(self, registry: Path, signer: Signer, tmp_path: Path) -> None:
        out = tmp_path / "out"
        first = take(registry, out, signer)
        whole = contents(out)
        assert first.fresh and not take(registry, out, signer).fresh
        spoil(out / "head.safetensors")
        (out / "README.md").unlink()
        assert take(registry, out, signer).fresh
        assert contents(out) == whole and not drafts(tmp_path)

    def test_an_empty_folder_and_new_ones_on_the_way(self, registry: Path, signer: Signer, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        take(registry, tmp_path / "empty", signer)
        take(registry, tmp_path / "a" / "b", signer)
        assert contents(tmp_path / "empty") == contents(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755


class TestRollBack:
    @pytest.fixture
    def five(self, registry: Path, signer: Signer, make_run: MakeRun, tmp_path: Path) -> Path:
        """A folder that holds version 5."""
        for number in (2, 3, 4, 5):
            publish(registry, make_run(f"r{number}", seed=number), signer)
        take(registry, tmp_path / "out", signer)
        return tmp_path / "out"

    def test_a_newest_that_points_back(self, registry: Path, five: Path, signer: Signer) -> None:
        before = contents(five)
        for number in (4, 5):
            (registry / "manifests" / f"00000{number}.json").unlink()
        (registry / "index.json").write_text('{"format":1,"newest":3}')
        with pytest.raises(Untrusted, match="newest version is 3, but version 5 was pulled"):
            take(registry, five, signer)
        assert contents(five) == before

    def test_an_old_version_by_name(self, registry: Path, five: Path, signer: Signer, tmp_path: Path) -> None:
        with pytest.raises(Untrusted, match="older") as caught:
            take(registry, five, signer, model="2")
        assert "another folder" in caught.value.do
        assert take(registry, tmp_path / "old", signer, model="2").manifest.version == 2

    def test_an_old_copy(self, registry: Path, five: Path, signer: Signer, tmp_path: Path) -> None:
        take(registry, tmp_path / "old", signer, model="2")
        with pytest.raises(Untrusted, match="older"):
            take(tmp_path / "old", five, signer)

    def test_another_history(self, five: Path, signer: Signer, tmp_path: Path, make_run: MakeRun) -> None:
        """Signed by the right key, and newer, and still not what this puller has seen."""
        for number in range(1, 8):
            publish(tmp_path / "fork", make_run(f"f{number}", seed=100 + number), signer)
        with pytest.raises(Untrusted, match="does not follow the version 5"):
            take(tmp_path / "fork", five, signer)
        with pytest.raises(Untrusted, match="is not the version 5"):
            take(tmp_path / "fork", five, signer, model="5")

    def test_onward_over_many(self, registry: Path, five: Path, signer: Signer, make_run: MakeRun) -> None:
        for number in (6, 7, 8):
            publish(registry, make_run(f"r{number}", seed=number), signer)
        pulled = take(registry, five, signer)
        assert pulled.manifest.version == 8 and pulled.fresh
        assert digest_of(five) == pulled.manifest.origin.adapter_sha256

    def test_a_run_is_not_mixed_with_another(self, make_run: MakeRun, tmp_path: Path) -> None:
        pull_model(str(make_run("a", seed=1)), tmp_path / "out", unsigned=True)
        with pytest.raises(InputError, match="another model"):
            pull_model(str(make_run("b", seed=2)), tmp_path / "out", unsigned=True)

    def test_the_exchange_is_one_step(self, registry: Path, five: Path, signer: Signer, make_run: MakeRun) -> None:
        """A reader of the folder, at any moment, finds one whole model; never none."""
        for number in (6, 7, 8, 9):
            publish(registry, make_run(f"r{number}", seed=number), signer)
        stop, seen, missing = threading.Event(), set(), []

        def watch() -> None:
            while not stop.is_set():
                try:
                    seen.add(json.loads((five / MANIFEST).read_bytes())["version"])
                except OSError as error:
                    missing.append(error)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for number in (6, 7, 8, 9):
                take(registry, five, signer, model=str(number))
        finally:
            stop.set()
            watcher.join()
        assert seen <= {5, 6, 7, 8, 9} and 9 in seen | {json.loads((five / MANIFEST).read_bytes())["version"]}
        assert missing == []


def digest_of(folder: Path) -> str:
    from shared.model.adapter import adapter_digest

    return adapter_digest(load_published(folder).adapter)


class TestHostileServers:
    """What a server sends is bounded by what was signed, however it sends it."""

    @pytest.mark.parametrize("endless", ["index.json", "manifests/000001.json", "head.safetensors"])
    def test_an_answer_without_end(self, registry: Path, signer: Signer, tmp_path: Path, serve: Serve, endless: str) -> None:
        class Endless(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                if not self.path.endswith(endless):
                    return super().do_GET()
                self.send_response(200)
                self.end_headers()  # no length: until the connection closes
                try:
                    while True:
                        self.wfile.write(b" " * 65536)
                except OSError:
                    return None

        tracemalloc.start()
        try:
            with pytest.raises(StorageError):
                take(serve(registry, Endless), tmp_path / "out", signer)
            assert tracemalloc.get_traced_memory()[1] < 40 << 20
        finally:
            tracemalloc.stop()
        assert not drafts(tmp_path)

    def test_a_server_that_is_ill(self, registry: Path, signer: Signer, tmp_path: Path, serve: Serve) -> None:
        class Ill(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.send_error(500)

        with pytest.raises(StorageError, match="cannot be read"):
            take(serve(registry, Ill), tmp_path / "out", signer)

    def test_a_server_that_is_not_there(self, signer: Signer, tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(StorageError, match="cannot be read"):
            take(f"http://127.0.0.1:{port}/models", tmp_path / "out", signer)

    def test_a_model_that_is_too_large(self, registry: Path, signer: Signer, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="limit"):
            take(registry, tmp_path / "out", signer, max_bytes=100)

    @pytest.mark.parametrize(
        "name",
        [
            "../escape.json",
            "/etc/passwd.json",
            "a/../../b.json",
            "a\\..\\b.json",
            "",
            ".",
            "a//b.json",
            "manifest.json",
            ".hidden.json",
            "a/.b/c.json",
            "c:d.json",
            "a.json ",
            "a.json.",
            "caf\u00e9.json",
            "a\n.json",
            "%2e%2e/a.json",
            "a?b.json",
            "x" * 201 + ".json",
            "a/" * 9 + "b.json",
            "adapter_model.bin",
            "adapter_model.pt",
            "modeling.py",
            "weights.pkl",
            "noext",
        ],
    )
    def test_names_that_no_model_has(self, registry: Path, signer: Signer, tmp_path: Path, name: str) -> None:
        path = registry / "manifests" / "000001.json"
        honest = parse_manifest(path.read_bytes(), "")
        # Even the holder of the key cannot make a puller write elsewhere, or take what a library would unpickle or run.
        bad = ManifestEntry.model_construct(name=name, size=5, sha256="0" * 64)
        files = tuple(sorted([*honest.files, bad], key=lambda entry: entry.name))
        path.write_bytes(honest.model_copy(update={"files": files}).signed(signer).content)
        before = set(tmp_path.rglob("*"))
        with pytest.raises(InputError):
            take(registry, tmp_path / "out", signer)
        assert set(tmp_path.rglob("*")) == before


def test_stopped_by_hand_it_leaves_nothing(
    registry: Path, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    calls: list[int] = []

    def interrupt(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", interrupt)
    # Whatever handler a library of an earlier test has left in this process.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            take(registry, tmp_path / "out", signer)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "out").exists() and not drafts(tmp_path)
