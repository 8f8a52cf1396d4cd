"""Pictures as models see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from lightkv_gnn.adapters import AdapterChoice, adapter_for
from lightkv_gnn.adapters.encoded import tiles_of_samples
from lightkv_gnn.session.request import vision_tokens
from lightkv_graphs import Tile

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def seen_tiles(
    model: PreTrainedModel,
    processor: Any,
    inputs: Mapping[str, Any],
    *,
    adapter: AdapterChoice = None,
) -> list[Image.Image]:
    """What the model sees of a call's pictures, so that tokens lie where they are drawn.

    The pictures come from the processor's tensors, with its scaling, cropping, cutting and padding
    done and its normalisation undone.  To learn which token belongs to which picture, the model's
    encoders run once.

    Args:
        model: The model.
        processor: Its processor, whose means and standard deviations are undone.
        inputs: What the processor returned, as ``generate`` takes it.
        adapter: As for :func:`attach`.

    Returns:
        A picture for each image of the call's ``TokenLayout``, in its order: each is one tile or
        frame, which the image's grid covers from edge to edge.

    Raises:
        ImageTokensError: Placeholders and pictures do not fit each other.
        TypeError: ``processor`` does not tell how it normalised pictures.
        UnsupportedInputError: ``inputs`` has no pictures, or does not tell their sizes.
        UnsupportedModelError: The model's adapter has no ``seen``, or it has no adapter.
    """
    chosen = adapter_for(model, adapter)
    tokens = vision_tokens(chosen, inputs)
    parts = {kind: _processing(processor, kind) for kind in tokens.encoded}
    tiles: dict[str, list[list[Tile]]] = {}
    pictures: dict[int, Image.Image] = {}
    for kind, encoded in tokens.encoded.items():
        seen = chosen.seen(encoded, inputs[chosen.pixels[kind]])
        # Each tile is an object of its own, and so can be found again among those of its sample.
        tiles[kind] = [[Tile(*tile) for tile in own] for own in chosen.tiles(encoded)]
        for tile, pixels in zip(_flat(tiles[kind]), _flat(seen), strict=True):
            pictures[id(tile)] = _as_picture(pixels, parts[kind])
    return [pictures[id(tile)] for tile in _flat(tiles_of_samples(tokens, tiles))]


def _flat(nested: Sequence[Sequence[Any]]) -> chain[Any]:
    return chain.from_iterable(nested)


def _processing(processor: Any, kind: str) -> Any:
    """The part of a processor, which may itself be that part, that treats such pictures."""
    part = getattr(processor, f"{kind}_processor", None) or getattr(
        processor, "image_processor", processor
    )
    needed = ["image_mean", "image_std"] if getattr(part, "do_normalize", True) else []
    needed += ["rescale_factor"] if getattr(part, "do_rescale", True) else []
    missing = [name for name in needed if not hasattr(part, name)]
    if missing:
        raise TypeError(
            f"processor is a {type(processor).__name__} without {', '.join(missing)}: expected "
            "the processor that made the inputs, as AutoProcessor.from_pretrained returns it"
        )
    return part


def _as_picture(pixels: Tensor, processing: Any) -> Image.Image:
    """Undoes a processor's normalisation of `[channel, height, width]`."""
    pixels = pixels.detach().float().cpu()
    if getattr(processing, "do_normalize", True):
        spread, middle = (
            torch.tensor(values, device="cpu").view(-1, 1, 1)
            for values in (processing.image_std, processing.image_mean)
        )
        pixels = pixels * spread + middle
    if getattr(processing, "do_rescale", True):
        pixels = pixels * (1 / processing.rescale_factor)
    return Image.fromarray(pixels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
