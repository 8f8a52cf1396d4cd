"""Layers that hold a state among layers of attention: turns, caches, and what is refused.

What a prefill and its steps answer is in the table of families.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cache_acts import ACTS, Packed
from families.decoders import HYBRID
from families.loop_dropping import dropping
from families.more import model_of
from families.more_inputs import samples, together
from families.test_more_families import config_of, generate, gone_from
from marks import full
from models import CACHE, RESETS, near
from torch import Tensor
from transformers import DynamicCache, StaticCache

import lightkv_gnn as lk

PLAIN = {"message": "destination_only"}


def joined(model: Any, *turns: dict[str, Tensor]) -> dict[str, Tensor]:
    """One prompt of all turns."""
    names = {name for turn in turns for name in turn}
    first = {name: [turn[name] for turn in turns if name in turn] for name in names}
    axes = {name: -1 if "ids" in name or name == "attention_mask" else 0 for name in names}
    return {name: torch.cat(parts, axes[name]) for name, parts in first.items()}


def text(*ids: int) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}


@pytest.mark.parametrize("family", ["lfm2_vl", *full("qwen3_5", "lfm3_vl")])
@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_turns_of_text_and_pictures_go_on_from_states(family: str, static: bool) -> None:
    """Against all turns in one row, dropped where each turn dropped them, without a cache."""
    model = model_of(family)
    first, second = samples(family, model)
    then = text(7, 8, 9)
    if "mm_token_type_ids" in first:
        then["mm_token_type_ids"] = torch.zeros(1, 3).int()
    cache = StaticCache(model.config.get_text_config(), max_cache_len=96) if static else None
    cache = cache or DynamicCache(config=model.config.get_text_config())
    whole = joined(model, first, then, second)
    lengths = [turn["input_ids"].shape[1] for turn in (first, then, second)]
    positions = positions_of(model, whole)
    found, gone, begin = [], [set[int]() for _ in range(6)], 0
    with lk.attach(model, config_of(model, 0.5, 0.25, **PLAIN)) as handle:
        for turn, length in zip((first, then, second), lengths, strict=True):
            end = begin + length
            own = {**turn, "attention_mask": torch.ones(1, end).long()}
            if positions is not None:
                own["position_ids"] = positions[..., begin:end]
            found.append(model(**own, **{CACHE: cache}).logits[0])
            if "pixel_values" in turn:
                for row in handle.ledger.rows:
                    assert row.observed_kv_bytes == row.planned.kv_bytes
                (new,) = gone_from(handle.trace, turn["input_ids"])
                for layer, tokens in enumerate(new):
                    gone[layer] |= {begin + token for token in tokens}
            begin = end
    expected = dropping(model, whole, gone)
    logits = torch.cat(found)
    near(torch.stack([logits[n] for n in expected]), torch.stack([*expected.values()]), 2e-5)


def positions_of(model: Any, inputs: dict[str, Tensor]) -> Tensor | None:
    """Positions of M-RoPE, which the model itself finds for a whole prompt only."""
    if "mm_token_type_ids" not in inputs:
        return None
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
    positions: Tensor = model.model.get_rope_index(*(inputs[name] for name in names))[0]
    return positions


@pytest.mark.parametrize("family", ["qwen3_5", *full("lfm2_vl")])
@torch.no_grad()
def test_static_caches_answer_like_dynamic_ones(family: str) -> None:
    model = model_of(family, "sdpa")
    both = together(samples(family, model))
    with lk.attach(model, config_of(model, 0.5, 0.25, attention="mass")):
        dynamic = generate(model, both)
        static = model.generate(
            **both,
            max_new_tokens=3,
            do_sample=False,
            cache_implementation="static",
            return_dict_in_generate=True,
            output_logits=True,
        )
    near(torch.stack(static.logits), torch.stack(dynamic.logits))


@torch.no_grad()
def test_beams_take_their_states_with_them() -> None:
    model = model_of("qwen3_5", "sdpa")
    single, _ = samples("qwen3_5", model)
    options = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    with lk.attach(model, config_of(model, 0.5, 0.25)):
        cached = model.generate(**single, **options)
        again = model.generate(**single, **options, use_cache=False)
    assert torch.equal(cached, again)


@torch.no_grad()
def test_states_cost_no_entries() -> None:
    model = model_of("qwen3_5")
    single, _ = samples("qwen3_5", model)
    planned = lk.plan_prefill(model, config_of(model, 0.5, 0.25), single)
    assert [row.full.kv_bytes > 0 for row in planned.rows] == [False, True] * 3
    assert " - " in str(planned)


@torch.no_grad()
def test_nothing_is_dropped_from_states_once_tokens_are_merged() -> None:
    model = model_of("lfm2_vl")
    single, _ = samples("lfm2_vl", model)
    cache = DynamicCache(config=model.config.get_text_config())
    cache.activate_past_recording()
    with lk.attach(model, config_of(model, 0.5, 0.25)):
        model(**single, **{CACHE: cache})
        copied = copy.deepcopy(cache)
        for one in (cache, copied):
            held = [layer.conv_states[0].clone() for layer in one.layers[::2]]
            with pytest.raises(lk.UnsupportedInputError, match="layers that hold a state"):
                one.crop(-1)
            states = [layer.conv_states[0] for layer in one.layers[::2]]
            assert all(map(torch.equal, states, held))
            assert int(one.get_seq_length()) == single["input_ids"].shape[1]
        cache.reset()
        model(**text(5, 6, 7, 8), **{CACHE: cache})
        cache.crop(-1)
        assert int(cache.get_seq_length()) == 3


def held(cache: Any) -> list[Tensor]:
    """Copies of everything that the layers of a cache hold, states first."""
    states = [layer for layer in cache.layers if not hasattr(layer, "keys")]
    tensors = [
        *(x for layer in states for x in layer.conv_states.values()),
        *(x for layer in states for x in layer.recurrent_states.values()),
        *(x for layer in cache.layers if layer not in states for x in (layer.keys, layer.values)),
    ]
    return [x.clone() for x in tensors if x is not None]


def cache_of(model: Any, static: bool) -> Any:
    config = model.config.get_text_config()
    return StaticCache(config, max_cache_len=96) if static else DynamicCache(config=config)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "family", ["lfm2_vl", "qwen3_5", *full("qwen3_5_moe", "lfm3_vl", "minicpmv4_6")]
)
@torch.no_grad()
def test_what_is_refused_outside_the_context_leaves_the_states_alone(
    family: str, static: bool
) -> None:
    """A step, a turn of text, a later picture: the first layer refuses, whatever it holds."""
    model, config = model_of(family), config_of(model_of(family), 0.5, 0.25)
    single, other = samples(family, model)
    cache = cache_of(model, static)
    with lk.attach(model, config):
        model(**single, **{CACHE: cache})
        inside, again = copy.deepcopy(cache), copy.deepcopy(cache)
        expected = model(input_ids=torch.tensor([[7]]), **{CACHE: inside}).logits
    length = single["input_ids"].shape[1]
    turns = [{"input_ids": torch.tensor([ids])} for ids in ([7], [7, 8, 9])]
    for one in (cache, again):  # copies of layers know each other too
        before, seen = held(one), int(one.get_seq_length())
        assert seen == length
        for turn in (*turns, other):
            own = {**turn, "attention_mask": torch.ones(1, seen + turn["input_ids"].shape[1])}
            own["attention_mask"] = own["attention_mask"].long()
            with pytest.raises(RuntimeError, match="used outside the context"):
                model(**own, **{CACHE: one})
            assert all(map(torch.equal, held(one), before))
            assert int(one.get_seq_length()) == seen
        with lk.attach(model, config):  # and goes on as if nothing had been tried
            assert torch.equal(
                model(input_ids=turns[0]["input_ids"], **{CACHE: one}).logits, expected
            )
        if static or RESETS:
            one.reset()
            model(input_ids=turns[1]["input_ids"], **{CACHE: one})
            assert int(one.get_seq_length()) == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@torch.no_grad()
def test_a_step_that_fails_leaves_no_state_open(error: type[BaseException]) -> None:
    model = model_of("lfm2_vl")
    single, _ = samples("lfm2_vl", model)
    cache = cache_of(model, static=False)

    def fail(*call: Any) -> None:
        raise error

    with lk.attach(model, config_of(model, 0.5, 0.25)):
        model(**single, **{CACHE: cache})
        hook = model.get_decoder().layers[1].register_forward_pre_hook(fail)
        with pytest.raises(error):
            model(input_ids=torch.tensor([[7]]), **{CACHE: cache})
        hook.remove()
        if error is ValueError:  # after others, torch runs no hook: the next call sees to it
            with pytest.raises(RuntimeError, match="used outside the context"):
                cache.has_previous_state()
    before = held(cache)
    with pytest.raises(RuntimeError, match="used outside the context"):
        model(input_ids=torch.tensor([[7]]), **{CACHE: cache})
    assert all(map(torch.equal, held(cache), before))


@pytest.mark.full
@torch.no_grad()
def test_compiled_steps_go_on_from_states_in_one_graph() -> None:
    model = model_of("lfm2_vl", "sdpa")
    single, _ = samples("lfm2_vl", model)
    torch.compiler.reset()
    found = []
    with lk.attach(model, config_of(model, 0.5, 0.25)):
        for run in (model, torch.compile(model, fullgraph=True, backend="eager")):
            cache = cache_of(model, static=True)
            model(**single, **{CACHE: cache})
            length = single["input_ids"].shape[1]
            for step in range(3):
                ids, places = torch.tensor([[7 + step]]), torch.tensor([[length + step]])
                found.append(run(input_ids=ids, position_ids=places, **{CACHE: cache}).logits)
    with pytest.raises(RuntimeError, match="used outside the context"):
        cache.has_previous_state()
    near(torch.cat(found[3:]), torch.cat(found[:3]))


@pytest.mark.parametrize("act", ["repeat", "pick", "reorder"])
@torch.no_grad()
def test_copies_of_samples_are_refused_or_made_by_all_layers(
    act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("transformers.cache_utils.BaseQuantizedLayer", raising=False)
    model = model_of("qwen3_5")
    both = together(samples("qwen3_5", model))
    cache, token = cache_of(model, static=False), torch.tensor([[7], [8]])
    with lk.attach(model, config_of(model, 0.5, 0.25, attention="mass")):
        model(**both, **{CACHE: cache})
        mask = torch.cat([both["attention_mask"], torch.ones(2, 1).long()], 1)

        def step(one: Any, *rows: int) -> Tensor:
            own = {"input_ids": token[list(rows)], "attention_mask": mask[list(rows)]}
            positions = torch.full((3, len(rows), 1), 60)  # those of the prompt are not copied
            logits: Tensor = model(**own, position_ids=positions, **{CACHE: one}).logits
            return logits

        acted = copy.deepcopy(cache)
        ACTS[act](acted)
        expected = step(copy.deepcopy(cache), 0, 1)
        rows = [0, 0, 1, 1] if act == "repeat" else [0, 0]
        near(step(acted, *rows), expected[rows])
        last = Packed.of(cache.layers[-1])
        cache.layers[-1] = last
        last.siblings.join(last)
        before = held(cache)
        with pytest.raises(lk.UnsupportedInputError, match=f"quantized cache cannot {act}"):
            ACTS[act](cache)
        assert all(map(torch.equal, held(cache), before))


@torch.no_grad()
def test_attention_before_states_is_not_cropped_without_them() -> None:
    model = model_of("lfm2_vl", text={"layer_types": ["full_attention", "conv"] * 3})
    single, _ = samples("lfm2_vl", model)
    cache = cache_of(model, static=False)
    with lk.attach(model, lk.LightKVConfig([lk.Stage(2, 1, 0.5)])):
        model(**single, **{CACHE: cache})
    before = held(cache)
    for one in (cache, copy.deepcopy(cache)):
        with pytest.raises(lk.UnsupportedInputError, match="layers that hold a state"):
            one.crop(-1)
        assert all(map(torch.equal, held(one), before))


@torch.no_grad()
def test_padding_between_turns_is_refused() -> None:
    model = model_of("lfm2_vl")
    one, other = samples("lfm2_vl", model)
    cache = DynamicCache(config=model.config.get_text_config())
    ids = torch.tensor([[5, 6, 7], [8, 9, 4]])
    both = together([one, other])
    both["attention_mask"] = torch.cat([torch.ones_like(ids), both["attention_mask"]], 1)
    with lk.attach(model, config_of(model, 0.5, 0.25)):
        model(input_ids=ids, **{CACHE: cache})
        with pytest.raises(lk.UnsupportedInputError, match="cannot skip what is padding"):
            model(**both, **{CACHE: cache})
        assert int(cache.get_seq_length()) == 3


@pytest.mark.parametrize("family", HYBRID)
def test_stages_run_after_full_attention_only(family: str) -> None:
    model = model_of(family)
    with pytest.raises(lk.ScheduleError, match="may run after layers 1, 3"):
        lk.attach(model, lk.LightKVConfig([lk.Stage(2, 1)]))
