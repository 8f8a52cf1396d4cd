"""A prefill's bookkeeping never waits for the device it is on."""

from __future__ import annotations

import pytest
import torch

import lightkv_gnn as lk
from lightkv_gnn.session.prefill import Prefill
from lightkv_graphs import TokenLayout

META = torch.device("meta")
STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]


def prefill(*, ragged: bool, **options: object) -> Prefill:
    """Two samples of a picture of 4 x 4 or 2 x 4 tokens between words, padded at the left."""
    config = lk.LightKVConfig(STAGES, **options)  # type: ignore[arg-type]
    second = (2, 4) if ragged else (4, 4)
    vision, real = (torch.zeros(2, 25, dtype=torch.bool) for _ in range(2))
    vision[0, 2:18] = True
    vision[1, 18 - second[0] * second[1] : 18] = True
    real[0], real[1, 8 if ragged else 0 :] = True, True
    layout = TokenLayout.from_grids([[(4, 4)], [second]])
    return Prefill(
        config, lk.TokenCompressor(config.message, config.matcher), layout, vision, real, 0
    )


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("positions", ["preserve", "reindex"])
@pytest.mark.parametrize("guidance", ["text_to_vision", "vision_to_text", "last_token", "none"])
def test_no_stage_reads_the_device(ragged: bool, positions: str, guidance: str) -> None:
    """Tensors on the meta device have no values: whatever reads one raises."""
    state = prefill(ragged=ragged, positions=positions, guidance=guidance)
    state.start(META)
    hidden = torch.zeros(2, 25, 8, device=META)
    for number in range(2):
        query, key = (torch.zeros(2, 4, hidden.shape[1], 2, device=META) for _ in range(2))
        state.record_attention(query, key, 1.0, None)
        hidden = state._compress(state.planned[number], hidden)  # autocast knows no meta device
        assert hidden.device == META
    assert hidden.shape == (2, 25 - 12, 8)
    assert state.restored(hidden).shape == (2, 25, 8)
    assert len(state.trace) == 2


def test_a_read_would_be_noticed() -> None:
    def weigh(block: lk.guidance.GuidanceBlock) -> torch.Tensor:
        return block.query.new_ones(block.vision_mask.shape) * float(block.query.sum())

    state = prefill(ragged=False, guidance=weigh)
    state.start(META)
    state.record_attention(*(torch.zeros(2, 4, 25, 2, device=META) for _ in range(2)), 1.0, None)
    with pytest.raises((RuntimeError, NotImplementedError)):
        state._compress(state.planned[0], torch.zeros(2, 25, 8, device=META))
