"""Decoders spread over devices by accelerate: the same, and no tensors of two devices meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families.inputs import PICTURES
from families.inputs import batch as batch_of
from families.models import tiny
from models import CACHE, batch, left_untouched, near, prompt, tiny_llava
from places import Placed, Pretending, settled
from transformers import AutoModelForImageTextToText

import lightkv_gnn as lk

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
PROMPTS = (prompt(4, "image", 6), prompt(2, "image", 1, "image", 3, seed=1))
DECODER = "model.language_model"


def device_map(first: str, second: str, border: int) -> dict[str, str]:
    """Everything on one device but the layers from ``border`` on, the norm and the head."""
    names = ["model.vision_tower", "model.multi_modal_projector"]
    names += [f"{DECODER}.{part}" for part in ("embed_tokens", "rotary_emb")]
    layers = {f"{DECODER}.layers.{n}": first if n < border else second for n in range(6)}
    ends = {f"{DECODER}.norm": second, "lm_head": second}
    return {**dict.fromkeys(names, first), **layers, **ends}


def answers(model: Any, inputs: dict[str, Any], config: lk.LightKVConfig, **options: Any) -> Any:
    """What attaching gives: tensors to compare, and the ledger."""
    options = {"return_dict_in_generate": True, "output_logits": True, **options}
    with torch.no_grad(), lk.attach(model, config) as handle:
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False, **options)
    trace = [
        tensor.cpu()
        for stage in handle.trace.to("cpu")
        for tensor in (stage.survivor, stage.weight, stage.similarity, stage.guidance)
        if tensor is not None
    ]
    logits = [x.cpu() for x in out.logits]
    shares = handle.trace.share().cpu()  # of all stages together
    return [out.sequences.cpu(), *logits, *trace, shares], handle.ledger.rows


def same(found: Any, expected: Any) -> None:
    assert len(found[0]) == len(expected[0])
    for one, other in zip(found[0], expected[0], strict=True):
        if other.is_floating_point():  # memory aligned otherwise may be summed otherwise
            near(one, other, 1e-6)
        else:
            assert torch.equal(one, other)
    assert found[1] == expected[1]


# --- offloaded weights ----------------------------------------------------------------------------


def to_host(model: Any, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def to_disk(model: Any, folder: Path) -> Any:
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def some_layers(model: Any, folder: Path) -> Any:
    return accelerate.dispatch_model(model, device_map("cpu", "disk", 2), offload_dir=folder)


def loaded(model: Any, folder: Path) -> Any:
    """By transformers itself."""
    model.save_pretrained(folder / "model")
    load = AutoModelForImageTextToText.from_pretrained
    spread = device_map("cpu", "disk", 3)
    new = load(folder / "model", device_map=spread, offload_folder=folder / "weights")
    new.generation_config = model.generation_config
    assert set(new.hf_device_map.values()) == {"cpu", "disk"}
    return new


# What transformers 5.17 says where weights are offloaded without a device map.
@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids`:UserWarning")
@pytest.mark.parametrize("spread", [to_host, to_disk, some_layers, loaded])
@torch.no_grad()
def test_offloaded_weights(spread: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    inputs, config = batch(*PROMPTS), lk.LightKVConfig(STAGES)
    expected = answers(tiny_llava(), inputs, config)
    planned = lk.plan_prefill(tiny_llava(), config, inputs)
    model = spread(tiny_llava(), tmp_path)
    assert {weight.device.type for weight in model.model.language_model.layers[5].parameters()} == {
        "meta"
    }
    with left_untouched(model, inputs):
        same(answers(model, inputs, config), expected)
    assert lk.plan_prefill(model, config, inputs) == planned


@torch.no_grad()
def test_embeddings_of_an_offloaded_model(tmp_path: Path) -> None:
    """Placeholders are looked up in weights that are elsewhere."""
    whole, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    embeds = whole.get_input_embeddings()(inputs.pop("input_ids"))
    with lk.attach(whole, lk.LightKVConfig(STAGES)):
        expected = whole(inputs_embeds=embeds, **inputs).logits
    model = to_disk(tiny_llava(), tmp_path)
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        assert torch.equal(model(inputs_embeds=embeds, **inputs).logits, expected)


# --- two devices ----------------------------------------------------------------------------------

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "preserve": ("sdpa", {}, {}),
    "eager": ("eager", {}, {}),
    "reindex": ("sdpa", {"positions": "reindex"}, {}),
    "no positions": ("sdpa", {"rotary": False}, {}),
    "static cache": ("sdpa", {"positions": "reindex"}, {"cache_implementation": "static"}),
    "beams": ("sdpa", {}, {"num_beams": 2}),
}


@pytest.mark.each
@pytest.mark.parametrize("border", [1, 5])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_layers_on_two_devices(case: str, border: int) -> None:
    """Before the layer that the first stage runs after, and before the last one."""
    attention, fields, options = CASES[case]
    inputs, config = batch(*PROMPTS), lk.LightKVConfig(STAGES, **fields)
    expected = answers(tiny_llava(attention=attention), inputs, config, **options)
    with Pretending():
        model = tiny_llava(attention=attention)
        accelerate.dispatch_model(model, device_map("cpu:1", "cpu:2", border))
        same(answers(model, inputs, config, **options), expected)


@pytest.mark.parametrize(
    ("positions", "options"),
    [("preserve", {}), ("reindex", {}), ("reindex", {"cache_implementation": "static"})],
)
@torch.no_grad()
def test_rows_and_columns_on_two_devices(positions: str, options: dict[str, Any]) -> None:
    """M-RoPE, whose reindexed tables count entries, in a ragged batch."""
    whole = tiny("qwen2_5_vl")
    inputs = batch_of("qwen2_5_vl", whole, (4, PICTURES["qwen2_5_vl"][0], 6), (9,))
    config = lk.LightKVConfig(STAGES, positions=positions)
    expected = answers(whole, inputs, config, **options)
    with Pretending():
        model = tiny("qwen2_5_vl")
        spread = device_map("cpu:1", "cpu:2", 2)
        spread = {name: place for name, place in spread.items() if name.count(".") > 1}
        accelerate.dispatch_model(model, {**spread, "model.visual": "cpu:1", "lm_head": "cpu:2"})
        same(answers(model, inputs, config, **options), expected)


@pytest.mark.parametrize("positions", ["preserve", "reindex"])
@torch.no_grad()
def test_later_turns_on_two_devices(positions: str) -> None:
    """What a compressed layer remembers is where its hidden states come from."""
    first, second = batch(PROMPTS[0]), batch(prompt(3, "image", 2, seed=2), seed=3)
    config = lk.LightKVConfig(STAGES, positions=positions)

    def talk(model: Any) -> list[Any]:
        with lk.attach(model, config):
            out = model(**first, use_cache=True)
            seen = first["attention_mask"].shape[1] + second["attention_mask"].shape[1]
            again = {**second, "attention_mask": torch.ones(1, seen, dtype=torch.int64)}
            more = model(**again, **{CACHE: out[CACHE]})
        return [out.logits.cpu(), more.logits.cpu()]

    expected = talk(tiny_llava())
    with Pretending():
        model = accelerate.dispatch_model(tiny_llava(), device_map("cpu:1", "cpu:2", 3))
        for one, other in zip(talk(model), expected, strict=True):
            near(one, other, 1e-6)


@torch.no_grad()
def test_a_prompt_left_on_the_host() -> None:
    """``generate`` moves it, and copies with it the pictures it has encoded already."""
    inputs, config = batch(*PROMPTS), lk.LightKVConfig(STAGES)
    expected = answers(tiny_llava(), inputs, config)
    with Pretending():
        model = settled(tiny_llava(), "cpu:1")
        inputs["pixel_values"] = inputs["pixel_values"].to("cpu:1")  # these it does not
        same(answers(model, inputs, config), expected)


@torch.no_grad()
def test_pictures_encoded_elsewhere() -> None:
    """Handed to the model, which accelerate copies for it."""
    whole, inputs = tiny_llava(), batch(*PROMPTS)
    pixels = inputs.pop("pixel_values")
    with lk.attach(whole, lk.LightKVConfig(STAGES)):
        outputs = {"image": whole.model.get_image_features(pixels)}
        expected = whole(**inputs, mm_encoder_outputs=outputs).logits
    with Pretending():
        model = accelerate.dispatch_model(tiny_llava(), device_map("cpu:1", "cpu:2", 2))
        with lk.attach(model, lk.LightKVConfig(STAGES)):
            outputs = {"image": model.model.get_image_features(pixels)}
            near(model(**inputs, mm_encoder_outputs=outputs).logits, expected, 1e-6)


def test_pretended_devices_do_not_mix() -> None:
    with Pretending():
        here, there = torch.zeros(2), torch.ones(2, device="cpu:1")
        assert isinstance(there, Placed)
        assert (there + there).device == torch.device("cpu:1")
        assert torch.equal(there.to("cpu:2").cpu(), torch.ones(2))
        for mixed in (here, there.to("cpu:2")):
            with pytest.raises(RuntimeError, match="mixes tensors"):
                there + mixed
            with pytest.raises(RuntimeError, match="mixes tensors"):
                there.index_select(0, mixed.long())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_layers_on_two_gpus() -> None:
    inputs, config = batch(*PROMPTS), lk.LightKVConfig(STAGES)
    expected = answers(tiny_llava().to("cuda:0"), inputs, config)
    model = accelerate.dispatch_model(tiny_llava(), device_map("cuda:0", "cuda:1", 2))
    found = answers(model, inputs, config)
    assert torch.equal(found[0][0], expected[0][0])
    assert found[1] == expected[1]
