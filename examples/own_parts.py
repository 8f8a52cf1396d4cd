"""Swap in a matcher and a guidance of your own; own_messages.py has messages."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn import tiny


def nearest_in_raster(x: Tensor, partition: lk.graphs.WindowPartition) -> lk.graphs.Matching:
    """A matcher: neighbours merge, those that differ least first."""
    sources, destinations = lk.graphs.bipartition(partition.slots())
    padded = torch.cat([x.float(), x.new_zeros(1, x.shape[1]).float()])
    difference = (padded[sources] - padded[destinations]).norm(dim=2)
    difference = difference.masked_fill(destinations == x.shape[0], torch.inf)
    edge_index, _ = lk.graphs.take_edges(partition, sources, destinations, difference)
    return lk.graphs.Matching(edge_index, lk.graphs.edge_cosine(x, edge_index))


def loudest_word(block: lk.guidance.GuidanceBlock) -> Tensor:
    """A guidance: a vision token weighs what the text token that likes it most gives it."""
    logits = lk.guidance.attention_logits(block.text_query, block.vision_key, block.scaling)
    share = logits.masked_fill(~block.vision_mask[:, None, None, :], -torch.inf).softmax(dim=3)
    return share.masked_fill(~block.text_mask[:, None, :, None], 0).amax(dim=(1, 2))


def main() -> None:
    model: Any
    model, processor = tiny.load()
    scene = tiny.sample_scene(np.random.default_rng(0))
    question = f"what shape is the {scene.objects[0].colour} object ?"
    inputs = processor(
        images=tiny.render(scene), text=tiny.format_prompt(question), return_tensors="pt"
    )
    stages = [lk.Stage(layer=1, windows=4, ratio=0.5), lk.Stage(layer=4, windows=2, ratio=0.5)]
    variants = {
        "the default": lk.LightKVConfig(stages),
        "own matcher": lk.LightKVConfig(stages, matcher=nearest_in_raster),
        "own guidance": lk.LightKVConfig(stages, guidance=loudest_word),
    }
    print(f"{question}  right answer: {scene.objects[0].shape}")
    for name, config in variants.items():
        with lk.attach(model, config):
            tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], True)
        print(f"{name:18} {answer}")


if __name__ == "__main__":
    main()
