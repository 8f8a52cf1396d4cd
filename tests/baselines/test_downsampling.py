"""Smaller pictures: fewer tokens in all layers, on a grid that the layout knows."""

from __future__ import annotations

import pytest
import torch
from models import CACHE, batch, footprint, left_untouched, prompt, tiny_llava

from lightkv_gnn import ImageTokensError, ScheduleError
from lightkv_gnn.baselines import METHODS, Budget, smaller
from lightkv_gnn.baselines.downsample import side_of
from lightkv_gnn.tiny import build_processor, format_prompt, render, sample_questions

DOWNSAMPLE = METHODS["downsample"]


@pytest.mark.parametrize(
    ("retention", "grid", "side"),
    [(0.55, (16, 16), 12 / 16), (1.0, (16, 16), 1), (0.25, (24, 24), 0.5), (0.3, (4, 6), 0.5)],
)
def test_the_side_is_the_root(retention: float, grid: tuple[int, int], side: float) -> None:
    assert side_of(retention, grid) == side


@pytest.mark.parametrize("strategy", ["default", "full"])
@torch.no_grad()
def test_all_layers_hold_fewer_tokens(strategy: str) -> None:
    model = tiny_llava(side=8, vision_feature_select_strategy=strategy)
    extra = strategy == "full"
    small = [prompt(4, "image", 6, side=6, extra=extra)]
    small.append(prompt(2, "image", 3, "image", 4, side=6, extra=extra, seed=1))
    full = batch(*[prompt(4, "image", 6, side=8, extra=extra)] * 2, side=8)
    inputs = batch(*small, side=6)
    with pytest.raises(ValueError, match="doesn't match model"):
        model(**inputs)
    with left_untouched(model, full):
        before = footprint(model)
        with DOWNSAMPLE.applied(model, Budget.of(model, 0.55, -1)) as applied:
            assert footprint(model) != before
            assert applied.side == 0.75
            out = model(**inputs)
            bill, ledger = applied.bill(), applied.handle.ledger
            layout = applied.handle.trace.layout
    assert layout.grids == ((6, 6),) * 3
    assert bill.retention == pytest.approx((36 + extra) / 64)
    assert {row.observed_tokens for row in ledger.rows} == {2 * inputs["input_ids"].shape[1]}
    layers = out[CACHE].layers
    assert bill.kv_bytes == sum(4 * (x.keys.numel() + x.values.numel()) for x in layers)


@torch.no_grad()
def test_a_full_picture_is_seen_as_ever() -> None:
    model = tiny_llava(side=8)
    inputs = batch(prompt(4, "image", 6, side=8), side=8)
    plain = model(**inputs).logits
    with DOWNSAMPLE.applied(model, Budget.of(model, 1, -1)) as applied:
        assert torch.equal(model(**inputs).logits, plain)
        assert applied.bill().retention == 1
    assert applied.side == 1


@torch.no_grad()
def test_positions_are_stretched_over_the_small_picture() -> None:
    """With a table that is a ramp, the small picture's positions are a ramp as well."""
    model = tiny_llava(side=8)
    embeddings = model.model.vision_tower.embeddings
    table = embeddings.position_embedding.weight
    ramp = torch.arange(8.0).repeat_interleave(8)[:, None].expand(-1, table.shape[1])
    table[1:] = ramp
    embeddings.patch_embedding.weight.zero_()
    seen = []
    hook = embeddings.register_forward_hook(lambda module, args, output: seen.append(output))
    inputs = batch(prompt(4, "image", 6, side=4), side=4)
    with DOWNSAMPLE.applied(model, Budget.of(model, 0.25, -1)):
        model(**inputs)
    hook.remove()
    column = seen[0][0, 1:, 0].reshape(4, 4)
    assert torch.allclose(column, column[:, :1].expand(4, 4), atol=1e-5)
    assert column[:, 0].tolist() == pytest.approx([0.5, 2.5, 4.5, 6.5], abs=0.2)


def test_what_cannot_be_told_is_refused() -> None:
    model = tiny_llava()
    with (
        pytest.raises(ScheduleError, match=r"give Budget.grid"),
        DOWNSAMPLE.applied(model, Budget(0.5, -1, 6)),
    ):
        pass
    with (
        pytest.raises(ScheduleError, match="retention is 2: expected a fraction"),
        DOWNSAMPLE.applied(model, Budget(2, -1, 6, (4, 4))),
    ):
        pass
    assert not model.model.vision_tower._forward_pre_hooks


@torch.no_grad()
def test_a_picture_that_is_no_square_is_refused() -> None:
    model = tiny_llava(side=8)
    inputs = batch(prompt(3, "image", "image", 2, side=4), side=8)  # 32 placeholders
    inputs["pixel_values"] = torch.randn(1, 3, 28, 56)
    with (
        DOWNSAMPLE.applied(model, Budget.of(model, 0.5, -1)),
        pytest.raises(ImageTokensError, match=r"lays out images of \(64,\) tokens, .* \(32,\)"),
    ):
        model(**inputs)


def test_a_processor_makes_smaller_pictures() -> None:
    processor = build_processor()
    assert smaller(processor, 1.0)["size"] == {"height": 128, "width": 128}
    options = smaller(processor, 0.75)
    assert options == {name: {"height": 96, "width": 96} for name in ("size", "crop_size")}
    ((scene, question),) = sample_questions("vqa", 1, 0)
    inputs = processor(
        images=[render(scene)],
        text=[format_prompt(question.prompt_text)],
        return_tensors="pt",
        **options,
    )
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    assert int((inputs["input_ids"] == 4).sum()) == 144
    with pytest.raises(ValueError, match=r"makes size.height 89.6 pixels: expected whole patches"):
        smaller(processor, 0.7)
