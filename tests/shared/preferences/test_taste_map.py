"""The taste map as it is made and published: the same directions everywhere, what is above the noise, and nothing damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shared.base.errors import InputError, ProtocolError
from shared.preferences.packing import packed
from shared.preferences.taste_directions import item_directions, public_projection
from shared.preferences.taste_map import FILE, TasteMap, denoised_map, load_taste_map, save_taste_map, taste_view

RANDOM = np.random.default_rng(3)


def symmetric(*values: float, width: int = 8) -> np.ndarray:
    """A matrix with these eigenvalues, and 0 for the others."""
    basis, _ = np.linalg.qr(RANDOM.normal(size=(width, width)))
    return (basis[:, : len(values)] * np.asarray(values)) @ basis[:, : len(values)].T


def taste(matrix: np.ndarray) -> TasteMap:
    matrix = matrix.astype(np.float32)
    return TasteMap(
        matrix=(matrix + matrix.T) / 2, noise=0.5, users=90, backbone="minilm", backbone_sha256="", width=12, item_tokens=32
    )


def test_the_projection_is_written_down_by_its_seed() -> None:
    basis = public_projection(12, 3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    # Another value is another projection than that of every map that was published.
    np.testing.assert_allclose(basis[0], [0.288675, 0.288675, -0.109109], atol=1e-6)
    np.testing.assert_allclose(public_projection(300, 5)[0], [0.057735, 0.058902, 0.052745, 0.061043, -0.04696], atol=1e-6)
    assert not np.allclose(public_projection(12, 4)[:, :3], basis)


def test_more_directions_than_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="13 directions"):
        public_projection(12, 13)


def test_directions_are_centred_and_of_length_one() -> None:
    vectors = RANDOM.normal(size=(30, 12)).astype(np.float32) + 5
    found = item_directions(vectors, 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(found, item_directions(vectors - 7, 4), atol=1e-5)
    assert not item_directions(np.ones((3, 12), np.float32), 4).any()


def test_noise_alone_leaves_nothing_and_a_strong_direction_stays() -> None:
    width, noise = 16, 2.0
    alone = RANDOM.normal(size=width * (width + 1) // 2) * noise
    assert np.linalg.matrix_rank(denoised_map(alone, width, noise=noise)) <= 1
    strong = symmetric(900.0, -300.0, width=width)
    found = denoised_map(packed(strong) + alone, width, noise=noise)
    assert np.linalg.norm(found - strong) < np.linalg.norm(symmetric(30.0, 30.0, width=width)) * 2
    np.testing.assert_allclose(denoised_map(packed(strong), width, noise=0.0), strong, atol=1e-3)


def test_each_eigenvalue_beyond_the_edge_is_moved_back_and_each_other_is_nothing() -> None:
    """An eigenvalue t of the truth is found at t + edge^2 / 4t (Benaych-Georges & Nadakuditi 2011), of either sign."""
    noise, width = 0.5, 8
    edge = noise * np.sqrt(2 * width)  # 2
    truth, found = (9.0, -4.0, 1.5, -1.1), [0.0, 0.0, 0.0, 0.0]
    for at, value in enumerate(truth):
        found[at] = value + np.sign(value) * edge**2 / 4 / abs(value)
    basis, _ = np.linalg.qr(RANDOM.normal(size=(width, width)))

    def with_values(*values: float) -> np.ndarray:
        return (basis[:, : len(values)] * np.asarray(values)) @ basis[:, : len(values)].T

    noised = with_values(*found, 1.99, -1.99, 0.3)
    np.testing.assert_allclose(denoised_map(packed(noised), width, noise=noise), with_values(*truth), atol=1e-5)


class TestView:
    DIRECTIONS = item_directions(RANDOM.normal(size=(50, 12)).astype(np.float32), 8)

    def test_the_map_has_norm_one_and_no_leading_direction(self) -> None:
        matrix = symmetric(100.0, 5.0, -3.0)
        view = taste_view(matrix, self.DIRECTIONS)
        assert np.linalg.norm(view @ matrix @ view.T, 2) == pytest.approx(1.0)
        leading = np.linalg.eigh(matrix)[1][:, -1]
        np.testing.assert_allclose(view @ leading, 0.0, atol=1e-9)
        without = matrix - 100.0 * np.outer(leading, leading)
        np.testing.assert_allclose(view @ without @ view.T, view @ matrix @ view.T, atol=1e-9)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_the_covariance_of_the_items_is_divided_out(self, sign: float) -> None:
        """(S + l I)^-1 P A P (S + l I)^-1 over its norm, l three tenths of S's mean eigenvalue."""
        matrix = sign * symmetric(100.0, 5.0, -3.0, 2.0)
        values, vectors = np.linalg.eigh(matrix)
        leading = vectors[:, np.abs(values).argmax()]
        covariance = np.cov(self.DIRECTIONS.T, bias=True) + np.outer(self.DIRECTIONS.mean(0), self.DIRECTIONS.mean(0))
        inverse = np.linalg.inv(covariance + 0.3 * np.linalg.eigvalsh(covariance).mean() * np.eye(8))
        without = np.eye(8) - np.outer(leading, leading)
        expected = inverse @ without @ matrix @ without @ inverse
        view = taste_view(matrix, self.DIRECTIONS)
        np.testing.assert_allclose(view @ matrix @ view.T, expected / np.abs(np.linalg.eigvalsh(expected)).max(), atol=1e-9)

    @pytest.mark.parametrize("values", [(), (40.0,)])
    def test_of_one_direction_nothing_is_left(self, values: tuple[float, ...]) -> None:
        assert not taste_view(symmetric(*values), self.DIRECTIONS).any()


class TestFile:
    def test_it_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        made = taste(symmetric(9.0, -2.0))
        save_taste_map(tmp_path / FILE, made)
        found = load_taste_map(tmp_path / FILE)
        assert replace(found, matrix=made.matrix) == made and np.array_equal(found.matrix, made.matrix)
        assert (found.directions, found.strong) == (8, 2)

    @pytest.mark.parametrize("damage", ["none", "short", "projection", "asymmetric", "nan", "fact"])
    def test_a_damaged_one_is_refused(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / FILE
        save_taste_map(path, taste(symmetric(9.0, -2.0)))
        tensors, facts = load_file(path), {"noise": 0.5, "users": 1, "backbone": "m", "backbone_sha256": ""}
        facts |= {"width": 12, "item_tokens": 32}
        if damage == "none":
            path.unlink()
        elif damage == "short":
            path.write_bytes(path.read_bytes()[:-9])
        else:
            tensors["projection"] = tensors["projection"] * (-1 if damage == "projection" else 1)
            tensors["map"][0, 1] += {"asymmetric": 1.0, "nan": np.nan}.get(damage, 0.0)
            if damage == "fact":
                facts["item_tokens"] = 0
            import json

            save_file(tensors, path, metadata={"taste": json.dumps(facts)})
        with pytest.raises(InputError, match="there is no" if damage == "none" else "damaged"):
            load_taste_map(path)

    def test_its_own_shape_is_checked(self) -> None:
        made = taste(symmetric(1.0))
        assert replace(made, width=8).directions == 8 and replace(made, width=1 << 14).width == 1 << 14
        for width in (7, 4, (1 << 14) + 1):
            with pytest.raises(ProtocolError, match="shape"):
                replace(made, width=width)
        for matrix in (np.zeros((0, 0)), np.zeros((2, 3)), np.zeros((257, 257))):
            with pytest.raises(ProtocolError, match="shape"):
                replace(made, matrix=matrix.astype(np.float32), width=300)
        assert replace(made, matrix=np.zeros((256, 256), np.float32), width=300).strong == 0

    @pytest.mark.parametrize(
        ("good", "bad"),
        [
            ({"noise": 0.0}, {"noise": -1e-9}),
            ({"noise": 1e300}, {"noise": np.inf}),
            ({"users": 0}, {"users": -1}),
            ({"item_tokens": 1}, {"item_tokens": 0}),
            ({"item_tokens": 1 << 12}, {"item_tokens": (1 << 12) + 1}),
        ],
    )
    def test_its_facts_have_bounds(self, good: dict[str, float], bad: dict[str, float]) -> None:
        made = taste(symmetric(1.0))
        replace(made, **good)  # type: ignore[arg-type]
        with pytest.raises(ProtocolError, match="taste map"):
            replace(made, **bad)  # type: ignore[arg-type]
