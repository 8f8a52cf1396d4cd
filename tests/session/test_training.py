"""Losses, gradients, hidden states, and number formats."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from marks import attentions
from models import CACHE, batch, cache_lengths, check_ledger, greedy, near, prompt, tiny_llava

import lightkv_gnn as lk

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]

GUIDANCE = ["vision_to_text", "text_to_vision", "none"]


def labelled(*prompts: tuple[list[int], int]) -> dict[str, torch.Tensor]:
    """The last two tokens are answers."""
    inputs = batch(*prompts)
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    return {**inputs, "labels": labels}


@attentions
def test_loss_is_that_of_the_logits(attention: str) -> None:
    model, inputs = tiny_llava(attention=attention), labelled(*RAGGED)
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        out = model(**inputs)
    assert out.logits.shape[:2] == inputs["labels"].shape
    expected = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
    )
    torch.testing.assert_close(out.loss, expected)


@attentions
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_every_weight_gets_a_finite_gradient(guidance: str, attention: str) -> None:
    model, inputs = tiny_llava(attention=attention), labelled(*RAGGED)
    with lk.attach(model, lk.LightKVConfig(STAGES, guidance=guidance)):
        model(**inputs).loss.backward()
    for name, weight in model.named_parameters():
        if "vision_tower" not in name:  # its last norm and class token are not used
            assert weight.grad is not None, name
            assert bool(weight.grad.isfinite().all()), name
            assert float(weight.grad.abs().max()) > 0, name
    assert any(w.grad is not None for w in model.model.vision_tower.parameters())


@attentions
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_gradients_are_slopes(guidance: str, attention: str) -> None:
    """Along random directions, weights of guidance included.

    In float64; transformers' norms and eager softmax stay in float32, hence the tolerance.
    """
    model = tiny_llava(attention=attention).double()
    inputs = labelled(*RAGGED[1:2])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    layer = model.model.language_model.layers[1]
    weights = [
        layer.self_attn.q_proj.weight,
        layer.self_attn.k_proj.weight,
        layer.mlp.up_proj.weight,
    ]
    with lk.attach(model, lk.LightKVConfig(STAGES, guidance=guidance)):
        for number, weight in enumerate(weights):
            direction = torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(number), dtype=weight.dtype
            )
            (slope,) = torch.autograd.grad(model(**inputs).loss, weight)
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight.add_(sign * 1e-3 * direction)
                    losses.append(float(model(**inputs).loss))
                    weight.sub_(sign * 1e-3 * direction)
            expected = float((slope * direction).sum())
            assert abs(expected) > 1e-4
            assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_activation_checkpointing_gives_the_same_gradients(guidance: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, inputs = tiny_llava().train(), labelled(*RAGGED)
        if checkpointing:
            model.activation_checkpointing_enable()
        with lk.attach(model, lk.LightKVConfig(STAGES, guidance=guidance)):
            model(**inputs, use_cache=False).loss.backward()
        gradients.append([w.grad for w in model.model.language_model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_checkpointing_around_the_hooks_is_refused() -> None:
    """As transformers 5.17 has it: the layer is run again with its hooks."""
    model, inputs = tiny_llava().train(), labelled(*RAGGED)
    layer = model.model.language_model.layers[0]
    called = {"__call__": lambda self, *args, **kwargs: kind.__call__(self, *args, **kwargs)}
    kind, layer.gradient_checkpointing = type(layer), True
    layer.__class__ = type(kind.__name__, (kind,), called)
    refused = pytest.raises(lk.UnsupportedInputError, match=r"checkpointing.*newer one")
    with lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        with refused:
            model(**inputs)
        with pytest.raises(RuntimeError, match="no prefill"):
            handle.trace  # noqa: B018
        layer.gradient_checkpointing = False
        model(**inputs).loss.backward()
        assert len(handle.trace) == 2


def test_a_handle_keeps_no_autograd_graph() -> None:
    """A loss that nobody holds is freed, though the handle still tells of its prefill."""
    model, inputs = tiny_llava(), labelled(*RAGGED)
    with lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        seen = []
        hook = model.model.language_model.layers[2].mlp.register_forward_hook(
            lambda module, args, output: seen.append(weakref.ref(output))
        )
        model(**inputs)
        hook.remove()
        gc.collect()
        assert [ref() for ref in seen] == [None]
        for stage in range(2):
            graph = handle.graph(stage)
            assert not graph["text", "guides", "vision"].weight.requires_grad
            assert not graph["vision", "merges_into", "vision"].weight.requires_grad


@attentions
@torch.no_grad()
def test_hidden_states_have_each_layers_length(attention: str) -> None:
    """Entry ``l + 1`` is what layer l gave, before any merging; ``last_hidden_state`` is full."""
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    with lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        out = model.model(**inputs, output_hidden_states=True)
        check_ledger(handle.ledger, out[CACHE])
        lengths = cache_lengths(out[CACHE])
        plain = model.model(**inputs).last_hidden_state
    assert [x.shape[1] for x in out.hidden_states] == [lengths[0], *lengths]
    assert lengths == [41, 41, 25, 25, 17, 17]
    assert out.last_hidden_state.shape[1] == 41
    assert torch.equal(out.last_hidden_state, plain)
    assert torch.equal(out.last_hidden_state[:, -1], out.hidden_states[-1][:, -1])


@torch.no_grad()
def test_attentions_have_each_layers_length() -> None:
    model, inputs = tiny_llava(attention="eager"), batch(*RAGGED)
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        out = model(**inputs, output_attentions=True)
    assert [x.shape[2:] for x in out.attentions] == [(n, n) for n in cache_lengths(out[CACHE])]
    for attention in out.attentions[2:]:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))


@attentions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_comes_back_as_it_went_in(dtype: torch.dtype, attention: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    config = lk.LightKVConfig(STAGES, positions="reindex")
    with lk.attach(model, config):
        exact = model(**inputs).logits
    model.to(dtype)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with lk.attach(model, config) as handle:
        out = model(**inputs, output_hidden_states=True)
        check_ledger(handle.ledger, out[CACHE])
        assert handle.ledger.rows[0].planned.kv_bytes == 2 * 3 * 41 * 32 * 2
        assert greedy(model, inputs, 3).shape == (3, 3)
    assert out.logits.dtype == dtype
    assert {x.dtype for x in out.hidden_states} == {dtype}
    assert {layer.keys.dtype for layer in out[CACHE].layers} == {dtype}
    real = inputs["attention_mask"].bool()
    # Rounding may change who is merged; that the answers are alike is all one can say.
    near(out.logits[real][:4].float(), exact[real][:4], 0.2)
    assert bool(out.logits[real].isfinite().all())


@torch.no_grad()
def test_double_precision_is_kept() -> None:
    """Batch 1: with padding, transformers' own eager attention gives NaN in float64."""
    model, inputs = tiny_llava(), batch(RAGGED[1])
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        single = model(**inputs).logits
    model.double()
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        double = model(**inputs).logits
    assert double.dtype == torch.float64
    near(single.double(), double)
