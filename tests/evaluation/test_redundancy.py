"""Divergence to the nearest token, beside a slow reference and on pictures known in advance."""

from __future__ import annotations

import math

import pytest
import torch

from lightkv_gnn.evaluation.redundancy import nearest_divergence, patch_pixels, shares_below


def test_it_is_what_a_loop_over_all_pairs_finds() -> None:
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    found = nearest_divergence(x)
    for picture, tokens in enumerate(x.double()):
        for one in range(7):
            others = [
                1
                - float(tokens[one] @ tokens[other])
                / float(tokens[one].norm() * tokens[other].norm())
                for other in range(7)
                if other != one
            ]
            assert float(found[picture, one]) == pytest.approx(min(others), abs=1e-6)


def test_neither_order_nor_length_matters_and_a_copy_is_at_no_distance() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 6, 4, generator=generator)
    order = torch.randperm(6, generator=generator)
    lengths = torch.rand(1, 6, 1, generator=generator) + 0.5
    assert torch.allclose(nearest_divergence(x * lengths), nearest_divergence(x), atol=1e-6)
    assert torch.allclose(nearest_divergence(x[:, order]), nearest_divergence(x)[:, order])
    twice = nearest_divergence(torch.cat([x, 3 * x], dim=1))
    assert torch.allclose(twice, torch.zeros(1, 12), atol=1e-6)


def test_tokens_at_right_angles_are_one_apart() -> None:
    divergence = nearest_divergence(torch.eye(4)[None])
    assert divergence.tolist() == [[1.0] * 4]
    assert shares_below(divergence, (0.5, 1.5)) == [0.0, 1.0]
    opposite = nearest_divergence(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]))
    assert opposite.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("shape", [(4, 3), (2, 1, 3)])
def test_a_token_needs_another_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 tokens or more"):
        nearest_divergence(torch.ones(shape))


def test_patches_are_those_of_the_picture_in_raster_order() -> None:
    pixels = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    patches = patch_pixels(pixels, 2)
    assert patches.shape == (2, 6, 12)
    for number in range(6):
        row, column = 2 * (number // 3), 2 * (number % 3)
        square = pixels[:, :, row : row + 2, column : column + 2]
        assert torch.equal(patches[:, number], square.flatten(1))
    assert math.isclose(
        float(nearest_divergence(patch_pixels(torch.ones(1, 3, 8, 8), 2)).max()), 0, abs_tol=1e-6
    )
