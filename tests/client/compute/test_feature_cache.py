"""The trunk cache gives what the encoder gives, survives restarts, and notices what is damaged."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.compute.feature_cache import Ids, TrunkCache
from shared.base.errors import StorageError
from shared.base.settings import ModelSettings
from shared.model.backbone import load_backbone
from shared.model.encoder import Encoder
from tests.support.bfloat16 import needs_bfloat16


def encoder_of(backbone: str, *, layers: int = 2, dtype: torch.dtype = torch.float32) -> Encoder:
    model = ModelSettings(backbone=backbone, layers=layers)
    return Encoder(load_backbone(backbone), model, device=torch.device("cpu"), dtype=dtype)


def sequences(count: int, *, seed: int = 0) -> list[Ids]:
    random = np.random.default_rng(seed)
    return [random.integers(5, 80, random.integers(1, 20)).astype(np.int32) for _ in range(count)]


def expected(encoder: Encoder, ids: Ids) -> torch.Tensor:
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    return encoder.trunk(tokens, torch.ones_like(tokens, dtype=torch.bool))[0]


def assert_right(cache: TrunkCache, encoder: Encoder, texts: list[Ids]) -> None:
    rows = cache.rows(texts)
    hidden, mask = cache.gather(rows)
    for at, ids in enumerate(texts):
        assert mask[at].sum() == len(ids)
        torch.testing.assert_close(hidden[at, : len(ids)], expected(encoder, ids), atol=4e-3, rtol=2e-3)  # kept in float16
        assert not hidden[at, len(ids) :].any()


class Counting:
    """An encoder that counts the sequences it was asked for."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self.asked = encoder, 0
        self.tokens: list[int] = []
        self.fail_at: int | None = None
        self.error: type[BaseException] = RuntimeError

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)

    def trunk(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.asked += len(ids)
        self.tokens.append(ids.numel())
        if self.fail_at is not None and self.asked >= self.fail_at:
            raise self.error
        return self._encoder.trunk(ids, mask)


def test_gives_the_encoders_features(tiny_bert: str, tmp_path: Path) -> None:
    encoder = encoder_of(tiny_bert)
    assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(30))


def test_survives_a_restart_and_computes_nothing_twice(tiny_bert: str, tmp_path: Path) -> None:
    encoder = encoder_of(tiny_bert)
    TrunkCache(tmp_path, encoder).rows(sequences(20))
    counting = Counting(encoder)
    again = TrunkCache(tmp_path, counting)  # type: ignore[arg-type]
    assert_right(again, encoder, sequences(20))
    assert counting.asked == 0
    again.rows(sequences(20) + sequences(5, seed=9))
    assert counting.asked == 5
    assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(20) + sequences(5, seed=9))


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_damaged_byte_is_noticed_and_mended(tiny_bert: str, tmp_path: Path, suffix: str, place: float) -> None:
    encoder = encoder_of(tiny_bert)
    TrunkCache(tmp_path, encoder).rows(sequences(20))
    path = next(tmp_path.glob(f"*.{suffix}"))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x40
    path.write_bytes(content)
    assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(20))


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_file_that_ends_early_is_mended(tiny_bert: str, tmp_path: Path, suffix: str) -> None:
    encoder = encoder_of(tiny_bert)
    TrunkCache(tmp_path, encoder).rows(sequences(20))
    path = next(tmp_path.glob(f"*.{suffix}"))
    os.truncate(path, path.stat().st_size // 2 + 3)
    assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(20))


@needs_bfloat16
def test_what_another_cut_or_type_made_is_not_used(tiny_bert: str, tmp_path: Path) -> None:
    for encoder in (encoder_of(tiny_bert, layers=1), encoder_of(tiny_bert, layers=2)):
        assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(6))
    half = encoder_of(tiny_bert, dtype=torch.bfloat16)
    cache = TrunkCache(tmp_path, half)
    assert cache.gather(cache.rows(sequences(6)))[0].dtype == torch.bfloat16
    assert len({path.stem for path in tmp_path.iterdir()}) == 3


def test_is_private(tiny_bert: str, tmp_path: Path) -> None:
    TrunkCache(tmp_path / "state", encoder_of(tiny_bert)).rows(sequences(3))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()} == {0o600}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_nothing_is_nothing(tiny_bert: str, tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path, encoder_of(tiny_bert))
    assert len(cache.rows([])) == 0
    hidden, mask = cache.gather(np.zeros(0, np.int64))
    assert hidden.shape == (0, 1, 32)
    assert mask.shape == (0, 1)


class TestFailure:
    """After anything goes wrong the cache is as before, in this object and in the next process."""

    def assert_unharmed(self, cache: TrunkCache, encoder: Encoder, folder: Path) -> None:
        assert_right(cache, encoder, sequences(8))
        assert_right(TrunkCache(folder, encoder), encoder, sequences(8))
        assert_right(cache, encoder, sequences(8) + sequences(4, seed=5))
        assert_right(TrunkCache(folder, encoder), encoder, sequences(8) + sequences(4, seed=5))

    @pytest.mark.parametrize("call", ["fsync", "fdopen"])
    def test_of_the_disk(self, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        encoder = encoder_of(tiny_bert)
        TrunkCache(tmp_path, encoder).rows(sequences(8))
        cache = TrunkCache(tmp_path, encoder)
        calls = iter([False, True] + [False] * 99)
        whole = getattr(os, call)

        def full(*arguments: object) -> object:
            if next(calls):
                raise OSError(errno.ENOSPC, "No space left on device")
            return whole(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, full)
            with pytest.raises(StorageError, match="No space left") as caught:
                cache.rows(sequences(4, seed=5))
        assert caught.value.do
        self.assert_unharmed(cache, encoder, tmp_path)

    def test_of_a_write_half_way(self, tiny_bert: str, tmp_path: Path) -> None:
        import resource

        encoder = encoder_of(tiny_bert)
        TrunkCache(tmp_path, encoder).rows(sequences(8))
        cache = TrunkCache(tmp_path, encoder)
        size = next(tmp_path.glob("*.bin")).stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A real limit of the system: the kernel itself refuses the second half.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, hard))
        try:
            with pytest.raises(StorageError):
                cache.rows(sequences(4, seed=5))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert next(tmp_path.glob("*.bin")).stat().st_size == size
        self.assert_unharmed(cache, encoder, tmp_path)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_of_the_computation(
        self, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        # A resident worker outlives a GPU without memory; half a batch on disk would shift all that comes after it.
        monkeypatch.setattr("client.compute.batching.TOKENS", {"cpu": 20})
        encoder = encoder_of(tiny_bert)
        failing = Counting(encoder)
        cache = TrunkCache(tmp_path, failing)  # type: ignore[arg-type]
        cache.rows(sequences(8))
        failing.fail_at, failing.error = failing.asked + 3, error
        with pytest.raises(error):
            cache.rows(sequences(9, seed=7))
        failing.fail_at = None
        self.assert_unharmed(cache, encoder, tmp_path)

    def test_where_no_folder_can_be(self, tiny_bert: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(StorageError) as caught:
            TrunkCache(tmp_path / "file", encoder_of(tiny_bert))
        assert caught.value.do

    @pytest.mark.parametrize("suffix", ["bin", "idx"])
    def test_of_one_file_that_is_gone(self, tiny_bert: str, tmp_path: Path, suffix: str) -> None:
        # Data without its index must not be taken for the new data.
        encoder = encoder_of(tiny_bert)
        TrunkCache(tmp_path, encoder).rows(sequences(8))
        next(tmp_path.glob(f"*.{suffix}")).unlink()
        assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(6, seed=11))
        self.assert_unharmed(TrunkCache(tmp_path, encoder), encoder, tmp_path)


class TestTwoProcesses:
    """`fedfuse recommend` beside a worker: two objects on one folder."""

    def test_what_the_other_added_is_found_and_not_overwritten(self, tiny_bert: str, tmp_path: Path) -> None:
        encoder = encoder_of(tiny_bert)
        one, other = Counting(encoder), Counting(encoder)
        first, second = TrunkCache(tmp_path, one), TrunkCache(tmp_path, other)  # type: ignore[arg-type]
        for seed in range(3):
            held = first.rows(sequences(5, seed=seed))
            before = first.gather(held)[0]
            second.rows(sequences(5, seed=seed + 1))
            assert_right(second, encoder, sequences(5, seed=seed))
            assert_right(first, encoder, sequences(5, seed=seed) + sequences(5, seed=seed + 1))
            assert torch.equal(first.gather(held)[0], before)  # numbers that were handed out stay right
        assert one.asked + other.asked == len({ids.tobytes() for seed in range(4) for ids in sequences(5, seed=seed)})
        assert_right(TrunkCache(tmp_path, encoder), encoder, [ids for seed in range(4) for ids in sequences(5, seed=seed)])

    def test_at_the_same_time(self, tiny_bert: str, tmp_path: Path) -> None:
        encoder = encoder_of(tiny_bert)
        caches = [TrunkCache(tmp_path, encoder) for _ in range(4)]
        # Threads with an object each: flock keeps open files apart, not processes.
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda at: [caches[at].rows(sequences(4, seed=(at + step) % 5)) for step in range(5)], range(4)))
        for cache in [*caches, TrunkCache(tmp_path, encoder)]:
            assert_right(cache, encoder, [ids for seed in range(5) for ids in sequences(4, seed=seed)])

    def test_a_cache_that_was_deleted_below_is_an_error(self, tiny_bert: str, tmp_path: Path) -> None:
        cache = TrunkCache(tmp_path, encoder_of(tiny_bert))
        rows = cache.rows(sequences(5))
        before = cache.gather(rows)[0]
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(StorageError, match="another process"):
            cache.rows(sequences(3, seed=9))
        assert torch.equal(cache.gather(rows)[0], before)


def test_backbones_that_differ_in_settings_alone_do_not_mix(tiny_bert: str, tmp_path: Path) -> None:
    # The same weights, so the same hash; other features all the same.
    plain = encoder_of(tiny_bert)
    backbones = [
        replace(plain.backbone, layer_norm_eps=1.0),
        replace(plain.backbone, shape=replace(plain.backbone.shape, heads=2)),
        replace(plain.backbone, sha256="0" * 64),
    ]
    encoders = [plain, *(Encoder(b, plain.model, device=torch.device("cpu"), dtype=torch.float32) for b in backbones)]
    for encoder in encoders:
        assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(6))
    assert len({path.stem for path in tmp_path.iterdir()}) == 4


def test_a_batch_is_bounded_by_its_longest(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.compute.batching.TOKENS", {"cpu": 128})
    counting = Counting(encoder_of(tiny_bert))
    short = [np.full(1, 9 + at, np.int32) for at in range(70)]
    long = [np.full(50, 9 + at, np.int32) for at in range(20)]
    assert_right(TrunkCache(tmp_path, counting), encoder_of(tiny_bert), short + long)  # type: ignore[arg-type]
    assert max(counting.tokens) <= 128


def test_out_of_memory_computes_fewer_at_a_time(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(encoder_of(tiny_bert))
    trunk = counting.trunk

    def small(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if ids.numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return trunk(ids, mask)

    monkeypatch.setattr(counting, "trunk", small, raising=False)
    seen: list[int] = []
    cache = TrunkCache(tmp_path, counting)  # type: ignore[arg-type]
    cache.rows(sequences(30), seen.append)
    assert sum(seen) == 30 and len(seen) > 1
    assert_right(cache, encoder_of(tiny_bert), sequences(30))


def test_progress_counts_every_sequence_once(tiny_bert: str, tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path, encoder_of(tiny_bert))
    for texts in (sequences(20), sequences(20), sequences(20) + sequences(7, seed=3), []):
        seen: list[int] = []
        cache.rows(texts, seen.append)
        assert sum(seen) == len(texts)


def test_padding_to_a_length_that_was_asked_for(tiny_bert: str, tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path, encoder_of(tiny_bert))
    rows = cache.rows(sequences(4))
    hidden, mask = cache.gather(rows, length=40)
    assert hidden.shape == (4, 40, 32)
    short, short_mask = cache.gather(rows)
    assert torch.equal(hidden[:, : short.shape[1]], short)
    assert torch.equal(mask[:, : short.shape[1]], short_mask)
    assert not hidden[:, short.shape[1] :].any() and not mask[:, short.shape[1] :].any()
    assert cache.lengths(rows).tolist() == [len(ids) for ids in sequences(4)] == mask.sum(1).tolist()


class TestBound:
    def files(self, folder: Path, suffix: str) -> list[Path]:
        return sorted(folder.glob(f"trunk-*{suffix}"))

    def test_the_oldest_go_when_the_next_run_opens_it(self, tiny_bert: str, tmp_path: Path) -> None:
        encoder, texts = encoder_of(tiny_bert), sequences(30)
        TrunkCache(tmp_path, encoder).rows(texts)
        TrunkCache(tmp_path, encoder).rows(sequences(5, seed=9))
        (data,) = self.files(tmp_path, ".bin")
        whole = data.stat().st_size
        counting = Counting(encoder)
        cache = TrunkCache(tmp_path, counting, most=whole // 3)  # type: ignore[arg-type]
        assert data.stat().st_size <= whole // 3
        assert 5 <= len(cache) < 35
        assert_right(cache, encoder, sequences(5, seed=9))
        assert counting.asked == 0  # the newest stayed
        assert_right(cache, encoder, texts)

    def test_nothing_goes_while_another_reads_it(self, tiny_bert: str, tmp_path: Path) -> None:
        encoder, texts = encoder_of(tiny_bert), sequences(20)
        first = TrunkCache(tmp_path, encoder)
        first.rows(texts)
        assert len(TrunkCache(tmp_path, encoder, most=10)) == 20
        assert_right(first, encoder, texts + sequences(3, seed=9))

    def test_caches_of_other_backbones_go_the_longest_unused_first(self, tiny_bert: str, tmp_path: Path) -> None:
        for layers in (1, 2):
            TrunkCache(tmp_path, encoder_of(tiny_bert, layers=layers)).rows(sequences(20))
        first = min(self.files(tmp_path, ".bin"), key=lambda path: path.stat().st_mtime)
        os.utime(first, (0, 0))
        size = first.stat().st_size
        TrunkCache(tmp_path, encoder_of(tiny_bert, layers=3), most=size + 10)
        assert not first.exists() and len(self.files(tmp_path, ".idx")) == 2
        TrunkCache(tmp_path, encoder_of(tiny_bert, layers=3), most=10)
        assert len(self.files(tmp_path, ".bin")) == 1

    def test_a_crash_between_the_two_files_costs_only_time(
        self, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder, texts = encoder_of(tiny_bert), sequences(20)
        TrunkCache(tmp_path, encoder).rows(texts)
        replaced: list[Path] = []

        def dies(self: Path, target: Path) -> None:
            if replaced:
                raise KeyboardInterrupt
            replaced.append(target)
            target.write_bytes(self.read_bytes())

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dies)
            with pytest.raises(KeyboardInterrupt):
                TrunkCache(tmp_path, encoder, most=4000)
        assert [path.suffix for path in replaced] == [".bin"]
        assert_right(TrunkCache(tmp_path, encoder), encoder, texts)

    @needs_bfloat16
    def test_float32_is_kept_in_float16_and_bfloat16_as_it_is(self, tiny_bert: str, tmp_path: Path) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            encoder = encoder_of(tiny_bert, dtype=dtype)
            cache = TrunkCache(tmp_path / str(dtype), encoder)
            hidden, _ = cache.gather(cache.rows(sequences(3)))
            assert hidden.dtype == dtype
            (data,) = self.files(tmp_path / str(dtype), ".bin")
            assert data.stat().st_size == 2 * 32 * sum(map(len, sequences(3)))


class TestReading:
    def test_gives_the_encoders_features_of_old_and_new_sequences(self, tiny_bert: str, tmp_path: Path) -> None:
        counting = Counting(encoder_of(tiny_bert))
        cache = TrunkCache(tmp_path, counting)  # type: ignore[arg-type]
        cache.rows(sequences(6))
        texts = [*sequences(6), *sequences(5, seed=3), sequences(1)[0]]
        found = cache.read(texts)
        assert counting.asked == 11
        hidden, mask = found.gather(np.arange(12), length=20)
        for at, ids in enumerate(texts):
            assert mask[at].sum() == len(ids) and not hidden[at, len(ids) :].any()
            torch.testing.assert_close(hidden[at, : len(ids)], expected(encoder_of(tiny_bert), ids), atol=4e-3, rtol=2e-3)
        # What was read is kept, for this object and for the next.
        again = cache.read(texts).gather(np.arange(12), length=20)[0]
        assert torch.equal(again, hidden) and counting.asked == 11
        assert len(TrunkCache(tmp_path, encoder_of(tiny_bert))) == 11
        assert len(cache.read([]).gather(np.zeros(0, np.int64), length=1)[0]) == 0

    def test_keeps_up_to_twice_the_bound_and_then_gives_without_keeping(self, tiny_bert: str, tmp_path: Path) -> None:
        encoder = encoder_of(tiny_bert)
        texts = [np.full(4, 9 + at, np.int32) for at in range(10)]
        one = 4 * 32 * 2
        cache = TrunkCache(tmp_path, encoder, most=2 * one)
        for ids in texts:
            cache.read([ids])
        assert len(cache) == 4 and next(tmp_path.glob("*.bin")).stat().st_size == 4 * one
        hidden, _ = cache.read(texts).gather(np.arange(10), length=4)
        for at, ids in enumerate(texts):
            torch.testing.assert_close(hidden[at], expected(encoder, ids), atol=4e-3, rtol=2e-3)
        del cache
        # The next run begins with the newest of them, as many as the bound says.
        assert len(TrunkCache(tmp_path, encoder, most=2 * one)) == 2


@pytest.mark.parametrize("backbone", ["minilm", "tiny"])
def test_others_do_not_move_a_texts_last_bits(tiny_bert: str, tmp_path: Path, backbone: str) -> None:
    """Few tokens go through other kernels, and an adapter can be chosen that makes much of what these round otherwise."""
    encoder = encoder_of(tiny_bert if backbone == "tiny" else backbone)
    seen: dict[bytes, torch.Tensor] = {}

    class Kept(Counting):
        def trunk(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = super().trunk(ids, mask)
            for row, length in enumerate(mask.sum(1).tolist()):
                key = ids[row, :length].numpy().tobytes()
                assert torch.equal(seen.setdefault(key, hidden[row, :length]), hidden[row, :length])
            return hidden

    texts = [np.arange(5, 5 + length, dtype=np.int32) for length in (1, 2, 3, 5, 8, 9, 14, 17, 40)]
    everybody = TrunkCache(tmp_path / "all", Kept(encoder))  # type: ignore[arg-type]
    everybody.read(texts)
    assert len(seen) == len(texts)
    for at, text in enumerate(texts):
        TrunkCache(tmp_path / f"{at}", Kept(encoder)).read([text])
        TrunkCache(tmp_path / f"{at}-and-less", Kept(encoder)).read(texts[: at + 1])
