"""What is refused, in words that help, and with the model left alone."""

from __future__ import annotations

import copy
import io
import pickle
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import (
    CACHE,
    IMAGE_TOKEN,
    batch,
    footprint,
    left_untouched,
    near,
    prompt,
    tiny_llava,
)
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

import lightkv_gnn as lk
from lightkv_gnn.adapters import base as registry

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
CONFIG = lk.LightKVConfig(STAGES)
RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]

Change = Callable[[Any], Any]


# --- attaching ------------------------------------------------------------------------------------


def with_config(**values: Any) -> Change:
    def change(model: Any) -> None:
        for name, value in values.items():
            setattr(model.model.language_model.config, name, value)

    return change


def without_patches(model: Any) -> None:
    model.config.vision_config.patch_size = None


def on_another_decoder(model: Any) -> None:
    model.config.text_config.model_type = "gpt2"


def without_attention(model: Any) -> None:
    del model.model.language_model.layers[3].self_attn


def split_by_heads(model: Any) -> None:
    model._tp_size = 4


def unchanged(model: Any) -> None:
    pass


ATTACHING: dict[str, tuple[Any, Change, type[Exception], str]] = {
    "unknown layer": (
        lk.LightKVConfig([lk.Stage(1, 2), lk.Stage(17, 1)]),
        unchanged,
        lk.ScheduleError,
        r"layer=17.*layers 0\.\.5.*may run after layers 0 to 4",
    ),
    "last layer": (
        lk.LightKVConfig([lk.Stage(5, 1)]),
        unchanged,
        ValueError,
        "after layers 0 to 4",
    ),
    "windows larger than the grid": (
        lk.LightKVConfig([lk.Stage(1, 5)]),
        unchanged,
        lk.ScheduleError,
        "4x4 tokens into 5 windows.*use at most 4",
    ),
    "not a configuration": (STAGES, unchanged, TypeError, "expected a LightKVConfig"),
    "paged attention": (
        CONFIG,
        with_config(_attn_implementation="paged|eager"),
        lk.UnsupportedInputError,
        r"'paged\|eager' is not supported.*'eager', 'sdpa', 'flash_attention_2'.*register\(name",
    ),
    "unknown attention": (
        CONFIG,
        with_config(_attn_implementation="sdpa_paged"),
        ValueError,
        "'sdpa_paged' is not supported",
    ),
    "no attention": (
        CONFIG,
        with_config(_attn_implementation=None),
        lk.UnsupportedInputError,
        "None is not supported",
    ),
    "dynamic rotary positions": (
        lk.LightKVConfig(STAGES, positions="reindex"),
        with_config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        lk.UnsupportedInputError,
        "'dynamic' rotary positions.*preserve",
    ),
    "a tower without a square grid": (
        CONFIG,
        without_patches,
        lk.UnsupportedModelError,
        "square image_size",
    ),
    "more processes than key-value heads": (
        CONFIG,
        split_by_heads,
        lk.UnsupportedInputError,
        "over 4 processes cannot share out 4 heads and 2 key-value heads evenly",
    ),
    "an unknown text model": (
        CONFIG,
        on_another_decoder,
        lk.UnsupportedModelError,
        "'gpt2' text model.*'llama'",
    ),
    "an attention that is not there": (CONFIG, without_attention, AttributeError, "self_attn"),
}


@pytest.mark.parametrize("case", ATTACHING)
def test_attaching_is_refused(case: str) -> None:
    config, change, error, message = ATTACHING[case]
    model = tiny_llava()
    change(model)
    before = [footprint_of_hooks(module) for module in model.modules()]
    with pytest.raises(error, match=message):
        lk.attach(model, config)
    assert [footprint_of_hooks(module) for module in model.modules()] == before
    if change is unchanged:
        with left_untouched(model, batch(*RAGGED)), pytest.raises(error):
            lk.attach(model, config)
        with lk.attach(model, CONFIG):
            pass


def footprint_of_hooks(module: torch.nn.Module) -> tuple[int, ...]:
    own = vars(module)
    return len(own), *(len(v) for k, v in own.items() if "hooks" in k and isinstance(v, dict))


def test_torch_scatter_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    model, inputs = tiny_llava(), batch(*RAGGED)
    config = lk.LightKVConfig(STAGES, scatter="torch_scatter")
    with left_untouched(model, inputs), pytest.raises(ImportError, match=r"pip install.*or use"):
        lk.attach(model, config)


# --- families without an adapter ------------------------------------------------------------------


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[lk.Adapter]]:
    """The registry, to be put back."""
    copied = dict(registry._ADAPTERS)
    monkeypatch.setattr(registry, "_ADAPTERS", copied)
    return copied


def test_a_model_that_sees_nothing() -> None:
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    told = (
        r"'llama'.*docs/families\.md.*adapter=\"auto\".*docs/how-to/adapter\.md.*register_adapter"
    )
    with pytest.raises(lk.UnsupportedModelError, match=f"(?s){told}"):
        lk.attach(model, CONFIG)


@pytest.mark.parametrize("thing", [None, "llava", torch.nn.Linear(2, 2)], ids=str)
def test_no_model_at_all(thing: Any) -> None:
    with pytest.raises(lk.UnsupportedModelError, match="no adapter for"):
        lk.attach(thing, CONFIG)


def test_the_message_shows_how_to_write_an_adapter(adapters: dict[str, Any]) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    with lk.attach(model, CONFIG):
        expected = model(**inputs).logits
    model.config.model_type = "my_vlm"
    with left_untouched(model, inputs), pytest.raises(TypeError) as caught:
        lk.attach(model, CONFIG)
    code = textwrap.dedent(str(caught.value).split("\n\n")[1])
    exec(code.replace("(24, 24)", "(4, 4)"), {"lightkv_gnn": lk})
    assert adapters["my_vlm"].__name__ == "MyAdapter"
    with left_untouched(model, inputs), lk.attach(model, CONFIG):
        assert torch.equal(model(**inputs).logits, expected)


def test_a_subclass_takes_an_adapters_place(adapters: dict[str, Any]) -> None:
    mine = type("Mine", (adapters["llava"],), {})
    assert lk.register_adapter("llava")(mine) is adapters["llava"] is mine


UNFIT = {
    "no placeholder": ({"placeholders": {}}, "knows no kind of pictures"),
    "no encoder": ({"encoders": {}}, "knows no kind of pictures"),
    "no pixels": ({"pixels": {}}, "knows no kind of pictures"),
    "an unknown encoder": ({"encoders": {"image": "see"}}, "encoder 'see', which LlavaModel"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_adapter_that_would_find_nothing(adapters: dict[str, Any], case: str) -> None:
    values, message = UNFIT[case]
    adapters["llava"] = type("Unfit", (adapters["llava"],), values)
    model, inputs = tiny_llava(), batch(*RAGGED)
    refused = pytest.raises(lk.UnsupportedModelError, match=f"Unfit.*{message}.*override")
    with left_untouched(model, inputs), refused:
        lk.attach(model, CONFIG)


def test_an_error_while_attaching_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    model, inputs = tiny_llava(), batch(*RAGGED)
    with left_untouched(model, inputs):
        with monkeypatch.context() as patched:
            patched.setattr(lk.session.attach.capture, "start", fail)
            with pytest.raises(KeyboardInterrupt):
                lk.attach(model, CONFIG)
        with lk.attach(model, CONFIG):
            pass


def test_an_attached_model_is_not_copied() -> None:
    model = tiny_llava()
    said = r"keep its hooks for good: leave the context, or call .*detach\(model\), before copying"
    with lk.attach(model, CONFIG):
        attention = model.get_decoder().layers[1].self_attn  # which is recorded
        parts = (model, model.model, model.get_decoder(), attention, [model], {"model": model})
        for part in parts:
            for copying in (copy.deepcopy, pickle.dumps, saved):
                with pytest.raises(RuntimeError, match=said):
                    copying(part)
        saved(model.state_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert footprint(copied) == footprint(copy.deepcopy(model))
    saved(model)


def saved(value: Any) -> None:
    torch.save(value, io.BytesIO())


def test_a_family_has_one_adapter(adapters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="served by LlavaAdapter already: a subclass"):
        lk.register_adapter("llava")(lk.Adapter)
    assert adapters["llava"].__name__ == "LlavaAdapter"


def test_an_adapter_must_say_where_tokens_are() -> None:
    class Vague(lk.Adapter):
        """Has no tiles."""

    with pytest.raises(TypeError, match="tiles"):
        Vague(tiny_llava())  # type: ignore[abstract]


class OtherLayer(DynamicLayer):
    """Nobody knows what it does with its entries."""


# --- calling --------------------------------------------------------------------------------------


def call(model: Any, **changes: Any) -> None:
    model(**{**batch(*RAGGED), **changes})


def cut_off(model: Any) -> None:
    """As by ``truncation=True``; the features are cut as well, as they would be in chunks."""
    inputs = batch(prompt(4, "image", 6))
    features = model.model.get_image_features(inputs["pixel_values"])
    features.pooler_output = [features.pooler_output[0][:10]]
    ids = inputs["input_ids"][:, :14]
    model(input_ids=ids, mm_encoder_outputs={"image": features})


CALLING: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "mask too short": (
        lambda model: call(model, attention_mask=torch.ones(3, 40, dtype=torch.int64)),
        lk.UnsupportedInputError,
        r"shape \[3, 40\]: expected \[3, 41\]",
    ),
    "mask of another batch": (
        lambda model: call(model, attention_mask=torch.ones(2, 41, dtype=torch.int64)),
        lk.UnsupportedInputError,
        r"shape \[2, 41\]: expected \[3, 41\]",
    ),
    "mask with three axes": (
        lambda model: call(model, attention_mask=torch.ones(3, 41, 41, dtype=torch.int64)),
        ValueError,
        r"or \[3, 1, 41, 41\]",
    ),
    "an image cut off": (
        cut_off,
        lk.ImageTokensError,
        r"hold 10 image placeholders, but the images were encoded to 16 tokens.*truncation",
    ),
    "mask wider than the call": (
        lambda model: call(model, attention_mask=torch.ones(3, 1, 41, 42, dtype=torch.bool)),
        lk.UnsupportedInputError,
        r"shape \[3, 1, 41, 42\]: expected \[3, 41\].*or \[3, 1, 41, 41\]",
    ),
    "an offloaded cache": (
        lambda model: call(model, **{CACHE: DynamicCache(offloading=True)}),
        lk.UnsupportedInputError,
        "DynamicCache moves its layers to the CPU.*expected a cache without offloading",
    ),
    "a cache that makes other layers": (
        lambda model: call(model, **{CACHE: Cache(layer_class_to_replicate=OtherLayer)}),
        lk.UnsupportedInputError,
        "OtherLayer.*dynamic caches",
    ),
    "generate with an offloaded cache": (
        lambda model: model.generate(
            **batch(*RAGGED), max_new_tokens=2, cache_implementation="offloaded_static"
        ),
        lk.UnsupportedInputError,
        "StaticCache moves its layers to the CPU.*expected a cache.*cache_implementation='static'",
    ),
    "a prefill in pieces": (
        lambda model: model.generate(**batch(*RAGGED), max_new_tokens=2, prefill_chunk_size=12),
        lk.UnsupportedInputError,
        "read in chunks.*leave prefill_chunk_size out",
    ),
}


@pytest.mark.parametrize("case", CALLING)
def test_calls_are_refused(case: str) -> None:
    run, error, message = CALLING[case]
    model, inputs = tiny_llava(), batch(*RAGGED)

    def attached() -> None:
        with lk.attach(model, CONFIG):
            run(model)

    with left_untouched(model, inputs), pytest.raises(error, match=message):
        attached()
    with lk.attach(model, CONFIG):
        expected = model(**inputs).logits
        with pytest.raises(error):
            run(model)
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("wrong", ["cache", "mask"])
def test_what_is_refused_is_refused_before_the_model_runs(wrong: str) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    calls: list[int] = []
    cache = Cache(layers=[DynamicLayer() for _ in range(5)] + [OtherLayer()])
    if wrong == "mask":
        cache = DynamicCache()
        inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
    for module in (model.model.vision_tower, model.model.language_model):
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    with lk.attach(model, CONFIG), pytest.raises(lk.UnsupportedInputError):
        model(**inputs, **{CACHE: cache})
    assert not calls
    assert cache.get_seq_length() == 0


def test_attention_past_the_interface() -> None:
    """An attention module that computes by itself gives no guidance, and says so."""
    model, inputs = tiny_llava(), batch(*RAGGED)
    attention = model.model.language_model.layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    refused = pytest.raises(RuntimeError, match=r'layer 1 did not pass.*guidance="none"')
    with left_untouched(model, inputs), lk.attach(model, CONFIG), refused:
        model(**inputs)


@pytest.mark.parametrize(
    ("part", "function", "error", "message"),
    [
        ("matcher", lambda x, partition: None, TypeError, "expected a Matching"),
        ("guidance", lambda block: torch.ones(1, 3), ValueError, r"returned shape \[1, 3\]"),
        (
            "message",
            lambda x_i, x_j, w: w[:, None] * x_j[:, :5],
            ValueError,
            r"\[edge, channel\] per edge",
        ),
    ],
)
def test_callables_that_break_their_contract(
    part: str, function: Any, error: type[Exception], message: str
) -> None:
    model, inputs = tiny_llava(), batch(*RAGGED)
    config = lk.LightKVConfig(STAGES, **{part: function})
    refused = pytest.raises(error, match=message)
    with left_untouched(model, inputs), lk.attach(model, config), refused:
        model(**inputs)


def test_asking_for_a_stage_that_was_not() -> None:
    model = tiny_llava()
    with lk.attach(model, CONFIG) as handle:
        model(**batch(*RAGGED))
        assert handle.graph(-1)["vision"].num_nodes == handle.graph(1)["vision"].num_nodes == 24
        with pytest.raises(IndexError, match="stage 2: the prefill had 2 stages"):
            handle.graph(2)
        with pytest.raises(ValueError, match="image 3"):
            handle.graph(0, image=3)
        assert handle.graph(0, image=1)["vision"].num_nodes == 16


# --- numbers that are none ------------------------------------------------------------------------


def spoiled(model: Any, image: int, token: int) -> Any:
    """Makes one vision token NaN."""

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[image, token] = torch.nan
        return output

    return model.model.multi_modal_projector.register_forward_hook(spoil)


@pytest.mark.parametrize("guidance", ["vision_to_text", "none"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_nan_in_one_sample_does_not_reach_the_others(attention: str, guidance: str) -> None:
    model, inputs = tiny_llava(attention=attention), batch(*RAGGED)
    config = lk.LightKVConfig(STAGES, guidance=guidance)
    with lk.attach(model, config) as handle:
        expected = model(**inputs)
        rows = handle.ledger.to_dict()["rows"]
        hook = spoiled(model, image=0, token=9)
        found = model(**inputs)
        hook.remove()
        assert handle.ledger.to_dict()["rows"] == rows
    assert torch.equal(found.logits[1:], expected.logits[1:])
    assert bool(found.logits[0, -1].isnan().all())
    real = inputs["attention_mask"].bool()
    assert bool(expected.logits[real].isfinite().all())


@pytest.mark.parametrize("guidance", ["vision_to_text", "none"])
@pytest.mark.parametrize("token", [8, 9], ids=["source", "destination"])
@torch.no_grad()
def test_nan_is_merged_last(token: int, guidance: str) -> None:
    """Made after layer 0's attention, which would spread it: the others stay what they are."""
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    layers, seen = model.model.language_model.layers, []

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(1, torch.tensor([4 + token]), torch.nan)

    hooks = [layers[0].mlp.register_forward_hook(spoil)]
    with lk.attach(model, lk.LightKVConfig([lk.Stage(0, 1, 0.25)], guidance=guidance)) as handle:
        hooks += [layers[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))]
        model(**inputs)
        trace = handle.trace
    for hook in hooks:
        hook.remove()
    survivor = int(trace.survivor_of()[token])
    assert trace.members(survivor).tolist() == [token]
    bad = seen[0][0].isnan().any(1)
    assert len(bad) == 22
    assert bad.nonzero()[:, 0].tolist() == [4 + survivor]


# --- not refused ----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_prompt_cut_between_images_is_whole() -> None:
    model, made = tiny_llava(), prompt(2, "image", 3, "image", 4)
    inputs = batch(made)
    shorter = {name: x[:, :20] for name, x in inputs.items() if x.ndim == 2}
    shorter["pixel_values"] = inputs["pixel_values"][:1]
    with lk.attach(model, CONFIG) as handle:
        near(model(**shorter).logits, model(**inputs).logits[:, :20], 10.0)
        model(**shorter)
        assert len(handle.trace.layout) == int((shorter["input_ids"] == IMAGE_TOKEN).sum())


def test_messages_name_what_to_do() -> None:
    """Every refusal of a call ends in a way out."""
    for _, _, message in CALLING.values():
        assert re.search("expected|dynamic|leave|truncation|or ", message)
