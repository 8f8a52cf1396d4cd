"""Three messages of one's own: what a survivor hears from the tokens that join it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.nn import SimpleConv

import lightkv_gnn as lk
from lightkv_gnn import tiny


def keep_the_strongest(x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
    """A function: tokens that are louder than their survivor count double, the rest half."""
    louder = x_j.norm(dim=1) > x_i.norm(dim=1)
    return torch.where(louder, 2.0, 0.5)[:, None] * weight[:, None] * x_j


class Gate(torch.nn.Module):
    """A module with weights, which training could fit: a gate opens where two tokens agree."""

    def __init__(self) -> None:
        super().__init__()
        self.steepness = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, x_i: Tensor, x_j: Tensor, weight: Tensor) -> Tensor:
        agreement = torch.cosine_similarity(x_i, x_j, dim=1)
        gate = (self.steepness * agreement).sigmoid() / self.steepness.sigmoid()
        return (gate * weight)[:, None] * x_j


def main() -> None:
    model: Any
    model, processor = tiny.load()
    scene = tiny.sample_scene(np.random.default_rng(0))
    question = f"what shape is the {scene.objects[0].colour} object ?"
    prompt, picture = tiny.format_prompt(question), tiny.render(scene)
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    stages = [lk.Stage(layer=1, windows=4, ratio=0.5), lk.Stage(layer=4, windows=2, ratio=0.5)]
    messages = {
        "the default": lk.guided_mean,
        "a function": keep_the_strongest,
        "a module": Gate(),
        "a PyG convolution": SimpleConv(aggr="max"),
    }
    print(f"{question}  right answer: {scene.objects[0].shape}")
    for name, message in messages.items():
        with lk.attach(model, lk.LightKVConfig(stages, message=message)):
            tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], True)
        print(f"{name:18} {answer}")


if __name__ == "__main__":
    main()
