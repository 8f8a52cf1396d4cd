"""Masks and positions of compressed layers, entry by entry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from lightkv_gnn.attention.masks import compressed_mask, real_tokens, with_log_mass
from lightkv_gnn.attention.positions import rotary_rows, token_rows
from lightkv_gnn.errors import UnsupportedInputError

PAST, LENGTH = 3, 6

# Tokens of the call that are left, and what the layer's cache held before; -1 is padding.
ROWS = torch.tensor([[-1, 1, 2, 5], [0, 2, 4, 5]])
BEFORE = torch.tensor([[0, 2], [-1, 1]])
COLUMNS = torch.cat([BEFORE, torch.where(ROWS < 0, -1, ROWS + PAST)], 1)


def causal(kind: str, batch: int = 2, heads: int = 1) -> Tensor:
    """The mask of all tokens, with one more pair forbidden in each sample and head."""
    allowed = torch.ones(LENGTH, PAST + LENGTH).tril(PAST).bool().expand(batch, heads, -1, -1)
    allowed = allowed.clone()
    for sample in range(batch):
        for head in range(heads):
            allowed[sample, head, 5, sample + head + 1] = False
    if kind == "bool":
        return allowed
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


def is_allowed(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize(("batch", "heads"), [(2, 1), (1, 1), (2, 3)])
def test_entries_of_a_prefill(batch: int, heads: int, kind: str) -> None:
    given = causal(kind, batch, heads)
    made = compressed_mask(given, ROWS, COLUMNS, ragged=True, past=PAST)
    assert made is not None
    assert made.dtype == given.dtype
    assert made.shape == (2, heads, 4, 6)
    for b in range(2):
        for h in range(heads):
            for i, row in enumerate(ROWS[b].tolist()):
                for j, column in enumerate(COLUMNS[b].tolist()):
                    source = given[b if batch == 2 else 0, h, row, column]
                    expected = column >= 0 and bool(is_allowed(source))
                    assert row < 0 or bool(is_allowed(made[b, h, i, j])) == expected
    # What padding rows see does not matter, but a softmax over nothing is NaN.
    assert bool(is_allowed(made).any(-1).all())


@pytest.mark.parametrize("past", [0, PAST])
def test_a_mask_where_none_was(past: int) -> None:
    columns = COLUMNS if past else ROWS
    made = compressed_mask(None, ROWS, columns, ragged=True, past=past)
    assert made is not None
    full = torch.ones(2, 1, LENGTH, past + LENGTH).tril(past).bool()
    assert torch.equal(made, compressed_mask(full, ROWS, columns, ragged=True, past=past))
    seen = [[column for column in columns[1].tolist() if 0 <= column <= r + past] for r in ROWS[1]]
    assert made[1, 0].sum(-1).tolist() == [len(row) for row in seen]
    assert bool(made.any(-1).all())


@pytest.mark.parametrize("rows", [ROWS, None], ids=["prefill", "step"])
def test_none_stays_none_without_padding(rows: Tensor | None) -> None:
    assert compressed_mask(None, rows, COLUMNS.clamp(min=0), ragged=False, past=PAST) is None


@pytest.mark.parametrize("kind", ["bool", "additive", "none"])
def test_entries_of_a_step(kind: str) -> None:
    columns = torch.tensor([[0, 3, 4, 8], [-1, -1, 5, 8]])
    given = None
    if kind != "none":
        given = causal(kind)[:, :, -1:]
        given[0, 0, 0, 4] = False if kind == "bool" else torch.finfo(torch.float32).min
    made = compressed_mask(given, None, columns, ragged=True)
    assert made is not None
    expected = [[True, True, kind == "none", True], [False, False, True, True]]
    assert is_allowed(made)[:, 0, 0].tolist() == expected


def test_real_tokens() -> None:
    expected = torch.tensor([[False, True, True], [True, True, True]])
    old = torch.ones(2, 2)
    for dtype in (torch.int64, torch.bool, torch.float32):
        mask = torch.cat([old, expected], 1).to(dtype)
        assert torch.equal(real_tokens(mask, 2, 3, 2), expected)
    assert bool(real_tokens(None, 2, 3, 2).all())
    wide = torch.ones(2, 1, 3, 5).tril(2).bool()
    wide[0, 0, :, 2] = False
    additive = torch.zeros(wide.shape).masked_fill(~wide, -torch.inf)
    for mask in (wide, additive, wide.expand(-1, 4, -1, -1)):
        assert torch.equal(real_tokens(mask, 2, 3, 2), expected)
    assert torch.equal(real_tokens(wide[:1], 2, 3, 2), expected[[0, 0]])


@pytest.mark.parametrize("shape", [(2, 3), (3, 5), (2, 6), (5,), (2, 3, 5), (2, 1, 5, 5)])
def test_masks_of_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedInputError, match=r"expected \[2, 5\].*or \[2, 1, 3, 5\]"):
        real_tokens(torch.ones(shape), 2, 3, 2)


@pytest.mark.parametrize("batch", [1, 2])
def test_positions_are_the_survivors_own(batch: int) -> None:
    table = torch.randn(batch, LENGTH, 4)
    ids = torch.randint(0, 99, (batch, LENGTH))
    cos, sin = rotary_rows((table, 2 * table), ROWS)
    moved = token_rows("ids", ids, ROWS, -1)
    for b in range(2):
        own = b if batch == 2 else 0
        for i, row in enumerate(ROWS[b].tolist()):
            if row >= 0:
                assert torch.equal(cos[b, i], table[own, row])
                assert torch.equal(sin[b, i], 2 * table[own, row])
                assert moved[b, i] == ids[own, row]


@pytest.mark.parametrize("rows", [ROWS, None], ids=["prefill", "step"])
def test_entries_of_a_padding_mask(rows: Tensor | None) -> None:
    """What is causal is the kernel's matter: rows play no part."""
    given = torch.tensor([[1, 1, 0, 1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]])
    for mask in (given, given.bool()):
        made = compressed_mask(mask, rows, COLUMNS, ragged=True, past=PAST, form="padding")
        assert made is not None
        assert made.dtype == torch.bool
        # Columns are [[0, 2, -1, 4, 5, 8], [-1, 1, 3, 5, 7, 8]].
        assert made.tolist() == [
            [True, False, False, False, True, True],
            [False, True, True, True, True, True],
        ]
    made = compressed_mask(None, rows, COLUMNS, ragged=True, past=PAST, form="padding")
    assert torch.equal(made, COLUMNS >= 0)
    full = COLUMNS.clamp(min=0)
    assert compressed_mask(None, rows, full, ragged=False, form="padding") is None
    with pytest.raises(UnsupportedInputError, match="takes padding masks only"):
        compressed_mask(causal("bool"), rows, COLUMNS, ragged=True, form="padding")


@pytest.mark.parametrize("heads", [1, 3])
def test_entries_of_a_block_mask(heads: int) -> None:
    dense = causal("bool", heads=heads)
    queries, keys = dense.shape[2:]
    given = create_block_mask(
        lambda b, h, q, k: dense[b, h, q, k], 2, heads, queries, keys, "cpu", BLOCK_SIZE=(4, 2)
    )
    made = compressed_mask(given, ROWS, COLUMNS, ragged=True, past=PAST)
    assert isinstance(made, BlockMask)
    assert made.shape == (2, heads, *ROWS.shape[1:], *COLUMNS.shape[1:])
    assert made.BLOCK_SIZE == (4, 2)
    expected = compressed_mask(dense, ROWS, COLUMNS, ragged=True, past=PAST)
    assert torch.equal(
        written_out(made)[ROWS[:, None].expand(-1, heads, -1) >= 0],
        expected[ROWS[:, None].expand(-1, heads, -1) >= 0],
    )
    step = compressed_mask(given, None, COLUMNS, ragged=True)
    expected = compressed_mask(dense, None, COLUMNS, ragged=True)
    assert torch.equal(written_out(step), expected)


def written_out(mask: BlockMask) -> Tensor:
    return create_mask(mask.mask_mod, *mask.shape, device="cpu")


def test_a_mask_that_is_no_tensor() -> None:
    mask = create_block_mask(lambda b, h, q, k: q >= k, 2, None, 3, 5, "cpu")
    with pytest.raises(UnsupportedInputError, match=r"is a BlockMask.*pass a tensor \[2, 5\]"):
        real_tokens(mask, 2, 3, 2)
    with pytest.raises(UnsupportedInputError, match="is a BlockMask"):
        real_tokens({"sliding_attention": None, "full_attention": mask}, 2, 3, 2)
    assert real_tokens({"full_attention": None}, 2, 3, 2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_no_mass_overflows(kind: str, dtype: torch.dtype) -> None:
    """Its logarithm is small, whatever it is; and what is hidden stays so."""
    mass = torch.tensor([[1.0, 2.0, 2.0**24]])
    seen = torch.tensor([[[[True, False, True]]]])
    mask = {
        "none": None,
        "bool": seen,
        "additive": torch.zeros(1, 1, 1, 3, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min),
    }[kind]
    made = with_log_mass(mask, mass.log(), dtype)
    assert made.dtype == dtype
    assert bool(made.isfinite().all())
    weights = made.float().softmax(-1)[0, 0, 0]
    expected = mass[0] if kind == "none" else mass[0] * seen[0, 0, 0]
    torch.testing.assert_close(weights, expected / expected.sum(), atol=1e-4, rtol=0.1)
