"""What leaves the cache after a prefill: counts, uniformity, means, and decoding afterwards."""

from __future__ import annotations

import pytest
import torch
from models import CACHE, LAYERS, batch, cache_lengths, greedy, near, prompt, tiny_llava
from torch import Tensor
from transformers import StaticCache

import lightkv_gnn as lk
from lightkv_gnn.baselines import METHODS, Budget
from lightkv_gnn.baselines.cache_method import RECENT, CacheMethod, Shrinker
from lightkv_gnn.baselines.elastic_cache import averaged
from lightkv_gnn.baselines.random_cache import RandomShrinker

CACHE_METHODS = ["random_cache", "elastic_cache_like"]
PROMPTS = [
    prompt(4, "image", 6),
    prompt(2, "image", 3, "image", 4, seed=1),
    prompt(3, "image", 9, seed=2),
]
every = pytest.mark.parametrize("name", CACHE_METHODS)
paddings = pytest.mark.parametrize("padding", ["left", "right"])


class Fixed(Shrinker):
    """The same entries leave all layers."""

    def importance(self, number: int, real: Tensor) -> Tensor:
        return torch.rand(real.shape, generator=torch.Generator().manual_seed(3))


FIXED = CacheMethod("fixed", "a test", Fixed)


def planned(length: int, retention: float) -> int:
    return RECENT + round(retention * (length - RECENT))


@torch.no_grad()
@every
@paddings
@pytest.mark.parametrize("retention", [0.1, 0.55, 0.9])
def test_every_layer_keeps_the_planned_number(name: str, padding: str, retention: float) -> None:
    model, inputs = tiny_llava(), batch(*PROMPTS, padding=padding)
    plain = model(**inputs)
    torch.manual_seed(0)
    with METHODS[name].applied(model, Budget.of(model, retention, 0)) as applied:
        out = model(**inputs)
        bill = applied.bill()
    assert torch.equal(out.logits, plain.logits)  # the prefill is as ever
    lengths = inputs["attention_mask"].sum(1).tolist()
    width = max(planned(n, retention) for n in lengths)
    cache = out[CACHE]
    assert cache_lengths(cache) == [width] * LAYERS
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]
    vision = inputs["input_ids"] == 120
    held = 0
    for layer in cache.layers:
        for sample, own in enumerate(layer.logical):
            left = own[own >= 0]
            assert len(left) == planned(lengths[sample], retention)
            assert bool((left.diff() > 0).all())
            assert inputs["attention_mask"][sample, left].all()
            last = inputs["attention_mask"][sample].nonzero()[-RECENT:, 0]
            assert left[-RECENT:].tolist() == last.tolist()
            held += int(vision[sample, left].sum())
    assert bill.retention == pytest.approx(held / (LAYERS * int(vision.sum())))
    assert bill.kv_bytes == sum(4 * (x.keys.numel() + x.values.numel()) for x in cache.layers)
    assert bill.flops == applied.handle.ledger.totals()["flops_full"]


@torch.no_grad()
@paddings
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_decoding_sees_what_is_left_and_where_it_was(attention: str, padding: str) -> None:
    """As the whole model does whose mask hides what left."""
    model, inputs = tiny_llava(attention=attention), batch(*PROMPTS, padding=padding)
    mask, length = inputs["attention_mask"], inputs["input_ids"].shape[1]
    more = torch.randint(3, 119, (3, 4), generator=torch.Generator().manual_seed(5))
    hidden = torch.zeros_like(mask)
    with FIXED.applied(model, Budget.of(model, 0.4, 0)):
        cache = model(**inputs)[CACHE]
        for sample, own in enumerate(cache.layers[2].logical):
            hidden[sample, own[own >= 0]] = 1
        found = []
        for step in range(3):
            grown = torch.cat([mask, torch.ones(3, step + 1, dtype=torch.int64)], dim=1)
            token = more[:, step : step + 1]
            found.append(model(input_ids=token, attention_mask=grown, **{CACHE: cache}).logits)
    assert 0 < int(hidden.sum()) < int(mask.sum())
    plain = model(**inputs)[CACHE]
    for step in range(3):
        grown = torch.cat([hidden, torch.ones(3, step + 1, dtype=torch.int64)], dim=1)
        token = more[:, step : step + 1]
        place = torch.full((3, 1), length + step)
        out = model(input_ids=token, attention_mask=grown, position_ids=place, **{CACHE: plain})
        near(found[step], out.logits)


@every
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_everything_kept_is_the_plain_model(name: str, attention: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*PROMPTS)
    plain = greedy(model, inputs)
    with METHODS[name].applied(model, Budget.of(model, 1.0, 0)) as applied:
        assert torch.equal(greedy(model, inputs), plain)
        assert applied.bill().retention == 1


@torch.no_grad()
def test_random_entries_are_uniform_and_of_text_too() -> None:
    model = tiny_llava()
    shrinker = RandomShrinker(lk.adapter_for(model), 0.3)
    torch.manual_seed(0)
    rows, tokens = 3000, 24
    real = torch.ones(rows, tokens, dtype=torch.bool)
    stays = shrinker._stays(shrinker.importance(0, real), real, [tokens] * rows)
    assert (stays.sum(1) == RECENT + 6).all()
    assert stays[:, -RECENT:].all()
    counts = stays[:, :-RECENT].sum(0)
    statistic = float(((counts - 900).square() / (900 * 0.7)).sum())
    assert 19 - 5 * 38**0.5 < statistic < 19 + 5 * 38**0.5
    with METHODS["random_cache"].applied(model, Budget.of(model, 0.3, 0)):
        layers = model(**batch(PROMPTS[0]))[CACHE].layers
    assert len({tuple(layer.logical[0].tolist()) for layer in layers}) > 1


@torch.no_grad()
def test_anchors_are_what_got_most_attention() -> None:
    model = tiny_llava(attention="eager")
    inputs = batch(*PROMPTS)
    attentions = model(**inputs, output_attentions=True).attentions
    plain = model(**inputs)[CACHE]
    with METHODS["elastic_cache_like"].applied(model, Budget.of(model, 0.4, 0)):
        cache = model(**inputs)[CACHE]
    for number, layer in enumerate(cache.layers):
        for sample, own in enumerate(layer.logical):
            real = inputs["attention_mask"][sample].nonzero()[:, 0].tolist()
            sums = attentions[number][sample].mean(0)[real].sum(0)
            number_left = planned(len(real), 0.4)
            ranked = sorted(real[:-RECENT], key=lambda n: -float(sums[n]))
            anchors = sorted(ranked[: number_left - RECENT]) + real[-RECENT:]
            assert own[own >= 0].tolist() == anchors
            groups: dict[int, list[int]] = {anchor: [] for anchor in anchors}
            for place in real:
                groups[min(anchors, key=lambda a: (abs(a - place), a))].append(place)
            for name in ("keys", "values"):
                full = getattr(plain.layers[number], name)[sample]
                expected = torch.stack([full[:, groups[a]].mean(1) for a in anchors], dim=1)
                found = getattr(layer, name)[sample][:, -len(anchors) :]
                torch.testing.assert_close(found, expected)


def test_between_two_anchors_the_earlier_takes() -> None:
    states = torch.tensor([1.0, 2, 4, 8, 16, 32, 64]).reshape(1, 1, 7, 1)
    real = torch.tensor([[False, True, True, True, True, True, True]])
    anchors = torch.tensor([[-1, 2, 4, 6]])
    found = averaged(states, anchors, real)
    assert found.flatten().tolist() == pytest.approx([0, 14 / 3, 24, 64])
    far = averaged(states, torch.tensor([[-1, 4, 6]]), real)  # padding takes nothing
    assert far.flatten().tolist() == pytest.approx([0, 62 / 5, 64])
    half = averaged(states.half(), anchors, real)
    assert half.dtype == torch.float16


@every
def test_beams_and_a_second_question(name: str) -> None:
    model, inputs = tiny_llava(), batch(*PROMPTS)
    torch.manual_seed(0)
    with METHODS[name].applied(model, Budget.of(model, 0.5, 0)):
        assert greedy(model, inputs, 4, num_beams=2).shape == (3, 4)
        out = model(**inputs)
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 2, dtype=torch.int64)], dim=1)
        again = torch.tensor([[5, 6]] * 3)
        model(input_ids=again, attention_mask=mask, **{CACHE: out[CACHE]})
    with pytest.raises(RuntimeError, match="used outside the context that compressed it"):
        model(input_ids=again, **{CACHE: out[CACHE]})


@every
def test_what_is_not_supported_is_refused(name: str) -> None:
    model, inputs = tiny_llava(), batch(PROMPTS[0])
    with METHODS[name].applied(model, Budget.of(model, 0.5, 0)):
        with pytest.raises(lk.UnsupportedInputError, match="there is no cache to shorten"):
            model(**inputs, use_cache=False)
        static = StaticCache(config=model.config.text_config, max_cache_len=64)
        with pytest.raises(lk.UnsupportedInputError, match="CompressedStaticLayer: expected one"):
            model(**inputs, **{CACHE: static})
        cache = model(**inputs)[CACHE]
        longer = dict(inputs)
        longer["attention_mask"] = torch.ones(1, 52, dtype=torch.int64)
        with pytest.raises(lk.UnsupportedInputError, match="take prefills of an empty one"):
            model(**longer, **{CACHE: cache})


def test_only_trailing_entries_can_be_dropped() -> None:
    model, inputs = tiny_llava(), batch(PROMPTS[0])
    with METHODS["random_cache"].applied(model, Budget.of(model, 0.5, 0)):
        cache = model(**inputs)[CACHE]
    length = cache.get_seq_length()
    tail = min(layer.tail for layer in cache.layers)
    assert tail >= RECENT
    with pytest.raises(ValueError, match=f"only the last {tail} were kept one by one"):
        cache.crop(-tail - 1)
    cache.crop(-tail)
    assert cache.layers[0].get_seq_length() == length - tail
