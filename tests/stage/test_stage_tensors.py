"""A stage reads nothing back from its device, and has gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import GRIDS
from stages import PER_TOKEN, batch, compress, every_message
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from lightkv_gnn.stage.compressor import MATCHERS, TokenCompressor
from lightkv_gnn.stage.messages import WeightedMean
from lightkv_graphs import Matching, TokenLayout, WindowPartition, plan_stage


def faked(mode: FakeTensorMode, layout: TokenLayout) -> TokenLayout:
    moved = {name: mode.from_tensor(getattr(layout, name)) for name in PER_TOKEN}
    return replace(layout, **moved)


@pytest.mark.parametrize("schedule", [(4, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_stage_depends_on_no_data_and_reads_none(
    schedule: tuple[int, ...], matcher: object, dtype: torch.dtype
) -> None:
    """Fake tensors have a shape and no values: a size that depends on data, or a read, raises.

    Sizes that the host knows are real tensors, kept from other calls.
    """
    x, layout, guidance = batch([[(5, 7), (3, 3)], [(4, 4)]])
    run = TokenCompressor(matcher=matcher)
    x, guidance = x.to(dtype), guidance.float()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_x, fake_layout, fake_guidance = (
            mode.from_tensor(x),
            faked(mode, layout),
            mode.from_tensor(guidance),
        )
    for windows in schedule:
        plan = plan_stage(layout.occupancy, windows, 0.5)
        real = run(x, layout, plan, guidance)
        with mode:
            fake = run(fake_x, fake_layout, plan, fake_guidance)
            fake_guidance = fake_guidance[fake.kept]
        assert fake.hidden_states.shape == real.hidden_states.shape
        assert fake.hidden_states.dtype == dtype
        assert fake.layout.counts == real.layout.counts
        for name in PER_TOKEN:
            assert getattr(fake.layout, name).shape == getattr(real.layout, name).shape
        fake_x, fake_layout = fake.hidden_states, fake.layout
        x, layout, guidance = real.hidden_states, real.layout, guidance[real.kept]


def test_the_tokens_may_lie_on_another_device_than_the_plan() -> None:
    """The host's tensors stay on the CPU, the tokens' never come back from the meta device."""
    x, layout, guidance = batch(GRIDS["ragged samples"])
    found = compress(x.to("meta"), layout.to("meta"), guidance.to("meta"))
    assert found.hidden_states.device.type == found.layout.mass.device.type == "meta"
    assert found.hidden_states.shape == compress(x, layout, guidance).hidden_states.shape


def test_the_two_tests_above_would_notice_a_read() -> None:
    x, layout, _ = batch(GRIDS["square"])
    plan = plan_stage(layout.occupancy, 2, 0.5)

    def own(x: Tensor, partition: WindowPartition) -> Matching:
        return MATCHERS["cosine_matching"](x, partition)  # not built in, so it is checked

    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        pytest.raises(DataDependentOutputException),
    ):
        TokenCompressor(matcher=own)(mode.from_tensor(x), faked(mode, layout), plan)
    with pytest.raises((RuntimeError, NotImplementedError)):
        TokenCompressor(matcher=own)(x.to("meta"), layout.to("meta"), plan)


@every_message
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5])
def test_gradients(message: WeightedMean, ratio: float, scatter: str) -> None:
    x, layout, guidance = batch([[(3, 4)], [(2, 3)]])
    x.requires_grad_()
    guidance.requires_grad_()

    def run(x: Tensor, guidance: Tensor) -> Tensor:
        return compress(
            x, layout, guidance, 1, ratio, message=message, scatter=scatter
        ).hidden_states

    assert torch.autograd.gradcheck(run, (x, guidance), fast_mode=True)


def test_gradients_through_two_stages(scatter: str) -> None:
    x, layout, guidance = batch([[(4, 4)]])
    x, guidance = x[:, :2].clone().requires_grad_(), guidance.requires_grad_()

    def run(x: Tensor, guidance: Tensor) -> Tensor:
        first = compress(x, layout, guidance, 2, scatter=scatter)
        return compress(
            first.hidden_states, first.layout, guidance[first.kept], 1, scatter=scatter
        ).hidden_states

    assert torch.autograd.gradcheck(run, (x, guidance), fast_mode=True)
