"""What a call tells before it runs: whether it is a prefill with pictures, and a legal one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lightkv_gnn.adapters import Adapter, Encoded, VisionTokens
from lightkv_gnn.attention.masks import real_tokens
from lightkv_gnn.cache.layers import check_cache, mask_widths
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.seams import ModelCall
from lightkv_gnn.session.encoders import record_of, shape_of_pixels
from lightkv_gnn.session.placement import input_device


@dataclass(eq=False)
class PrefillRequest:
    """A prefill with pictures, before they are encoded.

    Attributes:
        masks: Of each kind that the call has pictures of, its placeholders, `[batch, token]` bool,
            on the CPU.
        real: Tokens that are not padding, `[batch, token]` bool, on the CPU.
        past: Logical tokens in the cache before the call.
        mask: The call's attention mask, as it was given.
        encoded: The pictures encoded so far, by kind.
        labels: What the model is to learn, `[batch, token]`, or None.
        scored: Whether logits of all tokens are asked for.
        ids: Token ids, `[batch, token]`; None where there are embeddings only.
    """

    masks: Mapping[str, Tensor]
    real: Tensor
    past: int
    mask: Any
    encoded: dict[str, Encoded]
    labels: Tensor | None = None
    scored: bool = False
    ids: Tensor | None = None

    def add(self, encoded: Encoded) -> None:
        """The call is about these pictures, which the model has just encoded."""
        self.encoded[encoded.kind] = encoded

    def tokens(self) -> VisionTokens:
        """What the adapter needs for a layout.

        Raises:
            UnsupportedInputError: The pictures passed by the model's encoders.
        """
        missing = sorted(set(self.masks) - set(self.encoded))
        if missing:
            raise UnsupportedInputError(
                f"the {missing[0]}s of this call did not pass through the encoder that the adapter "
                "names, so the shape of their token grids is unknown: override its encoders, to "
                "name the method of this model that encodes them"
            )
        return VisionTokens(self.masks, self.real, self.encoded)


def inspect_call(
    adapter: Adapter,
    asked: ModelCall,
    records: Mapping[str, Encoded | None] = MappingProxyType({}),
    headed: ModelCall | None = None,
) -> PrefillRequest | None:
    """The call as a prefill with pictures, or None if it is something else.

    Args:
        adapter: Of the model.
        asked: The call.
        records: Of pictures that were encoded before the call, by kind, where what the model was
            given does not carry them any more.
        headed: The same call as the model with a head got it.

    Raises:
        UnsupportedInputError: Something in it is not supported.
    """
    tokens = asked.tokens
    if tokens is None or tokens.shape[1] == 1:  # a step
        return None
    outputs, pixels = asked.encoded, adapter.pixels
    kinds = [
        kind
        for kind in adapter.placeholders
        if kind in outputs or asked.given.get(pixels[kind]) is not None
    ]
    masks = _placeholder_masks(adapter, asked.ids, tokens, kinds)
    _check_pictures_are_meant(adapter, asked, {*kinds} - {*outputs} - {*masks})
    if not masks:
        return None
    cache, past = asked.cache, 0
    if cache is not None:
        for number in range(adapter.layers):
            check_cache(cache, number)
        past = int(cache.get_seq_length())
    batch, length = next(iter(masks.values())).shape
    widths = mask_widths(cache, length)
    real = real_tokens(asked.mask, batch, length, past, widths)
    _check_one_prompt_per_row(asked, real)
    encoded = {
        kind: _record(adapter, kind, outputs[kind], records.get(kind))
        for kind in masks
        if kind in outputs
    }
    said = (None, False) if headed is None else (headed.labels, headed.scores_all)
    return PrefillRequest(masks, real, past, asked.mask, encoded, *said, asked.ids)


def begins_anew(asked: ModelCall) -> bool:
    """Whether a call is of several tokens, and none are in its cache."""
    tokens, cache = asked.tokens, asked.cache
    if tokens is None or tokens.shape[1] == 1:
        return False
    return cache is None or int(cache.get_seq_length()) == 0


def padding_of(asked: ModelCall) -> Tensor | None:
    """Padding of a call of several tokens, `[batch, token]` bool; None if it has none."""
    tokens, cache, mask = asked.tokens, asked.cache, asked.mask
    if tokens is None or tokens.shape[1] == 1 or cache is None or mask is None:
        return None
    batch, length = tokens.shape[:2]
    past = int(cache.get_seq_length())
    padding = ~real_tokens(mask, batch, length, past, mask_widths(cache, length))
    return padding if bool(padding.any()) else None


def _record(adapter: Adapter, kind: str, output: Any, noted: Encoded | None) -> Encoded:
    record = record_of(output) or noted
    if record is None:
        raise UnsupportedInputError(
            "the prompt is read in chunks (prefill_chunk_size), or mm_encoder_outputs holds "
            f"{kind}s that this model did not encode inside the context. Chunks would be "
            "compressed before all of the prompt is seen: leave prefill_chunk_size out, and pass "
            "pixel_values"
        )
    # Encoders may return empty entries, and generate repeats a sample's pictures for its beams.
    found = adapter.lengths(kind, output)
    then, now = ([n for n in lengths if n] for lengths in (record.lengths, found))
    repeats = len(now) // max(len(then), 1)
    same = now == then if repeats == 1 else sorted(now) == sorted(then * repeats)
    if sum(now) == sum(then * repeats) and not same:
        raise UnsupportedInputError(
            f"mm_encoder_outputs holds {kind}s of {now} tokens, but they were encoded as {then}: "
            "which of them is which is known only in the order of encoding; leave that as it is"
        )
    return record


def _placeholder_masks(
    adapter: Adapter, ids: Tensor | None, tokens: Tensor, kinds: list[str]
) -> dict[str, Tensor]:
    """Placeholders of each kind that has any; only of kinds with pictures.

    Without pictures, a placeholder among the token ids is a token like any other.

    Args:
        adapter: Of the model.
        ids: `[batch, token]`, or None where there are embeddings only.
        tokens: The ids, or the embeddings, `[batch, token, channel]`.
        kinds: Of the call's pictures.
    """
    if not kinds:
        if ids is None:
            warnings.warn(
                "lightkv_gnn: inputs_embeds without pixel_values do not tell where the vision "
                "tokens are, so this prefill is not compressed; pass input_ids",
                stacklevel=2,
            )
        return {}
    masks = {}
    for kind in kinds:
        placeholder = adapter.placeholders[kind]
        if ids is None:
            embedding = adapter.model.get_input_embeddings()
            own = embedding(torch.tensor(placeholder, device=tokens.device))
            masks[kind] = tokens.eq(own).all(-1).cpu()
        else:
            masks[kind] = tokens.eq(placeholder).cpu()
    return {kind: mask for kind, mask in masks.items() if bool(mask.any())}


def _check_pictures_are_meant(adapter: Adapter, asked: ModelCall, unplaced: set[str]) -> None:
    """Raises UnsupportedInputError for pictures of kinds that the prompt has no placeholder of."""
    for kind in sorted(unplaced):
        pixels = asked.given[adapter.pixels[kind]]
        if not isinstance(pixels, Tensor) or pixels.numel():
            raise UnsupportedInputError(
                f"the call has {adapter.pixels[kind]}, but its prompt has no token "
                f"{adapter.placeholders[kind]}, at which {type(adapter).__name__} puts {kind}s: "
                "pass the prompt that the processor returned with them, or override the "
                "adapter's placeholders"
            )


def _check_one_prompt_per_row(asked: ModelCall, real: Tensor) -> None:
    """Raises UnsupportedInputError for packed prompts."""
    if asked.packed:
        raise UnsupportedInputError(
            "several prompts are packed into one row (cu_seq_lens_q), as by continuous batching "
            "with a paged cache or a padding-free collator: compression needs one prompt per row; "
            "pass a padded batch"
        )
    if asked.positions is None:
        return
    position_ids = asked.positions.cpu()
    coordinates = position_ids.ndim == 3 and position_ids.shape[0] == 3
    if position_ids.ndim == 3:  # of M-RoPE: the text's own positions, or else time
        position_ids = position_ids[0]
    position_ids = position_ids.expand(real.shape[0], -1)
    before, now = position_ids[:, :-1], position_ids[:, 1:]
    falls = (now < before) & real[:, 1:] & real[:, :-1]
    if coordinates:  # time falls after a long video too, but not to where the row began
        first = position_ids.masked_fill(~real, int(position_ids.max())).amin(1, keepdim=True)
        falls &= now <= first
    if bool(falls.any()):
        raise UnsupportedInputError(
            "position_ids start anew within a row: several prompts are packed into it, but "
            "compression needs one prompt per row; pass a padded batch"
        )


def vision_tokens(adapter: Adapter, inputs: Mapping[str, Any]) -> VisionTokens:
    """The placeholders of a call, and its pictures as the model's encoders take them.

    Args:
        adapter: Of the model.
        inputs: What the processor returned.

    Raises:
        UnsupportedInputError: ``inputs`` has no pictures.
        TypeError: ``inputs`` is no mapping.
    """
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"inputs is a {type(inputs).__name__}: expected a mapping, as the processor returns it"
        )
    request = inspect_call(adapter, ModelCall(inputs))
    if request is None:
        raise UnsupportedInputError(
            f"there are no pictures in {sorted(inputs)}: pass everything that the processor returns"
        )
    for kind in request.masks:
        encode = getattr(adapter.base, adapter.encoders[kind])
        # Not every transformers names its encoders' image_sizes, or their pixels like the model's.
        known = {*inspect.signature(encode).parameters, "image_sizes"} - {*adapter.pixels.values()}
        placed = {name: _placed(value, adapter) for name, value in inputs.items()}
        arguments = {name: value for name, value in placed.items() if name in known}
        pixels = placed[adapter.pixels[kind]]
        with torch.no_grad():
            output = encode(pixels, **arguments)
        shape = shape_of_pixels({"pixel_values": pixels})
        request.add(Encoded(kind, arguments, adapter.lengths(kind, output), shape))
    return request.tokens()


def _placed(value: Any, adapter: Adapter) -> Any:
    if not isinstance(value, Tensor):
        return value
    model = adapter.model
    return value.to(input_device(model), model.dtype if value.is_floating_point() else None)
