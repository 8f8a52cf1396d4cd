"""Text models and numerics that the session must not take for what they are not."""

from __future__ import annotations

import pytest
import torch
from models import batch, near, prompt, tiny_llava
from transformers import CohereConfig, LlavaConfig, LlavaForConditionalGeneration

import lightkv_gnn as lk
from lightkv_graphs.build import KEEPS, MERGES

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]


def test_a_text_model_of_other_rotary_positions_is_refused() -> None:
    vision = tiny_llava().config.vision_config
    text = CohereConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=120)
    model = LlavaForConditionalGeneration(config)
    with pytest.raises(lk.UnsupportedModelError, match=r"'cohere' text model .* \('llama'"):
        lk.attach(model, lk.LightKVConfig(STAGES))


@torch.no_grad()
def test_stages_compute_in_float32_under_autocast() -> None:
    """Of the first stage's merges, that is; what comes in is bfloat16 already."""
    model, inputs = tiny_llava(), batch(prompt(4, "image", 6))
    heard: list[torch.dtype] = []

    def weigh(block: lk.guidance.GuidanceBlock) -> torch.Tensor:
        logits = lk.guidance.attention_logits(block.vision_query, block.text_key, block.scaling)
        heard.append(logits.dtype)
        return logits.softmax(dim=2).sum(dim=(1, 3))

    with lk.attach(model, lk.LightKVConfig(STAGES, guidance=weigh)), torch.autocast("cpu"):
        model(**inputs)
    assert heard == [torch.float32] * 2


@torch.no_grad()
def test_two_images_of_one_call_share_a_graph() -> None:
    """Guidance edges lead from each text token to the vision tokens of its own sample."""
    model = tiny_llava()
    inputs = batch(prompt(4, "image", 6), prompt(2, "image", 1, "image", 3, seed=1))
    with lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        model(**inputs)
    graph = handle.graph(0)
    text, vision = graph["text", "guides", "vision"].edge_index
    assert torch.equal(graph["text"].sample[text], graph["vision"].sample[vision])
    assert len(text) == 10 * 16 + 6 * 32
    share = graph["text", "guides", "vision"].weight
    heads = torch.zeros(16).index_add_(0, text, share)
    near(heads, torch.full((16,), 4.0))
    for number, stage in enumerate(handle.trace):  # and the trace tells their sum
        graph = handle.graph(number)
        vision, share = (
            graph["text", "guides", "vision"][name] for name in ("edge_index", "weight")
        )
        total = torch.zeros(len(stage.window)).index_add_(0, vision[1], share)
        near(stage.guidance.exp(), total)
        again = handle.trace.graph(number)
        for kind in ("vision", MERGES, KEEPS):
            for name, value in graph[kind].items():
                assert torch.equal(torch.as_tensor(again[kind][name]), torch.as_tensor(value))


def test_a_wrapper_around_a_model_is_refused() -> None:
    """What it generates would pass by the hooks, uncompressed."""

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.base_model, self.config = inner, inner.config

        def get_decoder(self) -> torch.nn.Module:
            return self.base_model.get_decoder()

    with pytest.raises(TypeError, match=r"Wrapper around a model, .* get_base_model\(\)"):
        lk.attach(Wrapper(tiny_llava()), lk.LightKVConfig(STAGES))
    with pytest.raises(TypeError, match=r"DataParallel around a model: .* model\.module"):
        lk.attach(torch.nn.DataParallel(tiny_llava()), lk.LightKVConfig(STAGES))


@pytest.mark.parametrize("guidance", ["vision_to_text", "text_to_vision", "last_token"])
@torch.no_grad()
def test_a_prompt_of_nothing_but_an_image(guidance: str) -> None:
    """No text guides: as if there were no guidance."""
    model, inputs = tiny_llava(), batch(prompt("image"))
    with lk.attach(model, lk.LightKVConfig(STAGES, guidance=guidance)):
        found = model(**inputs).logits
    with lk.attach(model, lk.LightKVConfig(STAGES, guidance="none")):
        near(found, model(**inputs).logits)
