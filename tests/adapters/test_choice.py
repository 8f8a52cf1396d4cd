"""Which adapter a model gets, and what is said where there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families.inputs import PICTURES, batch
from families.models import LAYERS, TEXT, tiny
from models import left_untouched
from torch import nn
from transformers import GemmaConfig

import lightkv_gnn as lk
from lightkv_gnn.adapters import no_adapter
from lightkv_gnn.adapters.generic.decoders import check_features, check_layers, decoder_of
from lightkv_gnn.adapters.llava import LlavaAdapter
from lightkv_gnn.adapters.unserved import KINDS, UNSERVED
from lightkv_gnn.session.request import vision_tokens

CONFIG = lk.LightKVConfig([lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)])


def llava(model_type: str = "llava", **options: Any) -> Any:
    """LLaVA as a model of another type."""
    model = tiny("llava", **options)
    model.config.model_type = model_type
    return model


# --- what may be chosen ---------------------------------------------------------------------------


@torch.no_grad()
def test_all_choices_that_fit_give_the_same() -> None:
    model = llava()
    inputs = batch("llava", model, (2, PICTURES["llava"][0], 3))
    with lk.attach(model, CONFIG) as handle:
        expected = model(**inputs).logits
    for choice in (None, "auto", "llava", LlavaAdapter, LlavaAdapter(model)):
        assert type(lk.adapter_for(model, choice)) is LlavaAdapter
        with left_untouched(model, inputs), lk.attach(model, CONFIG, adapter=choice):
            assert torch.equal(model(**inputs).logits, expected)
        assert lk.LightKVConfig.for_model(model, adapter=choice) == lk.LightKVConfig.for_model(
            model
        )
        planned = lk.plan_prefill(model, CONFIG, inputs, adapter=choice)
        assert planned.totals()["kv_bytes"] == handle.ledger.totals()["kv_bytes"]


@pytest.mark.filterwarnings("ignore:lightkv_gnn")
@torch.no_grad()
def test_another_types_adapter_and_the_generic_one_serve_an_unknown_type() -> None:
    model = llava()
    inputs = batch("llava", model, (2, PICTURES["llava"][0], 3))
    with lk.attach(model, CONFIG):
        expected = model(**inputs).logits
    model.config.model_type = "my_vlm"
    with pytest.raises(lk.UnsupportedModelError, match="no adapter for"):
        lk.attach(model, CONFIG)
    for choice, kind in (("llava", LlavaAdapter), ("auto", lk.GenericAdapter)):
        assert type(lk.adapter_for(model, choice)) is kind
        config = lk.LightKVConfig.lightkv(model, adapter=choice)
        assert lk.plan_prefill(model, config, inputs, adapter=choice).retention < 1
        with left_untouched(model, inputs), lk.attach(model, CONFIG, adapter=choice):
            assert torch.equal(model(**inputs).logits, expected)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a name": ("llama", ValueError, "adapter is 'llama': expected 'auto' or one of .*llava"),
    "a number": (3, TypeError, "adapter is 3: expected an Adapter, a class of them"),
    "another class": (nn.Linear, TypeError, "expected an Adapter, a class of them"),
    "a family that it is not": ("mllama", ValueError, "adapter is 'mllama'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_choices_that_are_none_are_named(case: str) -> None:
    choice, error, message = WRONG[case]
    model = llava()
    inputs = batch("llava", model, (3,))
    with left_untouched(model, inputs), pytest.raises(error, match=message):
        lk.attach(model, CONFIG, adapter=choice)


def test_an_adapter_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="is a LlavaAdapter of another model: expected one that"):
        lk.attach(llava(), CONFIG, adapter=LlavaAdapter(tiny("llava_pixtral")))


# --- text models ----------------------------------------------------------------------------------


@torch.no_grad()
def test_other_text_models_are_let_in_and_told_of() -> None:
    text = {name: value for name, value in TEXT.items() if name != "tie_word_embeddings"}
    model = tiny("internvl")
    model.config.text_config = GemmaConfig(**text, head_dim=16)
    with pytest.raises(lk.UnsupportedModelError, match=r"'gemma' text model.*adapter=\"auto\""):
        lk.adapter_for(model)
    with pytest.warns(UserWarning, match="'gemma' text model is not among those"):
        adapter = lk.adapter_for(model, "auto")
    assert isinstance(adapter, type(lk.adapter_for(tiny("internvl"))))
    lk.adapter_for(model, "auto")  # says it no more, or else would fail
    model.get_decoder().config.layer_types = ["indexed_attention"] * LAYERS
    for choice in ("auto", lk.GenericAdapter):
        with pytest.raises(lk.UnsupportedModelError, match=r"has layers of indexed_attention: exp"):
            lk.adapter_for(model, choice)


class Layer(nn.Module):
    """A decoder layer of the usual shape, with one more argument."""

    self_attn = None

    def forward(
        self,
        hidden_states: Any,
        attention_mask: Any,
        position_ids: Any,
        position_embeddings: Any,
        cache: Any,
        token_type_ids: Any = None,
        shared_kv_states: Any = None,
    ) -> Any:
        """Nothing."""


def test_decoders_that_nobody_has_tested_are_looked_at() -> None:
    decoder = tiny("llava").get_decoder()
    check_layers(decoder)
    config = SimpleNamespace(layer_types=["full_attention"] * 2, num_hidden_layers=2)
    bad: dict[str, Any] = {
        "has no rotary_emb": SimpleNamespace(layers=[], config=config),
        "takes shared_kv_states: expected nothing but": SimpleNamespace(
            layers=[Layer()], config=config, rotary_emb=None
        ),
        "has layers of indexed_attention: expected": SimpleNamespace(
            layers=[], config=SimpleNamespace(layer_types=["indexed_attention"]), rotary_emb=None
        ),
        "does not take": SimpleNamespace(
            layers=[nn.Linear(2, 2)], config=SimpleNamespace(), rotary_emb=None
        ),
    }
    for message, one in bad.items():
        with pytest.raises(lk.UnsupportedModelError, match=message):
            check_layers(one)


def test_features_that_are_added_later_are_found_in_the_model() -> None:
    for family, first in (("llava", 0), ("qwen3_vl", 1)):
        model = tiny(family)
        check_features(model.get_decoder(), model.config)
        assert lk.GenericAdapter(model).legal_layers[0] == first
    model = tiny("qwen3_vl")
    nameless = SimpleNamespace(vision_config=None)
    with pytest.raises(lk.UnsupportedModelError, match="takes deepstack_visual_embeds, which may"):
        check_features(model.get_decoder(), nameless)
    with pytest.raises(lk.UnsupportedModelError, match="without layers"):
        decoder_of(SimpleNamespace(get_decoder=lambda: nn.Linear(2, 2)))


# --- models that are not served -------------------------------------------------------------------


def configured(model_type: str, **fields: Any) -> Any:
    config = SimpleNamespace(model_type=model_type, **fields)
    config.get_text_config = lambda: config
    return config


@pytest.mark.parametrize("model_type", UNSERVED)
def test_the_error_says_why_a_type_is_not_served(model_type: str) -> None:
    why = UNSERVED[model_type]
    said = str(no_adapter("MyModel", configured(model_type)))
    assert "docs/families.md" in said
    help_is_there = ['adapter="auto"', "docs/how-to/adapter.md", "register_adapter"]
    assert f"{why.kind}: {why.why} ({KINDS[why.kind]})" in said
    assert not [words for words in help_is_there if words in said]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"is_encoder_decoder": True}, "encoder–decoder"),
        ({"cross_attention_layers": [3]}, "cross-attention"),
        ({"add_cross_attention": True}, "cross-attention"),
    ],
)
def test_unknown_types_are_refused_by_kind(fields: dict[str, Any], kind: str) -> None:
    assert f"one alone could not serve it: {kind}: " in str(
        no_adapter("MyModel", configured("new", **fields))
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "its kind": ({"is_encoder_decoder": True}, "no adapter alone could: encoder–decoder"),
    "a decoder of another kind": ({"model_type": "fuyu"}, "could: decoder: patches are projected"),
    "queries": ({"perceiver_config": {"n": 64}}, "has perceiver_config, so its vision tokens are"),
    "pinpoints": ({"image_grid_pinpoints": [[1, 2]]}, "has image_grid_pinpoints"),
    "no placeholder": ({"image_token_index": None}, "expected get_image_features and image_token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_generic_adapter_says_what_it_found(case: str) -> None:
    fields, message = REFUSED[case]
    model = llava("my_vlm")
    vars(model.config).update(fields)
    with pytest.raises(lk.UnsupportedModelError, match=f"generic adapter does not .*{message}"):
        lk.attach(model, CONFIG, adapter="auto")


@torch.no_grad()
def test_tokens_may_be_the_last_hidden_state() -> None:
    model = llava("my_vlm")
    inputs = batch("llava", model, (2, PICTURES["llava"][0], 3))
    expected = vision_tokens(lk.GenericAdapter(model), inputs).encoded["image"].lengths
    adapter = lk.GenericAdapter(model)
    states = torch.zeros(1, 16, 64)
    for output in (
        SimpleNamespace(last_hidden_state=states),
        SimpleNamespace(pooler_output=None, last_hidden_state=states),
        SimpleNamespace(pooler_output=states[:, 0], last_hidden_state=states),
    ):
        assert adapter.lengths("image", output) == expected
    with pytest.raises(lk.UnsupportedModelError, match="get_image_features returns a Simple"):
        adapter.lengths("image", SimpleNamespace(pooler_output=states[:, 0]))
