"""What transformers calls things is read when a model is attached, and missing pieces are told."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import CACHE, batch, left_untouched, prompt, tiny_llava
from torch import Tensor, nn
from transformers import Cache, DynamicCache

import lightkv_gnn as lk
from lightkv_gnn import seams
from lightkv_gnn.adapters.counting import active_weights
from lightkv_gnn.cache.layers import CompressedLayer
from lightkv_gnn.seams import ModelCall

INPUTS = batch(prompt(4, "image", 6))
CONFIG = lk.LightKVConfig([lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)])


def layer(**renamed: str) -> nn.Module:
    """A layer with the usual arguments, some of them called otherwise or left out ("")."""
    names = ["hidden_states", "attention_mask", "position_ids", "cache", "position_embeddings"]
    given = [renamed.get(name, name) for name in names]
    source = f"def forward(self, {', '.join(name + '=None' for name in given if name)}): ..."
    scope: dict[str, Any] = {}
    exec(source, scope)
    return type("OddLayer", (nn.Module,), {"forward": scope["forward"]})()


class Together(nn.Module):
    """Experts as one tensor."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, 3, 5))


@pytest.mark.parametrize(
    "experts", [Together(4), nn.ModuleList(nn.Linear(3, 5, bias=False) for _ in range(4))]
)
def test_experts_that_are_not_chosen_do_not_count(experts: nn.Module) -> None:
    mlp = nn.ModuleDict({"experts": experts, "shared_experts": nn.Linear(3, 5, bias=False)})
    whole = nn.ModuleDict({"mlp": mlp, "gate": nn.Linear(3, 4, bias=False)})
    assert active_weights(whole, SimpleNamespace(num_experts_per_tok=2)) == 15 * 3 + 12
    assert active_weights(whole, SimpleNamespace()) == 15 * 5 + 12


@pytest.mark.parametrize("name", seams.CACHE)
def test_names_are_those_of_the_signature(name: str) -> None:
    assert seams.layer_names(layer(cache=name)).cache == name
    assert seams.names_of([layer(), layer(cache=name)])[1].cache == name


def test_a_layer_with_a_forward_of_its_own_speaks_for_itself_alone() -> None:
    plain = layer()
    own, other = type(plain)(), type(plain)()
    own.forward = layer(cache="past_key_values").forward
    names = seams.names_of([plain, own, other])
    assert [one.cache for one in names] == ["cache", "past_key_values", "cache"]


@pytest.mark.parametrize(
    "name", ["hidden_states", "attention_mask", "position_ids", "cache", "position_embeddings"]
)
@pytest.mark.parametrize("other", ["", "kv"])
def test_a_layer_that_takes_something_else_is_named_with_its_signature(
    name: str, other: str
) -> None:
    odd = layer(**{name: other})
    with pytest.raises(lk.UnsupportedModelError) as caught:
        seams.layer_names(odd)
    words = str(caught.value)
    assert "OddLayer.forward(" in words
    assert f"does not take {name}" in words
    assert f"transformers {seams.OLDEST} to {seams.NEWEST}" in words


def test_attaching_refuses_an_unknown_layer_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llava()
    kind = type(model.model.language_model.layers[0])
    real = kind.forward

    def forward(self: Any, hidden_states: Tensor, memory: Cache | None = None) -> Tensor:
        return real(self, hidden_states)

    with left_untouched(model, INPUTS):
        monkeypatch.setattr(kind, "forward", forward)
        with pytest.raises(lk.UnsupportedModelError, match=r"memory.* does not take .*cache or"):
            lk.attach(model, CONFIG)
        monkeypatch.undo()


class OwnAttention(nn.Module):
    """Asks nobody for its function."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states, None


def test_attaching_refuses_attention_beside_the_interface() -> None:
    model = tiny_llava()
    with left_untouched(model, INPUTS):
        attended = model.model.language_model.layers[1].self_attn
        model.model.language_model.layers[1].self_attn = OwnAttention()
        with pytest.raises(lk.UnsupportedModelError, match="OwnAttention does not go through"):
            lk.attach(model, CONFIG)
        lk.attach(model, lk.LightKVConfig(CONFIG.stages, guidance="none")).remove()
        model.model.language_model.layers[1].self_attn = attended


def test_attaching_refuses_a_transformers_without_what_caches_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llava()
    with left_untouched(model, INPUTS):
        monkeypatch.delattr(Cache, "get_mask_sizes")
        with pytest.raises(lk.UnsupportedModelError, match=r"has no Cache\.get_mask_sizes; tested"):
            lk.attach(model, CONFIG)
        monkeypatch.undo()


def test_a_name_that_cannot_be_imported_comes_with_the_versions() -> None:
    error = seams.with_versions(ImportError("cannot import name 'DynamicLayer'"))
    assert re.search(rf"'DynamicLayer'; .*{seams.OLDEST} to {seams.NEWEST}", str(error))


@pytest.mark.parametrize(
    ("version", "newer"), [("5.17.0", False), ("5.24.3", False), ("5.25.0", True), ("6.0.0", True)]
)
def test_newer_versions_are_told_of(
    version: str, newer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seams.transformers, "__version__", version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lk.attach(tiny_llava(), CONFIG).remove()
    said = [str(one.message) for one in caught if "newer than" in str(one.message)]
    assert len(said) == newer
    assert all(f"{seams.OLDEST} to {seams.NEWEST}" in words for words in said)


@pytest.mark.parametrize("name", seams.CACHE)
def test_a_call_knows_its_cache_by_either_name(name: str) -> None:
    cache = DynamicCache()
    assert ModelCall({name: cache}).cache is cache
    assert ModelCall({name: cache, **dict.fromkeys(set(seams.CACHE) - {name})}).cache is cache
    assert ModelCall({"input_ids": None}).cache is None
    assert seams.cache_in((cache,)) is None


@torch.no_grad()
def test_patches_are_what_the_encoder_returned() -> None:
    model = tiny_llava().model
    encoded = model.get_image_features(INPUTS["pixel_values"]).pooler_output
    assert torch.equal(seams.patches_in(model(**INPUTS)), torch.cat(list(encoded)))


# --- a prefill that did not do what was planned ---------------------------------------------------


@torch.no_grad()
def test_a_layer_that_does_not_write_what_was_announced_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kept_nothing(self: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        return keys, values

    model = tiny_llava()
    with left_untouched(model, INPUTS):
        monkeypatch.setattr(CompressedLayer, "update", kept_nothing)
        with lk.attach(model, CONFIG) as handle:
            with pytest.raises(RuntimeError, match="decoder layer 2 did not write the entries"):
                model(**INPUTS)
            with pytest.raises(RuntimeError, match="nothing to tell"):
                _ = handle.ledger
        monkeypatch.undo()


@torch.no_grad()
def test_a_layer_that_writes_more_than_it_was_given_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llava()
    written = lk.session.checks.entries_written
    monkeypatch.setattr(
        lk.session.checks, "entries_written", lambda *args: written(*args) + (args[1] == 5)
    )
    with (
        lk.attach(model, CONFIG),
        pytest.raises(RuntimeError, match=r"layer 5 wrote \d+ entries, but was given"),
    ):
        model(**INPUTS)


@torch.no_grad()
def test_a_cache_that_comes_by_an_unknown_name_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llava()
    unknown = seams.LayerNames(cache="memory")
    monkeypatch.setattr(lk.session.hooks, "names_of", lambda layers: (unknown,) * len(layers))
    with (
        lk.attach(model, CONFIG),
        pytest.raises(RuntimeError, match="were not given by a name that is known"),
    ):
        model(**INPUTS)


@pytest.mark.parametrize("cache", [None, DynamicCache])
@torch.no_grad()
def test_what_was_planned_is_no_error(cache: type[Cache] | None) -> None:
    model = tiny_llava()
    given = {} if cache is None else {CACHE: cache()}
    with lk.attach(model, CONFIG) as handle:
        model(**INPUTS, **given, use_cache=cache is not None)
    rows = handle.ledger.rows
    assert all(row.observed_kv_bytes == (row.planned.kv_bytes if cache else None) for row in rows)
