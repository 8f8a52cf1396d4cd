"""An adapter for a family that the library does not know: Mistral Small 3.1, tiny and random."""

from collections.abc import Sequence

import torch
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

import lightkv_gnn as lk


@lk.register_adapter("mistral3")
class Mistral3Adapter(lk.Adapter):
    """Each picture keeps its shape; two by two patches are merged before the decoder."""

    text_models = ("mistral",)

    def tiles(self, encoded: lk.Encoded) -> Sequence[Sequence[lk.graphs.Tile]]:
        config = self.model.config
        cell = config.vision_config.patch_size * config.spatial_merge_size
        sizes = encoded.sizes("image_sizes")
        return [[lk.graphs.Tile(height // cell, width // cell)] for height, width in sizes]


IMAGE, BREAK, END = 120, 121, 122
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "vocab_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "image_size": 128, "patch_size": 4}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}


def main() -> None:
    torch.manual_seed(0)
    config = Mistral3Config(
        text_config={"model_type": "mistral", **TEXT, **HEADS},
        vision_config={"model_type": "pixtral", **TOWER, **LAYERS},
        image_token_index=IMAGE,
    )
    model = Mistral3ForConditionalGeneration(config).eval()
    # What a processor makes of a picture of 64×96 pixels: 8 rows of 12 tokens, with text between.
    picture = ([IMAGE] * 12 + [BREAK]) * 7 + [IMAGE] * 12 + [END]
    inputs = {
        "input_ids": torch.tensor([[1, *picture, 40, 41, 42]]),
        "pixel_values": torch.randn(1, 3, 64, 96),
        "image_sizes": torch.tensor([[64, 96]]),
    }
    with lk.attach(model, lk.LightKVConfig.for_model(model, retention=0.55)) as handle:
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    print(handle.trace.layout)
    print(handle.trace)
    print(handle.ledger)


if __name__ == "__main__":
    main()
