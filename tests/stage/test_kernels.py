"""Triton kernels equal plain torch, and compile for a GPU where there is none."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import batch, prompt, tiny_llava
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.choices import GuidanceName
from lightkv_gnn.stage import guidance
from lightkv_gnn.stage.scatter import backend
from lightkv_graphs import nearest_destinations, source_cosines

triton = pytest.importorskip("triton", reason="Triton is not installed")

from lightkv_gnn.stage import kernels  # noqa: E402

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The interpreter warns of what a GPU does not: products of NaN, logarithms of 0."""
    with np.errstate(all="ignore"):
        yield


def slots(windows: int, width: int, tokens: int, seed: int = 0) -> Tensor:
    """Tokens in windows of different sizes, padded at the end, `[window, slot]`."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.full((windows, width), tokens)
    order = torch.randperm(tokens, generator=generator)
    for own in table:
        count = int(torch.randint(width + 1, (), generator=generator))
        own[:count], order = order[:count].sort()[0], order[count:]
    return table


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "channels"), [(1, 3), (20, 40), (70, 130)])
def test_the_nearest_destinations(dtype: torch.dtype, width: int, channels: int) -> None:
    """Of sources and destinations in one block of the kernel and in several."""
    sources, destinations = slots(4, width, 600), slots(4, width, 600, seed=1)
    x = random(600, channels, dtype=dtype)
    cosine, slot = kernels.nearest_destinations(x, sources, destinations)
    all_cosines = source_cosines(x, sources, destinations)
    real = sources < 600
    expected = all_cosines.amax(2)
    torch.testing.assert_close(cosine[real], expected[real], atol=1e-5, rtol=1e-5)
    chosen = all_cosines.gather(2, slot[:, :, None])[:, :, 0]
    torch.testing.assert_close(chosen[real], expected[real], atol=1e-5, rtol=1e-5)
    assert bool(real.any())


def test_ties_go_to_the_first_destination_of_all_blocks() -> None:
    x = torch.ones(200, 4)
    x[:60] = torch.tensor([1.0, 0, 0, 0])
    sources = torch.arange(180, 200)[None]
    cosine, slot = kernels.nearest_destinations(x, sources, torch.arange(180)[None])
    assert bool((slot == 60).all())
    assert cosine.tolist() == [[1.0] * 20]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_features_without_a_direction(bad: float) -> None:
    x = random(30, 8)
    x[[3, 4, 20]] = bad
    sources, destinations = torch.arange(15)[None], torch.arange(15, 30)[None]
    found = kernels.nearest_destinations(x, sources, destinations)
    expected = nearest_destinations(x, sources, destinations)
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert bool((found[0][0, 3:5] == (0.0 if bad == 0 else -torch.inf)).all())


def test_no_destinations_and_no_windows() -> None:
    x, none = random(4, 8), torch.full((1, 2), 4)
    cosine, slot = kernels.nearest_destinations(x, torch.tensor([[0, 1]]), none)
    assert cosine.tolist() == [[-math.inf] * 2]
    assert slot.tolist() == [[0, 0]]
    assert kernels.nearest_destinations(x, none[:0], none[:0])[0].shape == (0, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("text_heads", "vision_heads"), [(4, 4), (4, 2), (1, 4)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_shares_of_text(
    dtype: torch.dtype, text_heads: int, vision_heads: int, softcap: float | None
) -> None:
    """With masked tokens, and sizes that fit no block."""
    text = random(2, text_heads, 35, 24, dtype=dtype)
    vision = random(2, vision_heads, 70, 24, dtype=dtype, seed=1)
    mask = torch.ones(2, 70, dtype=torch.bool)
    mask[1, 50:] = False
    asked = (text, vision, 0.3, softcap, mask)
    found, expected = kernels.text_shares(*asked), guidance.text_shares(*asked)
    real = mask[:, None, :].expand_as(found)
    near = 2e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-5
    torch.testing.assert_close(found[real], expected.float()[real], atol=near, rtol=near)
    assert bool((found[~real] < -1e30).all())
    heads = max(text_heads, vision_heads)
    torch.testing.assert_close(found.exp().sum(2), torch.full((2, 35), float(heads)))


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_shares_at_extremes(scale: float) -> None:
    """Far beyond what a probability in float32 can tell apart, and with a NaN in a key."""
    text, vision = random(1, 2, 5, 16), random(1, 2, 9, 16, seed=1)
    vision[0, 0, 4] = torch.nan
    found = kernels.text_shares(text, vision, scale)
    expected = guidance.text_shares(text, vision, scale)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_text_without_any_logit_shares_equally() -> None:
    text, vision = torch.full((1, 2, 3, 16), torch.nan), random(1, 2, 8, 16)
    found = kernels.text_shares(text, vision, 1.0)
    torch.testing.assert_close(found, torch.full((1, 3, 8), math.log(2 / 8)))


def test_gradients_of_shares_are_those_of_torch() -> None:
    text, vision = random(1, 2, 3, 16).requires_grad_(), random(1, 2, 8, 16, seed=1)
    found = backend("triton").text_shares(text, vision, 0.3)
    expected = guidance.text_shares(text, vision, 0.3)
    (gradient,) = torch.autograd.grad(found[..., 0].sum(), text)
    (wanted,) = torch.autograd.grad(expected[..., 0].sum(), text)
    assert torch.equal(gradient, wanted)
    assert bool(gradient.any())


def test_mixed_dtypes_and_strides_are_read_as_torch_reads_them() -> None:
    text, vision = random(1, 2, 3, 16, dtype=torch.float16), random(1, 2, 8, 16, seed=1)
    expected = guidance.text_shares(text, vision, 0.3)
    torch.testing.assert_close(kernels.text_shares(text, vision, 0.3), expected)
    x, edges = random(6, 4), torch.tensor([[0, 9], [1, 9], [2, 9]])
    weight = random(3, 2).abs()
    strided = kernels.weighted_sum(x, edges[:, 0], weight[:, 0], torch.tensor([0, 2, 3]))
    plain = weight[:, 0].contiguous(), torch.tensor([0, 2, 3])
    assert torch.equal(strided, kernels.weighted_sum(x, edges[:, 0].contiguous(), *plain))


@pytest.mark.parametrize("channels", [128, 256])
def test_wide_heads(channels: int) -> None:
    """Rows of many bytes are taken fewer at a time."""
    text, vision = random(1, 2, 35, channels), random(1, 1, 70, channels, seed=1)
    expected = guidance.text_shares(text, vision, channels**-0.5)
    found = kernels.text_shares(text, vision, channels**-0.5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_weight_of_zero_is_not_heard() -> None:
    x = random(6, 4)
    x[2] = torch.nan
    weight = torch.tensor([0.5, 0.5, 0.0, 1.0, 0.0])
    found = kernels.weighted_sum(x, torch.arange(5), weight, torch.tensor([0, 3, 5]))
    torch.testing.assert_close(found, torch.stack([(x[0] + x[1]) / 2, x[3]]))


def test_states_in_any_order_of_memory() -> None:
    """As attention has them, and as a slice of a longer sequence."""
    text = random(2, 5, 3, 16).transpose(1, 2)
    vision = random(2, 3, 30, 16, seed=1)[:, :, 4:20]
    expected = kernels.text_shares(text.contiguous(), vision.contiguous(), 0.2)
    assert torch.equal(kernels.text_shares(text, vision, 0.2), expected)
    crossed = text.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(kernels.text_shares(crossed, vision, 0.2), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_sums_are_rounded_once(dtype: torch.dtype) -> None:
    """In the sum's dtype; more channels than a block has, and a target of many rows."""
    x = random(50, 1030, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    source, weight = torch.arange(50).flip(0), random(50, dtype=wide).abs()
    start = torch.tensor([0, 1, 40, 50])
    found = kernels.weighted_sum(x, source, weight, start)
    rows = x[source].double() * weight.double()[:, None]
    exact = torch.stack([rows[a:b].sum(0) for a, b in ((0, 1), (1, 40), (40, 50))])
    assert found.dtype == dtype
    torch.testing.assert_close(found, exact.to(dtype))


def test_a_cpu_is_refused_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    x, index = random(4, 8), torch.tensor([[0, 1]])
    for ask in (
        lambda: kernels.nearest_destinations(x, index, index),
        lambda: kernels.greedy_ranks(x[None, :, :4], *[x[:1, :4]] * 3, 2, None, "sum"),
        lambda: kernels.text_shares(x[None, None], x[None, None], 1.0),
        lambda: kernels.weighted_sum(x, index[0], x[0, :2], index[0]),
    ):
        with pytest.raises(ValueError, match=r'"triton" needs tensors on a GPU, these are on cpu'):
            ask()
    model = tiny_llava()
    with pytest.raises(ValueError, match="move the model there"):
        lk.attach(model, lk.LightKVConfig(STAGES, scatter="triton"))
    lk.attach(model, lk.LightKVConfig(STAGES)).remove()  # nothing was left behind


@torch.no_grad()
@pytest.mark.parametrize("guidance", ["text_to_vision", "vision_to_text", "last_token", "none"])
def test_a_model_answers_the_same(guidance: GuidanceName) -> None:
    """A whole prefill with several pictures in a ragged batch; gradients are torch's."""
    model = tiny_llava()
    inputs = batch(prompt(4, "image", 6), prompt(2, "image", 1, "image", 3, seed=1))
    answers = []
    called: Counter[str] = Counter()

    def counted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            called[name] += 1
            return kernel(*arguments)

        return call

    for scatter in ("torch", "triton"):
        config = lk.LightKVConfig(STAGES, guidance=guidance, scatter=scatter)
        compressor = lk.TokenCompressor(scatter=scatter)
        if scatter == "triton":
            for name in ("_shares", "_nearest", "_sum"):
                setattr(compressor.scatter, name, counted(name, getattr(compressor.scatter, name)))
        with lk.attach(model, config, compressor=compressor) as handle:
            answers.append(model(**inputs).logits)
        assert handle.ledger.fused
    heard = {} if guidance == "none" else {"_shares": 2}
    assert called == {"_nearest": 2, "_sum": 2, **heard}  # one of each a stage
    torch.testing.assert_close(answers[1], answers[0], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    """The interpreter accepts what the compiler may not."""
    script = Path(__file__).with_name("compile_kernels.py")
    around = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=around, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    assert len(sizes) == 6 * 2
    for name, (binary, shared) in sizes.items():
        assert binary > 1000, name
        assert shared <= 99 * 1024, name  # what a program may have on any GPU from sm_80 on
