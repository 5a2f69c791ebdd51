"""Whether training is compiled: where it pays, where it works, and with words where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from client.compute.backend import compiles, ready_encoder, uses_kernels
from client.model.prepared_platform import prepare
from shared.base.errors import InputError
from shared.base.settings import Settings
from shared.layers.torch_compile import compile_obstacle
from shared.model.backbone import BackboneShape, load_backbone
from tests.support.bfloat16 import needs_bfloat16

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
Make = Callable[..., Settings]


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    compile_obstacle.cache_clear()
    yield
    compile_obstacle.cache_clear()


@pytest.mark.parametrize(
    ("choice", "device", "works", "expected"),
    [
        ("auto", GPU, True, True),
        ("auto", GPU, False, False),
        ("auto", CPU, True, False),
        ("off", GPU, True, False),
        ("on", CPU, True, True),
    ],
)
def test_auto_compiles_on_a_gpu_where_that_works(
    tiny_settings: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    choice: str,
    device: torch.device,
    works: bool,
    expected: bool,
) -> None:
    monkeypatch.setattr("client.compute.backend.compile_obstacle", lambda device: "" if works else "no compiler")
    with caplog.at_level(logging.WARNING, "fedfuse.compile"):
        assert compiles(tiny_settings(training={"compile": choice}), device) == expected
    assert ("no compiler" in caplog.text) == (choice == "auto" and device == GPU and not works)


def test_on_is_refused_with_the_reason_where_it_does_not_work(tiny_settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.compute.backend.compile_obstacle", lambda device: "no compiler")
    with pytest.raises(InputError, match="does not work here: no compiler"):
        compiles(tiny_settings(training={"compile": "on"}), CPU)


def test_a_compiler_that_was_asked_for_is_missed_before_anything_is_read(
    tiny_settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("client.compute.backend.compile_obstacle", lambda device: "no compiler")
    monkeypatch.setattr("client.model.prepared_platform.read_platform", lambda *_: pytest.fail("sources were read"))
    with pytest.raises(InputError, match="no compiler"):
        prepare(cast(Any, None), tiny_settings(training={"compile": "on"}), cache=tmp_path, device=CPU)


def test_a_missing_compiler_is_an_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor import config

    # Of what was compiled before, a compiler is not asked for again.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    # monkeypatch would not put it back: the setting is no attribute of the class that `config.cpp` is.
    with config.patch({"cpp.cxx": (None, "/nonexistent/c++")}):
        assert "compiler" in compile_obstacle(CPU)


def test_what_compiles_has_none_and_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def compiled(function: Any, **keywords: Any) -> Any:
        made.append(keywords)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    assert compile_obstacle(CPU) == compile_obstacle(CPU) == ""
    assert len(made) == 1


def test_an_error_without_words_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: Any) -> Any:
        raise OSError

    monkeypatch.setattr(torch, "compile", lambda function, **keywords: broken)
    assert compile_obstacle(CPU) == "OSError"


MINILM = BackboneShape(hidden=384, layers=6, heads=12, intermediate=1536, vocabulary=9, positions=9)


@pytest.mark.parametrize(
    ("choice", "device", "shape", "dtype", "found", "expected"),
    [
        ("auto", CPU, MINILM, torch.bfloat16, "", True),
        ("auto", CPU, MINILM, torch.bfloat16, "no compiler", False),
        ("auto", CPU, MINILM, torch.float32, "", False),
        ("auto", GPU, MINILM, torch.bfloat16, "", False),
        ("auto", CPU, replace(MINILM, heads=48), torch.bfloat16, "", False),
        ("off", CPU, MINILM, torch.bfloat16, "", False),
    ],
)
def test_a_processors_kernels_where_they_serve_and_work(
    tiny_settings: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    choice: str,
    device: torch.device,
    shape: BackboneShape,
    dtype: torch.dtype,
    found: str,
    expected: bool,
) -> None:
    asked = []
    monkeypatch.setattr("client.compute.backend.native.kernel_obstacle", lambda: asked.append(1) or found)
    monkeypatch.setattr("client.compute.backend.compute_dtype", lambda _: dtype)
    with caplog.at_level(logging.WARNING, "fedfuse.compile"):
        assert uses_kernels(tiny_settings(training={"compile": choice}), device, shape) == expected
    # They are built only where they will be used.
    assert bool(asked) == (expected or bool(found))
    assert ("no compiler" in caplog.text) == bool(found)


@needs_bfloat16
@pytest.mark.parametrize("there", [True, False])
def test_a_moments_work_goes_through_kernels_that_are_there(
    kernel_bert: str, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr("client.compute.backend.native.ready", lambda: there)
    monkeypatch.setattr("client.compute.backend.compute_dtype", lambda _: torch.bfloat16)
    encoder = ready_encoder(load_backbone(kernel_bert), Settings().model, CPU)
    gone = []
    monkeypatch.setattr("shared.model.encoder.blocked.kernels_suit", lambda *_: bool(gone.append(1)))
    encoder.trunk(torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool))
    assert bool(gone) == there
