"""What layers are given for each token goes on with the token; what is not known is refused."""

from __future__ import annotations

import pytest
import torch
from families.loop_stock import hidden_from_layers, stock_steps
from families.more import model_of
from families.more_inputs import samples, together
from families.test_more_families import config_of, generate, gone_from
from flash_stand_in import flash_on_cpu
from models import CACHE, LAYERS, batch, near, prompt, tiny_llava
from transformers import DynamicCache

import lightkv_gnn as lk
from lightkv_gnn.attention.positions import rotary_rows
from lightkv_gnn.stage.guidance import unrotated

CONFIG = lk.LightKVConfig([lk.Stage(1, 1, 0.5)])


@pytest.mark.parametrize("wrong", ["shape", "name", "list"])
@torch.no_grad()
def test_what_is_not_known_to_be_of_tokens_is_refused(wrong: str) -> None:
    model, inputs = tiny_llava(), batch(prompt(3, "image", 4))
    tokens = inputs["input_ids"].shape[1]
    given, said = {
        "shape": (
            {"token_type_ids": torch.ones(1, tokens - 1)},
            rf"one entry for each of {tokens}",
        ),
        "name": ({"hint": torch.ones(1, tokens)}, r"is given hint, a tensor of shape .*token_axes"),
        "list": ({"hints": [torch.ones(tokens)]}, r"is given hints, a list with tensors"),
    }[wrong]
    plain = model(**inputs).logits
    with lk.attach(model, CONFIG):
        with pytest.raises(lk.UnsupportedInputError, match=said):
            model(**inputs, **given)
        model(**inputs, items=torch.tensor(3))  # a number, as trainers pass on
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_positions_that_a_layer_reads_close_up() -> None:
    """Ministral 3 scales queries by their positions."""
    model = model_of("ministral3")
    _, single = samples("ministral3", model)
    config = config_of(model, 0.5, 0.25, message="destination_only", positions="reindex")
    with lk.attach(model, config) as handle:
        prefill, steps = model(**single), generate(model, single)
        (gone,) = gone_from(handle.trace, single["input_ids"])
    with hidden_from_layers(model, gone, renumber=True):
        out = model(**single)
        later = stock_steps(model, out, steps.sequences[0, -3:].tolist())
    kept = [n for n in range(out.logits.shape[1]) if n not in gone[-1]]
    near(prefill.logits[0, kept], out.logits[0, kept])
    near(torch.cat(steps.logits), later)


@torch.no_grad()
def test_positions_that_a_layer_reads_are_no_borders_to_flash_attention() -> None:
    found = []
    with flash_on_cpu():
        for attention in ("sdpa", "flash_attention_2"):
            model = model_of("ministral3", attention)
            singles = samples("ministral3", model)
            config = config_of(model, 0.5, 0.25)
            first, then = singles[0], dict(singles[1])
            then["position_ids"] = then["position_ids"] + first["input_ids"].shape[1]
            del then["attention_mask"]
            with lk.attach(model, config):
                both = together(singles)
                one = model(**first)
                other = model(**then, **{CACHE: one[CACHE]})
                real = both["attention_mask"].bool()
                found.append((model(**both).logits[real], one.logits, other.logits))
    for flash, dense in zip(*found, strict=True):
        near(flash, dense, 5e-5)  # uncompressed too, the backends differ by 2e-5


FULL = {"layer_types": ["full_attention"] * LAYERS}


@pytest.mark.filterwarnings("ignore:.*is served by the generic adapter")
@pytest.mark.parametrize("kind", ["its own", "generic"])
@torch.no_grad()
def test_contexts_in_which_places_are_scaled_are_refused(kind: str) -> None:
    """Llama 4's queries grow where its ``floor_scale`` is reached, tokens of earlier turns too."""
    first, then = samples("llama4", model_of("llama4"))
    turns = [one["input_ids"].shape[1] for one in (first, then)]
    answers = []
    for scale in (8192, sum(turns) + 1, sum(turns)):
        model = model_of("llama4", text={**FULL, "floor_scale": scale})
        adapter = lk.GenericAdapter if kind == "generic" else None
        cache = DynamicCache(config=model.config.get_text_config())
        config = lk.LightKVConfig([lk.Stage(1, 1, 0.5)])
        with lk.attach(model, config, adapter=adapter):
            answers.append([model(**first, **{CACHE: cache}).logits])
            mask = torch.ones(1, sum(turns)).long()
            second = {**then, "attention_mask": mask, CACHE: cache}
            if scale > sum(turns):
                answers[-1].append(model(**second).logits)
                continue
            with pytest.raises(
                lk.UnsupportedInputError, match=f"which merging changes, from {scale}"
            ):
                model(**second)
            assert int(cache.get_seq_length()) == turns[0]
    assert all(map(torch.equal, answers[0], answers[1]))
    assert torch.equal(answers[0][0], answers[2][0])


def test_attention_in_chunks_is_refused_where_nobody_has_tested_it() -> None:
    with pytest.raises(lk.UnsupportedModelError, match="has layers of chunked_attention"):
        lk.GenericAdapter(model_of("llama4"))


def test_tables_of_complex_numbers_keep_their_rows_and_turn_back() -> None:
    states = torch.randn(2, 3, 5, 8)
    tables = torch.polar(torch.full((1, 7, 4), 1.3), 9 * torch.rand(1, 7, 4))
    source = torch.tensor([[0, 2, 3, 5, 6], [-1, 1, 2, 4, 6]])
    rows = rotary_rows(tables, source)
    assert torch.equal(rows, torch.stack([tables[0, [0, 2, 3, 5, 6]], tables[0, [0, 1, 2, 4, 6]]]))
    turned = torch.view_as_real(torch.view_as_complex(states.unflatten(-1, (4, 2))) * rows[:, None])
    torch.testing.assert_close(unrotated(turned.flatten(-2), rows), states)
    assert rotary_rows(None, source) is None
    assert unrotated(states, None) is states


def test_tables_of_another_form_are_refused() -> None:
    source, table = torch.zeros(1, 2, dtype=torch.int64), torch.ones(5, 4)
    with pytest.raises(
        lk.UnsupportedInputError, match=r"shape \[5, 4\]: expected an axis of samples"
    ):
        rotary_rows((table, table), source)
    with pytest.raises(lk.UnsupportedInputError, match="rotary tables as dict: expected cosines"):
        rotary_rows({"cos": table}, source)
