"""The pictures of a call: what a model encoded, and which vision tokens they became."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.errors import ImageTokensError, UnsupportedInputError
from lightkv_graphs import Tile


@dataclass(frozen=True, eq=False)
class Encoded:
    """Pictures of one kind, as a model encoded them.

    Attributes:
        kind: "image" or "video".
        arguments: What the model's encoder was called with, by name.
        lengths: Vision tokens of each entry of the encoder's output, in the order of the call: of
            a picture, or where the family has it so, of a tile or of all pictures of a sample.
        shape: Of the pixels that they were encoded from; empty where it is not known.
    """

    kind: str
    arguments: Mapping[str, Any]
    lengths: tuple[int, ...]
    shape: tuple[int, ...] = ()

    def sizes(self, name: str) -> list[tuple[int, ...]]:
        """An argument with a row or a number per picture, such as ``image_sizes``, on the host.

        Raises:
            UnsupportedInputError: The encoder was called without it.
        """
        value = self.arguments.get(name)
        if value is None:
            raise UnsupportedInputError(
                f"the {self.kind}s were encoded without {name}, so the shape of their token grids "
                "is unknown: pass everything that the processor returns"
            )
        return [tuple(torch.as_tensor(row, device="cpu").flatten().tolist()) for row in value]

    def crops(self) -> list[int]:
        """Of each picture, how many crops it has beside the whole; none where that is not told."""
        counts = self.arguments.get("num_local_patches")
        return [0] * len(self.lengths) if counts is None else [int(count) for count in counts]


@dataclass(frozen=True, eq=False)
class VisionTokens:
    """The placeholders of a call.

    Attributes:
        masks: Of each kind that the call has pictures of, where its placeholders lie,
            `[batch, token]` bool, on the CPU.
        real: Tokens that are not padding, `[batch, token]` bool, on the CPU.
        encoded: The pictures, by kind.
    """

    masks: Mapping[str, Tensor]
    real: Tensor
    encoded: Mapping[str, Encoded]

    @property
    def mask(self) -> Tensor:
        """Where vision tokens lie, `[batch, token]`."""
        return torch.stack([*self.masks.values()]).any(0) & self.real


def whole_patches(pixels: Tensor, patch: int) -> Tensor:
    """Pixels that patches lie on: `[..., height, width]` without a rest at the bottom and right."""
    height, width = (size // patch * patch for size in pixels.shape[-2:])
    return pixels[..., :height, :width]


def tiles_of_samples(
    tokens: VisionTokens, tiles: Mapping[str, Sequence[Sequence[Tile]]]
) -> list[list[Tile]]:
    """Shares the pictures out over the samples, in the order of their placeholders.

    ``generate`` may have repeated every sample, for beams; its pictures are repeated with it.

    Args:
        tokens: The placeholders.
        tiles: Of each kind, the tiles of each entry of ``lengths``, which they add up to.

    Returns:
        The tiles of each sample.

    Raises:
        ImageTokensError: Placeholders and pictures do not fit each other.
    """
    repeats = {kind: _repeats(mask, tokens.encoded[kind]) for kind, mask in tokens.masks.items()}
    batch = tokens.real.shape[0]
    waiting = {
        kind: _once_per_repeat(kind, tiles[kind], tokens.masks[kind], repeat)
        for kind, repeat in repeats.items()
    }
    return [_of_sample(sample, tokens, waiting) for sample in range(batch)]


def _repeats(mask: Tensor, encoded: Encoded) -> int:
    of_sample = mask.sum(1)
    placeholders, features = int(of_sample.sum()), sum(encoded.lengths)
    repeat, rest = divmod(placeholders, max(features, 1))
    whole = repeat > 0 and not rest and len(of_sample) % repeat == 0
    if not whole or bool(of_sample.view(-1, repeat).diff().any()):
        raise ImageTokensError(
            f"the prompts hold {placeholders} {encoded.kind} placeholders, but the {encoded.kind}s "
            f"were encoded to {features} tokens: a picture was cut off, as by truncation, or is "
            "one too many; pass whole prompts, with a longer max_length"
        )
    return repeat


def _once_per_repeat(
    kind: str, tiles: Sequence[Sequence[Tile]], mask: Tensor, repeat: int
) -> Iterator[Tile]:
    """The tiles as the repeated samples take them, one after the other."""
    pictures = iter(tiles)
    for sample in range(0, mask.shape[0], repeat):
        placeholders = int(mask[sample].sum())
        own: list[Tile] = []
        while sum(tile.tokens for tile in own) < placeholders:
            own += next(pictures)
        tokens = sum(tile.tokens for tile in own)
        if tokens > placeholders:
            raise ImageTokensError(
                f"sample {sample} holds {placeholders} {kind} placeholders, but its {kind}s were "
                f"encoded to {tokens} tokens: one was cut off, as by truncation; pass whole prompts"
            )
        yield from own * repeat


def _of_sample(
    sample: int, tokens: VisionTokens, waiting: Mapping[str, Iterator[Tile]]
) -> list[Tile]:
    """A sample's tiles; those whose placeholders are masked out as padding are left out."""
    order = torch.stack([mask[sample] for mask in tokens.masks.values()]).int()
    places = order.any(0).nonzero()[:, 0]
    kind_of = order.argmax(0)[places].tolist()
    real = tokens.real[sample, places].tolist()
    kinds = list(tokens.masks)
    found: list[Tile] = []
    start = 0
    while start < len(kind_of):
        kind = kind_of[start]
        tile = next(waiting[kinds[kind]])
        stop = start + tile.tokens
        if set(kind_of[start:stop]) != {kind} or len(set(real[start:stop])) > 1:
            raise ImageTokensError(
                f"sample {sample} holds {kinds[kind]} placeholders of which only some of a tile's "
                f"{tile.tokens} follow each other without padding: a picture was cut off, as by "
                "truncation or padding; pass whole prompts, with a longer max_length"
            )
        if real[start]:
            found.append(tile)
        start = stop
    return found
