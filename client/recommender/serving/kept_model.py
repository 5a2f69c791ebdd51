"""A fitted recommender beside the platform's state, so that the next question needs neither the sources nor a fit.

The file holds users' histories and what was fitted on them. It is the platform's own: mode 0600, in its state folder, deleted
with it, and nothing of it leaves. It is safetensors, read through a memory map: a question reads what it needs of it.

It is used as long as the platform file, the model and all source files are what they were, by their names, sizes, times and
inodes: so git tells that a file has changed, without reading it. What a database holds cannot be told that way, so a platform
that reads from one is fitted anew each time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors.numpy import save_file

from client.config.platform_file import PlatformFile
from client.evaluation.score_calibration import Calibration
from client.examples.split import Ragged, Split, ragged
from client.recommender.evidence import Alike, Evidence, FriendsLike, Popular, PopularElsewhere, text_vectors
from client.recommender.histories import Histories, Sparse, liked_histories
from client.recommender.item_preferences import ItemPreferences
from client.recommender.item_ridge import ItemRidge
from client.recommender.lists.item_attributes import ItemAttributes
from client.recommender.platform_model import PlatformModel
from client.sources.tables import Tables
from shared.base.atomic_files import whole_file
from shared.base.safetensors_checks import MAX_CONTENTS
from shared.base.version import VERSION

Arrays = dict[str, NDArray[Any]]

_FORM = 2
_TEXTS = ("item_ids", "item_titles", "item_keys", "user_ids")
_LISTS = ("liked", "known")
_CALIBRATED = ("method", "slope", "intercept", "threshold")
_TASTE = ("directions", "seen", "matrix")
_ATTRIBUTE = "attribute.{}"
_NUMBERS = ("user_digest", "user_number", "profiled")
_MODE = 0o600
_TYPES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U64": "<u8", "U8": "u1", "BOOL": "?"}


class TextColumn(Sequence[str]):
    """Texts that are decoded when they are asked for.

    Args:
        bytes_: uint8. All of them in UTF-8, one after the other.
        offsets: int64 (texts + 1,).
    """

    def __init__(self, bytes_: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.bytes_, self.offsets = bytes_, offsets

    @classmethod
    def of(cls, texts: Sequence[str]) -> TextColumn:
        """These texts."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in encoded], dtype=np.int64)]).astype(np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        at = int(place)
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self.bytes_[self.offsets[at] : self.offsets[at + 1]].tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """What recommendations need of a platform's tables.

    Args:
        user_digest: uint64 (users,), ascending. Digests of users' ids.
        user_number: int64 (users,). Whose they are.
        profiled: bool (users,). Whether a text says anything of a user.
        liked: Per user, oldest first.
        known: Per user, items met, sorted.
        weight: float32 (likes,). As `Histories.weight`.
        ordered: Whether the order of likes is one of time.
        attributes: Attribute -> one value per item, '' where there is none.
    """

    item_ids: Sequence[str]
    item_titles: Sequence[str]
    item_keys: Sequence[str]
    user_ids: Sequence[str]
    user_digest: NDArray[np.uint64] = field(repr=False)
    user_number: NDArray[np.int64] = field(repr=False)
    profiled: NDArray[np.bool_] = field(repr=False)
    liked: Ragged = field(repr=False)
    known: Ragged = field(repr=False)
    weight: NDArray[np.float32] | None = field(repr=False)
    ordered: bool
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tables: Tables, split: Split) -> Shelf:
        """Of tables whose split holds nothing out."""
        digests = digests_of(tables.user_ids)
        order = np.argsort(digests, kind="stable")
        profiled, histories = np.zeros(tables.users, np.bool_), liked_histories(tables, split.train)
        for texts in tables.user_text.values():
            profiled |= np.array([bool(text) for text in texts], np.bool_)
        return cls(
            item_ids=tables.item_ids,
            item_titles=tables.item_titles,
            item_keys=tables.item_keys,
            user_ids=tables.user_ids,
            user_digest=digests[order],
            user_number=order,
            profiled=profiled,
            liked=split.train,
            known=split.known,
            attributes=tables.item_attributes,
            weight=histories.weight,
            ordered=histories.ordered,
        )

    @property
    def items(self) -> int:
        """Of the catalogue."""
        return len(self.item_ids)

    @property
    def users(self) -> int:
        """With an interaction; private."""
        return len(self.user_ids)

    @property
    def histories(self) -> Histories:
        """What users like."""
        return Histories(liked=self.liked, items=self.items, ordered=self.ordered, weight=self.weight)

    @cached_property
    def twins(self) -> Ragged:
        """Per item, the others that have its key: another entry of the same book."""
        numbers: dict[str, list[int]] = {}
        for place, key in enumerate(self.item_keys):
            if key:
                numbers.setdefault(key, []).append(place)
        others: list[NDArray[np.int32]] = [np.zeros(0, np.int32)] * self.items
        for places in numbers.values():
            for place in places if len(places) > 1 else ():
                others[place] = np.array([other for other in places if other != place], np.int32)
        return ragged(others)

    @cached_property
    def described(self) -> ItemAttributes:
        """The items by their attributes."""
        return ItemAttributes(self.attributes, self.items)

    @cached_property
    def words(self) -> Sparse:
        """Words of the items' titles and attributes, of length 1, the rarer ones counting more, (items, words)."""
        return text_vectors([list(self.item_titles), *(list(values) for values in self.attributes.values())])

    def number_of(self, user: str) -> int | None:
        """A user's number, None for somebody who is in no table."""
        digest = _digest(user)
        first = int(np.searchsorted(self.user_digest, np.uint64(digest)))
        while first < self.users and int(self.user_digest[first]) == digest:
            number = int(self.user_number[first])
            if self.user_ids[number] == user:
                return number
            first += 1
        return None


def state_digest(file: PlatformFile, options: Mapping[str, Any], further: Sequence[Path] = ()) -> str | None:
    """What a fitted model depends on, in hexadecimal; None where a source is a database.

    Args:
        options: How it was fitted; plain values.
        further: Files beside the sources, or folders of such.
    """
    try:
        text = file.path.read_bytes()
    except OSError:
        return None
    sha = hashlib.sha256(json.dumps([_FORM, VERSION, dict(options), text.hex()], sort_keys=True).encode())
    paths: list[Path] = []
    for source in (file.catalogue, *file.sources.values()):
        for found in _places(source):
            if found is None:
                return None
            paths.append(found)
    for path in further:
        paths += sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            return None
        sha.update(json.dumps([str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]).encode())
    return sha.hexdigest()


def keep_fitted(path: Path, shelf: Shelf, model: PlatformModel, digest: str) -> None:
    """Write what `kept_fitted` reads.

    Raises:
        StorageError: it cannot be written.
    """
    tensors, facts = _model_tensors(model)
    texts = {name: getattr(shelf, name) for name in _TEXTS}
    texts |= {_ATTRIBUTE.format(place): values for place, values in enumerate(shelf.attributes.values())}
    for name, values in texts.items():
        column = TextColumn.of(values)
        tensors |= {f"{name}.bytes": column.bytes_, f"{name}.offsets": column.offsets}
    for name in _LISTS:
        tensors |= {f"{name}.values": getattr(shelf, name).values, f"{name}.offsets": getattr(shelf, name).offsets}
    tensors |= {name: getattr(shelf, name) for name in _NUMBERS}
    tensors |= {} if shelf.weight is None else {"weight": shelf.weight}
    with whole_file(path, mode=_MODE) as draft:
        facts |= {"ordered": shelf.ordered, "attributes": list(shelf.attributes)}
        whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(whole, draft, metadata={"digest": digest, "facts": json.dumps(facts)})


def kept_fitted(path: Path, digest: str) -> tuple[Shelf, PlatformModel] | None:
    """What was kept under this digest; None where there is nothing, something older, or something damaged."""
    try:
        tensors, metadata = _mapped(path)
        if metadata.get("digest") != digest:
            return None
        facts = json.loads(metadata["facts"])
        parts: dict[str, Any] = {name: _texts_of(tensors, name) for name in _TEXTS}
        parts["attributes"] = {
            name: _texts_of(tensors, _ATTRIBUTE.format(place)) for place, name in enumerate(facts["attributes"])
        }
        parts |= {name: Ragged(offsets=tensors[f"{name}.offsets"], values=tensors[f"{name}.values"]) for name in _LISTS}
        parts |= {name: tensors[name] for name in _NUMBERS}
        shelf = Shelf(**parts, weight=tensors.get("weight"), ordered=bool(facts["ordered"]))
        return shelf, _model_of(tensors, facts, shelf.histories)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _texts_of(tensors: Arrays, name: str) -> TextColumn:
    return TextColumn(tensors[f"{name}.bytes"], tensors[f"{name}.offsets"])


def digests_of(users: Iterable[str]) -> NDArray[np.uint64]:
    """Of users' ids, uint64 (users,)."""
    return np.array([_digest(user) for user in users], np.uint64)


def _digest(user: str) -> int:
    return int.from_bytes(hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _places(value: Any) -> Iterator[Path | None]:
    """Files that a part of the platform file names, None for a database."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, BaseModel):
        if getattr(value, "url", None) is not None:
            yield None
        for name in type(value).model_fields:
            yield from _places(getattr(value, name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _places(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _places(inner)


def _sparse_tensors(name: str, matrix: Any) -> Arrays:
    return {f"{name}.{part}": getattr(matrix, part) for part in ("data", "indices", "indptr")} | {
        f"{name}.shape": np.array(matrix.shape, np.int64)
    }


def _sparse_of(tensors: Arrays, name: str) -> Any:
    parts = tuple(tensors[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
    return scipy.sparse.csr_matrix(parts, shape=tuple(tensors[f"{name}.shape"].tolist()))


def _model_tensors(model: PlatformModel) -> tuple[Arrays, dict[str, Any]]:
    from client.recommender.taste import Taste

    preferences = model.preferences
    tensors: Arrays = {f"ridge.{name}": value for name, value in preferences.model.tensors().items()}
    tensors["gains"] = model.gains
    calibration = model.calibration
    if calibration is not None:
        tensors["calibration.knots"] = calibration.knots
    evidence = []
    for place, (weight, part) in enumerate(model.evidence):
        name = f"evidence.{place}"
        if isinstance(part, PopularElsewhere):
            tensors[name] = part.released
        elif isinstance(part, FriendsLike):
            tensors |= _sparse_tensors(name, part.friends)
        elif isinstance(part, Alike):
            matrix = part.vectors if part.nearest is None else part.nearest
            tensors |= _sparse_tensors(name, matrix) if scipy.sparse.issparse(matrix) else {name: matrix}
        elif isinstance(part, Taste):
            tensors |= {f"{name}.{side}": getattr(part.on_items, side) for side in _TASTE}
        elif not isinstance(part, Popular):
            raise TypeError(f"evidence of a kind that cannot be kept: {type(part).__name__}")
        nearest = isinstance(part, Alike) and part.nearest is not None
        evidence.append({"kind": type(part).__name__, "name": part.name, "weight": weight, "nearest": nearest})
    facts = {
        "ridge": preferences.model.ridge,
        "half_life": preferences.half_life,
        "emphasis": preferences.emphasis,
        "share": preferences.share,
        "gain": preferences.gain,
        "evidence": evidence,
        "calibration": None if calibration is None else {name: getattr(calibration, name) for name in _CALIBRATED},
    }
    return tensors, facts


def _model_of(tensors: Arrays, facts: Mapping[str, Any], histories: Histories) -> PlatformModel:
    begin = "ridge."
    ridge = ItemRidge.of_tensors(
        {name.removeprefix(begin): value for name, value in tensors.items() if name.startswith(begin)},
        ridge=float(facts["ridge"]),
        items=histories.items,
    )
    evidence: list[tuple[float, Evidence]] = []
    for place, part in enumerate(facts["evidence"]):
        name = f"evidence.{place}"
        stored: Any = tensors[name] if name in tensors else _sparse_of(tensors, name) if f"{name}.shape" in tensors else None
        made: Evidence
        if part["kind"] == "Popular":
            made = Popular(histories, part["name"])
        elif part["kind"] == "PopularElsewhere":
            made = PopularElsewhere(stored, part["name"])
        elif part["kind"] == "FriendsLike":
            made = FriendsLike(histories, {}, friends=stored)
        elif part["kind"] == "Taste":
            # It needs torch, which takes seconds to load.
            from client.recommender.taste import Taste, TasteOnItems

            made = Taste(TasteOnItems(**{side: tensors[f"{name}.{side}"] for side in _TASTE}), name=part["name"])
        else:
            made = Alike(stored, name=part["name"], nearest=stored if part["nearest"] else None)
        evidence.append((float(part["weight"]), made))
    preferences = ItemPreferences(
        model=ridge,
        half_life=facts["half_life"],
        share=float(facts["share"]),
        gain=float(facts["gain"]),
        emphasis=float(facts["emphasis"]),
    )
    known = facts["calibration"]
    calibration = None if known is None else Calibration(**known, knots=tensors["calibration.knots"])
    return PlatformModel(
        histories=histories, preferences=preferences, evidence=evidence, gains=tensors["gains"], calibration=calibration
    )


def _mapped(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Tensors as views of a memory map, and the metadata."""
    raw = np.memmap(path, np.uint8, mode="r")
    size = int.from_bytes(raw[:8].tobytes(), "little")
    if size > MAX_CONTENTS:
        raise ValueError(f"a table of contents of {size} bytes")
    contents = json.loads(raw[8 : 8 + size].tobytes())
    metadata = contents.pop("__metadata__", {})
    tensors: Arrays = {}
    for name, about in contents.items():
        first, last = about["data_offsets"]
        shape, kind = tuple(about["shape"]), np.dtype(_TYPES[about["dtype"]])
        part = raw[8 + size + first : 8 + size + last]
        if len(part) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{name} is cut short")
        tensors[name] = np.asarray(part.view(kind).reshape(shape))
    return tensors, metadata
