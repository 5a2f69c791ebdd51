"""Small inputs that ask for much memory, and how much each really takes: run in a process of its own, which is measured.

`python -m tests.support.memory_bombs` prints a line of JSON per bomb: its name, its bytes, by how much a process grows that reads
it, and what comes of it.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from shared.base.errors import FedfuseError

Bomb = tuple[str, bytes, Callable[[bytes], object]]


def npy_of(shape: str, descr: str = "<f4") -> bytes:
    """numpy's header for an array of that shape, and four bytes of it."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0\0\0\0"


def safetensors_of(contents: bytes, announced: int | None = None) -> bytes:
    """A file of tensors with any table of contents."""
    return (len(contents) if announced is None else announced).to_bytes(8, "little") + contents


def many_tensors(count: int) -> bytes:
    """Tensors of no elements, each of which becomes objects."""
    return json.dumps({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(count)}).encode()


def bombs(folder: Path) -> Iterator[Bomb]:
    """Every kind, against the parser that it is for."""
    from server.registry.registry import INDEX, Registry
    from server.registry.run_facts import facts_in
    from server.registry.store import open_store
    from shared.base.safetensors_checks import read_tensors
    from shared.ledger.audit import audit_run
    from shared.ledger.evidence import MAX_METRICS, receipts_evidence
    from shared.ledger.format import MAX_LINE
    from shared.ledger.reading import read_ledger
    from shared.protocol.invitation import LARGEST, parse_application, parse_invitation
    from shared.protocol.run_authorization import parse_warrant
    from shared.registry.manifest import MAX_MANIFEST, parse_manifest
    from shared.secagg import messages as said
    from shared.secagg.codec import VERSION, decode
    from tests.support.fuzzing import example, parse_message, record_of, through_socket, to_record, written

    deep, wide = b"[" * 500_000, b"[" + b"0," * 500_000 + b"0]"
    digits, empty = b"9" * 1_000_000, b"{" + b",".join(b'"k%d":{}' % n for n in range(80_000)) + b"}"
    for name, content in {"deep": deep, "wide": wide, "digits": digits, "keys": empty}.items():
        for field, what, parser in (("files", "manifest", parse_manifest), ("platforms", "facts", facts_in)):
            yield f"{what}: {name}", b'{"format":2,"' + field.encode() + b'":' + content + b"}", lambda d, p=parser: p(d, "x")
            yield f"{what}: only {name}", content, lambda d, p=parser: p(d, "x")
        index = Registry(open_store(str(folder / name)))
        (folder / name).mkdir()
        yield f"index: {name}", content, written(folder / name, INDEX, lambda r=index: list(r.versions()))
        (folder / name / "ledger").mkdir()
        (folder / name / "ledger" / "a.jsonl").write_bytes(b"{}\n")
        yield (
            f"receipts: {name}",
            content[:MAX_METRICS],
            written(folder / name, "metrics.json", lambda f=folder / name: audit_run(f)),
        )
        yield f"warrant: {name}", content, lambda d: parse_warrant(d.decode())
        toml = b"members = " + content.replace(b"{}", b"1").replace(b":", b"=")
        for what, parser in (("invitation", parse_invitation), ("application", parse_application)):
            yield f"{what}: {name}", toml[:LARGEST], lambda d, p=parser: p(d, where="x")
        header = content[: 1 << 20]
        frame = b"FEDFUSE\x01" + struct.pack(">IQ", len(header), 0) + header
        yield f"socket: header, {name}", frame[:60_000], through_socket
    entries = b",".join(b'{"name":"%d.json","sha256":"%s","size":1}' % (n, b"0" * 64) for n in range(9000))
    yield "manifest: files", b'{"files":[' + entries + b'],"format":2}', lambda d: parse_manifest(d, "x")
    yield "manifest: too large", b" " * (MAX_MANIFEST + 1), lambda d: parse_manifest(d, "x")
    dotted = b".".join([b"a"] * 300_000) + b"=1"
    yield "invitation: dotted keys", dotted, lambda d: parse_invitation(d, where="x")
    hidden = b".".join([b'a."\xe2\x80\xa8"'] * 25_000) + b"=1"
    yield "invitation: dotted keys between line separators", hidden, lambda d: parse_invitation(d, where="x")
    yield "invitation: tables", b"".join(b"[a%d.b.c]\n" % n for n in range(70_000)), lambda d: parse_invitation(d, where="x")

    for name, content in {
        "newlines": b"\n" * (1 << 26),
        "one line": b"{" * (1 << 26),
        "long lines": (b"{" * (MAX_LINE - 1) + b"\n") * 20_000,
        "zeros": b"\0" * (1 << 26),
    }.items():
        yield f"ledger: {name}", content, written(folder, "ledger.jsonl", lambda: read_ledger(folder / "ledger.jsonl"))
        yield (
            f"receipts: {name}",
            content,
            written(folder, "receipts.jsonl", lambda: receipts_evidence(folder / "receipts.jsonl")),
        )

    for name, content in {
        "announced": safetensors_of(b"{}", 1 << 40),
        "announced a little": safetensors_of(b"{}", 100_000_000),
        "many": safetensors_of(many_tensors(50_000)),
        "too many": safetensors_of(many_tensors(400_000)),
        "huge": safetensors_of(b'{"t":{"dtype":"F32","shape":[1073741824,1024],"data_offsets":[0,4398046511104]}}'),
        "overflow": safetensors_of(b'{"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        "deep": safetensors_of(b'{"t":' + b"[" * 1_000_000),
    }.items():
        yield f"tensors: {name}", content, written(folder, "t.safetensors", lambda: read_tensors(folder / "t.safetensors"))
        frame = b"FEDFUSE\x01" + struct.pack(">IQ", 2, len(content)) + b"{}" + content
        yield f"socket: body, {name}", frame[:60_000], through_socket
    yield "socket: announced", b"FEDFUSE\x01" + struct.pack(">IQ", 1 << 19, 1 << 60), through_socket

    record = to_record(example_train := example(_train()))
    assert example_train is not None
    for name, content in {
        "16 GiB": npy_of("(65536, 65536)"),
        "4 TiB": npy_of("(1048576, 1048576)"),
        "overflow": npy_of("(4294967296, 4294967296, 16)"),
        "of nothing": npy_of("(4611686018427387904,)", "|S0"),
        "wide type": npy_of("(4,)", "(1000000000,)<f4"),
        "many axes": npy_of("(" + "1," * 4000 + ")"),
        "deep header": npy_of("(" * 3000),
    }.items():
        yield f"array: {name}", content, lambda d: parse_message(record_of(dict(record["fedfuse"]), {"adapter": {"bytes": d}}))

    count = struct.pack("<I", 0xFFFFFFFF)
    tag = {kind: b"FS" + bytes([VERSION, kind.tag]) for kind in (said.Dealt, said.Confirm, said.Unmask, said.Mask)}
    yield "secure sum: announced", tag[said.Dealt] + count, lambda d: decode(said.Dealt, d)
    numbers = struct.pack("<II", 1, 5_000_000) + b"\1\0\0\0" * 5_000_000
    yield "secure sum: numbers", tag[said.Confirm] + numbers, lambda d: decode(said.Confirm, d)
    parts = struct.pack("<I", 4_000_000) + bytes(16_000_000)
    yield "secure sum: parts of nothing", tag[said.Dealt] + parts, lambda d: decode(said.Dealt, d)


def _train() -> type:
    from shared.protocol.messages import REQUESTS

    return REQUESTS["train"]


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def growth(parse: Callable[[bytes], object], content: bytes) -> tuple[int, str]:
    """By how many bytes a fork of this process grows at most over it, and what comes of it."""
    before, child = resident(), os.fork()
    if child == 0:
        code = 3
        try:
            parse(content)
            code = 0
        except FedfuseError:
            code = 1
        except BaseException:  # noqa: BLE001 - whatever it is, it is not ours, and is shown
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    outcome = {0: "accepted", 1: "refused"}.get(os.waitstatus_to_exitcode(status), "crashed")
    return usage.ru_maxrss * 1024 - before, outcome


def main() -> None:
    """See the module."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content, parse in bombs(Path(folder)):
            began = time.process_time() + os.times().children_user
            grown, outcome = growth(parse, content)
            seconds = time.process_time() + os.times().children_user - began
            line = {"name": name, "bytes": len(content), "growth": grown, "outcome": outcome, "seconds": round(seconds, 2)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
