"""Every parser of bytes from another party, with valid bytes to begin from, and what an attacker makes of them."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import strategies as st

from shared.base.errors import FedfuseError
from shared.base.settings import Settings
from shared.protocol import messages
from shared.protocol.flower_records import answer_from, request_from, to_record
from shared.protocol.messages import ANSWERS, REQUESTS
from shared.protocol.quality import METRICS, Quality


@dataclass(frozen=True)
class Target:
    """A parser, and valid inputs for it.

    Args:
        parse: Raises a `FedfuseError` for whatever it does not accept, and nothing else.
        sealed: Whether an input that differs from the valid one in any bit must be refused.
    """

    name: str
    parse: Callable[[bytes], object]
    valid: tuple[bytes, ...] = field(repr=False)
    sealed: bool = False

    def holds(self, data: bytes) -> bool:
        """Whether the parser accepted `data`; fails on any error that is not ours."""
        try:
            self.parse(data)
        except FedfuseError as error:
            assert len(str(error)) < 20_000, "another party's bytes fill the log"
            return False
        return True


_INTERESTING = (
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"\xc3\x28",
)
_NUMBERS = (b"0", b"-0", b"9" * 25, b"1.0", b"1e5", b"0x10", b"true", b"-9223372036854775809", b"99999999999999999999999.5")


@st.composite
def mutants(draw: st.DrawFn, valid: tuple[bytes, ...]) -> bytes:
    """A valid input after a few edits: flips, cuts, doublings, insertions, a number for another, a part of a second input."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.integers(0, 7))
        if kind == 0 and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == 2:
            data = data[:at]
        elif kind == 3:
            data[at:at] = draw(st.sampled_from(_INTERESTING))
        elif kind == 4:
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        elif kind == 5:
            data[at:at] = draw(st.binary(max_size=40))
        elif kind == 6:
            other = draw(st.sampled_from(valid))
            data[at : at + draw(st.integers(0, 40))] = other[at : at + draw(st.integers(0, 200))]
        else:
            end = at
            while end < len(data) and chr(data[end]) in "0123456789.-+eE":
                end += 1
            data[at:end] = draw(st.sampled_from(_NUMBERS))
    return bytes(data)


def example(kind: type[Any]) -> Any:
    """A valid message of any kind, made from its fields' types."""
    words = {name: value for name, value in vars(messages).items() if isinstance(value, type) and issubclass(value, StrEnum)}
    small = {"head.lora_A": np.ones((2, 3), np.float32), "head.lora_B": np.zeros((3, 2), np.float32)}
    plain: dict[str, Any] = {"str": "name", "int": 1, "float": 0.5, "bool": True, "bytes": b"body", "Arrays": small}
    plain["Quality"] = Quality(dict.fromkeys(METRICS, 0.5))
    values: dict[str, Any] = {}
    for part in fields(kind):
        wanted = str(part.type)
        if wanted == "Settings":
            values[part.name] = Settings()
        elif wanted in words:
            values[part.name] = next(iter(words[wanted]))
        else:
            values[part.name] = "" if part.name in ("ledger", "signature", "catalogue") else plain[wanted]
    return kind(**values)


def records() -> Iterator[RecordDict]:
    """The record of one message of every kind."""
    for kind in (*REQUESTS.values(), *ANSWERS.values()):
        yield to_record(example(kind))


def record_of(header: Mapping[str, Any], arrays: Mapping[str, Mapping[str, bytes]]) -> RecordDict:
    """A record with any header, and any bytes where numpy's are expected."""
    record = RecordDict()
    for name, tensors in arrays.items():
        record[name] = ArrayRecord(
            {key: Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data) for key, data in tensors.items()}
        )
    record["fedfuse"] = ConfigRecord(dict(header))
    return record


def parse_message(record: RecordDict) -> object:
    """As the side that it is for."""
    kind = str(record["fedfuse"].get("kind")) if isinstance(record.get("fedfuse"), ConfigRecord) else ""
    return answer_from(record) if kind in ANSWERS else request_from(record)


def npy(array: np.ndarray) -> bytes:
    """As numpy writes it, and Flower carries it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def through_socket(data: bytes) -> object:
    """What the worker's socket makes of bytes: a frame, a record, a message."""
    from client.messenger.wire import receive, unpack_record

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        theirs.send(data)
        theirs.shutdown(socket.SHUT_WR)
        return parse_message(unpack_record(receive(ours, seconds=5.0)))


def frames() -> tuple[bytes, ...]:
    """One message of every kind as the socket carries it."""
    from client.messenger.wire import WIRE, pack_record

    made = []
    for record in records():
        frame = pack_record("request", record)
        header = json.dumps(dict(frame.header), separators=(",", ":")).encode()
        made.append(b"FEDFUSE" + bytes([WIRE]) + len(header).to_bytes(4, "big") + len(frame.body).to_bytes(8, "big") + header)
        made[-1] += bytes(frame.body)
    return tuple(made)


def written(folder: Path, name: str, parse: Callable[[], object]) -> Callable[[bytes], object]:
    """A parser of a file that others surround."""

    def run(data: bytes) -> object:
        (folder / name).write_bytes(data)
        return parse()

    return run


def secure_sum() -> Iterator[Target]:
    """The messages of the secure sum, each once."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from shared.secagg import messages as said
    from shared.secagg.codec import decode, encode
    from shared.secagg.noise_agreement import Agreement
    from shared.secagg.shared_catalogues import DeclaredCatalogue, Popularity

    signature = Ed25519PrivateKey.generate().sign(b"x")
    valid = [
        said.Dealt(sealed=(b"x" * 40, b"y" * 40)),
        said.Mask(round=1, present=(1, 2, 3), parcels=(said.Parcel(sender=2, sealed=b"z" * 40),), length=10, bits=16),
        said.Masked(consent=signature, words=b"w" * 20),
        said.Confirm(round=1, survivors=(1, 2)),
        said.Confirmed(signature=signature),
        said.Unmask(round=1, survivors=(1, 2), consents=(said.Signed(number=1, signature=signature),), confirmations=()),
        said.Unmasked(shares=b"s" * 72),
        Agreement(noise_multiplier=1.0, batch=10.0, catalogues=(DeclaredCatalogue(digest=bytes(32), items=3, users=10),)),
        Popularity(counts=np.ones(3, "<f4").tobytes(), noise=1.0),
    ]
    for message in valid:
        kind = type(message)
        yield Target(f"secure sum: {kind.__name__}", lambda data, kind=kind: decode(kind, data), (encode(message),))


def documents() -> Iterator[Target]:
    """Invitations, applications, warrants, keys."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from shared.protocol.invitation import Application, parse_application, parse_invitation
    from shared.protocol.keys import ed25519_line
    from shared.protocol.run_authorization import Warrant, parse_warrant
    from shared.registry.signing import load_trusted

    key = Ed25519PrivateKey.generate()
    line = ed25519_line(key.public_key())
    invitation = (
        f'format = 1\nfederation = "ours"\nplatform = "shop"\naddress = "coordinator.example:9092"\nminimum_version = "0.1.0"\n'
        f'coordinator = "{line}"\nmodels = "{line}"\nauthority = """\n{certificate(key)}"""\n'
        f'[members]\nvideo = "{base64.b64encode(key.public_key().public_bytes_raw()).decode()}"\n'
    ).encode()
    application = Application.make(identity=key, federation="ours", platform="shop", node_key=node_line(), version="0.1.0")
    warrant = Warrant(federation="0" * 32, run="spring", settings="0" * 64, expires=2_000_000_000).signed(key)
    yield Target("invitation", lambda data: parse_invitation(data, where="x"), (invitation,))
    yield Target("application", lambda data: parse_application(data, where="x"), (application.text().encode(),))
    yield Target("warrant", lambda data: parse_warrant(data.decode("utf-8", "replace")), (warrant.text().encode(),))
    assert load_trusted is not None


def certificate(key: Any) -> str:
    """A certificate signed by itself, PEM."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    begin = datetime.datetime(2030, 1, 1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    made = builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=9)).sign(key, None)
    return made.public_bytes(Encoding.PEM).decode()


def node_line() -> str:
    """A SuperNode's public key."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def ledgers(folder: Path) -> Iterator[Target]:
    """A ledger, alone and as the audit reads it, and the coordinator's receipts beside it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from client.privacy.ledger_writer import LedgerWriter
    from shared.ledger.audit import UNSEEN, audit_run
    from shared.ledger.reading import parse_ledger
    from shared.ledger.receipts import LedgerReceipt, sign_head
    from shared.privacy.accountants import DP_ACCOUNTING
    from shared.privacy.releases import Release, ReleaseKind
    from shared.secagg.identity import Identity

    identity = Identity(b"i" * 32)
    (folder / "ledger").mkdir(parents=True)
    path = folder / "ledger" / "shop.jsonl"
    with LedgerWriter.open(path, platform="shop", budget=80.0, delta=1e-5, identity=identity, accountant=DP_ACCOUNTING) as writer:
        writer.charge(Release(kind=ReleaseKind.POPULARITY, noise_multiplier=8.0), run="spring", round=0, question="5" * 64)
        for round_ in (1, 2):
            release = Release(kind=ReleaseKind.TRAIN, noise_multiplier=4.0, sample_rate=0.1, steps=3)
            writer.charge(release, run="spring", round=round_, question="5" * 64)
        head = writer.head
    content = path.read_bytes()
    receipts = json.dumps({"platforms": {"shop": {"ledger": head, "epsilon": 1.0}}}).encode()
    path.chmod(0o600)

    def whole() -> None:
        report = audit_run(folder)
        # Nobody outside bears it out: that alone is no fault of the file's.
        if not report.ok or any(one.unknown != (UNSEEN,) for one in report.platforms):
            raise FedfuseError("the audit found something", where="; ".join(report.problems)[:2000])
        report.to_json()

    yield Target("ledger", lambda data: parse_ledger(data, where="x"), (content,))
    yield Target("ledger, audited", written(folder / "ledger", "shop.jsonl", whole), (content,))
    other = folder / "with receipts"
    (other / "ledger").mkdir(parents=True)
    (other / "ledger" / "shop.jsonl").write_bytes(content)
    yield Target("receipts", written(other, "metrics.json", lambda: audit_run(other).to_json()), (receipts,))
    signed = folder / "with signed receipts"
    (signed / "ledger").mkdir(parents=True)
    (signed / "ledger" / "shop.jsonl").write_bytes(content)
    receipt = LedgerReceipt(
        platform="shop", run="spring", round=2, kind="update", left="", ledger=head, head_signature=sign_head(identity, head)
    ).signed(Ed25519PrivateKey.from_private_bytes(b"c" * 32))
    lines = f"{receipt.text()}\n".encode()
    yield Target("signed receipts", written(signed, "receipts.jsonl", lambda: audit_run(signed).to_json()), (lines,))


def models(run: Path, registry: Path, out: Path) -> Iterator[Target]:
    """A published model's files, one by one, and a registry's."""
    import shutil

    from server.registry.model_card import render_card
    from server.registry.pull import pull_model
    from server.registry.registry import Registry
    from server.registry.run_facts import facts_in
    from server.registry.store import open_store
    from shared.model.peft_export import load_published
    from shared.registry.manifest import parse_manifest

    model = run / "model"
    manifest = (model / "manifest.json").read_bytes()
    signed = (registry / "manifests" / "000001.json").read_bytes()
    yield Target("manifest", lambda data: parse_manifest(data, "x"), (manifest, signed))
    facts = (model / "training.json").read_bytes()
    yield Target("facts", lambda data: render_card(facts_in(data, "x")), (facts,))
    for name in ("adapter_model.safetensors", "head.safetensors", "fedfuse.json"):
        folder = out / f"model {name}"
        shutil.copytree(model, folder)
        valid = (folder / name).read_bytes()
        yield Target(f"model: {name}", written(folder, name, lambda folder=folder: load_published(folder)), (valid,))
    listed = out / "listed"
    shutil.copytree(registry, listed)
    versions = Registry(open_store(str(listed)))
    yield Target(
        "index", written(listed, "index.json", lambda: list(versions.versions())), ((listed / "index.json").read_bytes(),)
    )
    for number, path in enumerate(sorted(path for path in registry.rglob("*") if path.is_file())):
        if path.name == "index.json":
            continue
        copy, name = out / f"registry {number}", str(path.relative_to(registry))
        shutil.copytree(registry, copy)

        def fetch(copy: Path = copy) -> object:
            target = copy.with_name(f"{copy.name} out")
            shutil.rmtree(target, ignore_errors=True)
            return pull_model(str(copy), target, unsigned=True)

        # A manifest that nobody signed may say anything that is well-formed; each of its files, only what it names.
        yield Target(f"pull: {path.name}", written(copy, name, fetch), (path.read_bytes(),), sealed=path.suffix != ".json")


def checkpoints(folder: Path, settings: Settings, tally: Any) -> Iterator[Target]:
    """A run's checkpoint and a platform's state of it: of this machine, and still no crash when the disk lies."""
    import torch

    from client.run.run_state import RunState, load_run_state, save_run_state
    from server.run.checkpoint import NAME, Checkpoint, load_checkpoint, run_of, save_checkpoint
    from shared.model.adapter import initial, layout_of
    from shared.model.backbone import shape_of

    layout = layout_of(shape_of(settings.model.backbone), settings.model)
    save_checkpoint(
        folder, Checkpoint(run="spring", round=3, settings=settings, adapter=initial(settings), tallies={"shop": tally})
    )

    def load() -> None:
        run_of(folder)
        load_checkpoint(folder, run="spring", settings=settings, layout=layout)

    yield Target("checkpoint", written(folder, NAME, load), ((folder / NAME).read_bytes(),), sealed=True)
    path = folder / "memory.safetensors"
    save_run_state(path, RunState(settings="s", finished=2, clip=1.5, prior=torch.ones(5)))
    yield Target("run state", written(folder, path.name, lambda: load_run_state(path)), (path.read_bytes(),), sealed=True)
