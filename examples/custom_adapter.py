"""An adapter for a family that the library does not know, one like VideoLLaMA 3: tiny, random."""

from collections.abc import Sequence

import torch
from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

import lightkv_gnn as lk


class PhotoLlamaConfig(VideoLlama3Config):
    """A family of one's own."""

    model_type = "photo_llama"


@lk.register_adapter("photo_llama")
class PhotoLlamaAdapter(lk.Adapter):
    """Each picture keeps its shape, and says how many patches a side of a token has."""

    text_models = ("qwen2",)

    def tiles(self, encoded: lk.Encoded) -> Sequence[Sequence[lk.graphs.Tile]]:
        merges = encoded.arguments["image_merge_sizes"].tolist()
        grids = zip(encoded.sizes("image_grid_thw"), merges, strict=True)
        return [[lk.graphs.Tile(rows // n, cols // n)] for (_, rows, cols), n in grids]


IMAGE, VIDEO = 120, 121
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "vocab_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "patch_size": 4}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}


def main() -> None:
    torch.manual_seed(0)
    config = PhotoLlamaConfig(
        text_config={"model_type": "qwen2", **TEXT, **HEADS},
        vision_config={**TOWER, **LAYERS},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    model = VideoLlama3ForConditionalGeneration(config).eval()
    # What a processor makes of a picture of 64×96 pixels: 16×24 patches, 2×2 to a token.
    inputs = {
        "input_ids": torch.tensor([[1, *[IMAGE] * 8 * 12, 40, 41, 42]]),
        "pixel_values": torch.randn(16 * 24, 3 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 16, 24]]),
        "image_merge_sizes": torch.tensor([2]),
    }
    with lk.attach(model, lk.LightKVConfig.for_model(model, retention=0.55)) as handle:
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    print(handle.trace.layout, handle.trace, handle.ledger, sep="\n")


if __name__ == "__main__":
    main()
