"""The adapter format: names, shapes, how it begins, and what is refused from another party."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import InputError, ProtocolError
from shared.base.settings import ModelSettings, Settings
from shared.model.adapter import (
    TARGETS,
    first_trained,
    initial,
    is_a,
    layout_of,
    require_layout,
    targets_of,
    trained,
)
from shared.model.backbone import BackboneShape, shape_of
from shared.protocol.messages import Factors

SHAPE = BackboneShape(hidden=8, layers=6, heads=2, intermediate=20, vocabulary=99, positions=16)
EVERY = ",".join(TARGETS)


class TestTargets:
    @given(st.lists(st.sampled_from([*TARGETS, "pooler", "", "Query"]), min_size=1, max_size=7))
    def test_are_known_names_each_once_or_an_error(self, names: list[str]) -> None:
        model = ModelSettings(targets=" , ".join(names))
        if set(names) <= set(TARGETS) and len(set(names)) == len(names):
            assert targets_of(model) == tuple(names)
        else:
            with pytest.raises(InputError, match=r"model\.targets") as caught:
                targets_of(model)
            assert "query" in caught.value.do

    def test_are_the_maps_of_a_bert_layer(self, tiny_bert: str) -> None:
        import torch
        from transformers import BertModel

        layer = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).encoder.layer[0]
        maps = {name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
        assert maps == set(TARGETS.values())


class TestLayout:
    @given(
        rank=st.integers(1, 5),
        layers=st.integers(1, 6),
        targets=st.lists(st.sampled_from(sorted(TARGETS)), min_size=1, unique=True),
    )
    def test_every_product_has_the_shape_of_its_map(self, rank: int, layers: int, targets: list[str]) -> None:
        model = ModelSettings(rank=rank, layers=layers, targets=",".join(targets))
        layout = layout_of(SHAPE, model)
        # Out x in of a linear map, as torch stores its weight.
        maps = {"intermediate": (20, 8), "output": (8, 20)}
        expected = {
            f"encoder.layer.{layer}.{TARGETS[target]}": maps.get(target, (8, 8))
            for layer in range(6 - layers, 6)
            for target in targets
        } | {"head": (8, 8)}
        assert set(layout) == {f"{name}.lora_{factor}" for name in expected for factor in "AB"}
        for name, (out, inner) in expected.items():
            assert layout[f"{name}.lora_A"] == (rank, inner)
            assert layout[f"{name}.lora_B"] == (out, rank)

    @pytest.mark.parametrize(("layers", "found"), [(1, 0), (2, 1), (6, 4), (12, 8), (24, 16)])
    def test_the_top_third_trains_by_default(self, layers: int, found: int) -> None:
        shape = BackboneShape(hidden=8, layers=layers, heads=2, intermediate=20, vocabulary=99, positions=16)
        assert first_trained(shape, ModelSettings()) == found

    def test_more_layers_than_there_are(self) -> None:
        with pytest.raises(InputError, match="has 6") as caught:
            first_trained(SHAPE, ModelSettings(layers=7))
        assert caught.value.do


class TestInitial:
    def settings(self, backbone: str, **over: object) -> Settings:
        return Settings(model=ModelSettings(backbone=backbone, layers=2, rank=4, targets=EVERY), **over)  # type: ignore[arg-type]

    def test_has_the_layout_and_changes_nothing(self, tiny_bert: str) -> None:
        settings = self.settings(tiny_bert)
        adapter = initial(settings)
        require_layout(adapter, layout_of(shape_of(tiny_bert), settings.model), where="test")
        assert all(value.dtype == np.float32 for value in adapter.values())
        assert all(bool(value.any()) == is_a(name) for name, value in adapter.items())

    def test_repeats_by_seed_alone(self, tiny_bert: str) -> None:
        np.random.seed(1)
        first = initial(self.settings(tiny_bert, seed=1))
        np.random.seed(2)
        again, other = initial(self.settings(tiny_bert, seed=1, rounds=77)), initial(self.settings(tiny_bert, seed=2))
        assert all((first[name] == again[name]).all() for name in first)
        assert not any((first[name] == other[name]).all() for name in first if is_a(name))

    def test_no_two_tensors_begin_alike(self, tiny_bert: str) -> None:
        values = [value.tobytes() for name, value in initial(self.settings(tiny_bert)).items() if is_a(name)]
        assert len(set(values)) == len(values)

    def test_begins_as_peft_begins(self, tiny_bert: str) -> None:
        # PEFT's default: kaiming_uniform with a = sqrt 5, that is uniform within 1 / sqrt(inner width).
        for name, value in initial(self.settings(tiny_bert)).items():
            if is_a(name):
                bound = 1 / math.sqrt(value.shape[1])
                assert 0.8 * bound < np.abs(value).max() <= bound
                assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.25)


def test_trained_names_are_the_factors_asked_for() -> None:
    names = dict.fromkeys(layout_of(SHAPE, ModelSettings(targets=EVERY)))
    both, a, b = (trained(names, factors) for factors in (Factors.BOTH, Factors.A, Factors.B))
    assert both == list(names)
    assert all(name.endswith("lora_A") for name in a)
    assert all(name.endswith("lora_B") for name in b)
    assert sorted(a + b) == sorted(both)


LAYOUT = {"x.lora_A": (2, 3), "x.lora_B": (4, 2)}


class TestRequireLayout:
    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.ones(shape, np.float32) for name, shape in LAYOUT.items()}

    def test_the_right_one_passes(self) -> None:
        require_layout(self.arrays(), LAYOUT, where="test")

    @pytest.mark.parametrize(
        "spoil", ["missing", "extra", "renamed", "transposed", "flat", "rank", "nan", "inf", "-inf", "empty"]
    )
    def test_anything_else_is_refused(self, spoil: str) -> None:
        arrays = self.arrays()
        if spoil == "missing":
            del arrays["x.lora_B"]
        elif spoil == "extra":
            arrays["y"] = np.ones(1, np.float32)
        elif spoil == "renamed":
            arrays["X.lora_A"] = arrays.pop("x.lora_A")
        elif spoil == "transposed":
            arrays["x.lora_A"] = arrays["x.lora_A"].T
        elif spoil == "flat":
            arrays["x.lora_A"] = arrays["x.lora_A"].ravel()
        elif spoil == "rank":
            arrays["x.lora_A"] = np.ones((1, 3), np.float32)
        elif spoil == "empty":
            arrays = {}
        else:
            arrays["x.lora_B"][3, 1] = float(spoil)
        with pytest.raises(ProtocolError) as caught:
            require_layout(arrays, LAYOUT, where="platform shop")
        assert caught.value.where == "platform shop"
