"""What compression would save: a model's configuration and sizes of pictures, no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText

from lightkv_gnn.adapters import (
    Adapter,
    AdapterChoice,
    Encoded,
    VisionTokens,
    adapter_for,
    families,
    no_adapter,
)
from lightkv_gnn.config import LightKVConfig
from lightkv_gnn.costs.ledger import LayerCost, Ledger
from lightkv_gnn.costs.schedule import Stage
from lightkv_gnn.errors import UnsupportedInputError
from lightkv_gnn.planning.prefill import plan_prefill
from lightkv_gnn.sources import check_source, loading
from lightkv_graphs import Grid, TokenLayout


@dataclass(frozen=True)
class Memory:
    """Bytes of a prefill, as far as they can be told.

    Attributes:
        weights: Of the whole model.
        vision_kv: Keys and values of vision tokens, all layers.
        text_kv: Keys and values of text, all layers.
        hidden_states: Of the first decoder layer, which sees every token.  What attention and
            feed-forward layers take while they compute depends on their kernels; it is not here.
    """

    weights: int
    vision_kv: int
    text_kv: int
    hidden_states: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.vision_kv + self.text_kv + self.hidden_states


@dataclass(frozen=True)
class Forecast:
    """A prefill that has not run.

    Attributes:
        model: The model's class.
        config: How it compresses.
        pictures: Vision tokens of each picture of a sample.
        ledger: What every layer will cost, for the whole batch.
        full: Memory without compression.
        light: Memory with it.
    """

    model: str
    config: LightKVConfig
    pictures: tuple[int, ...]
    ledger: Ledger
    full: Memory
    light: Memory


def forecast(
    source: str,
    sizes: Sequence[Grid],
    *,
    text: int = 64,
    retention: float = 0.55,
    stages: Sequence[Stage] = (),
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    adapter: AdapterChoice = None,
) -> Forecast:
    """Plans a prefill of pictures, and text after them.

    Args:
        source: A hub id, a folder, or a config.json; of a folder or hub id, the image processor is
            read too where the family's configuration does not tell the grid.
        sizes: (height, width) of each picture of a sample, in pixels.
        text: Tokens of a sample that are no vision tokens.
        retention: Vision tokens to hold, averaged over the layers, where there are no ``stages``.
        stages: A schedule written out.
        batch: Samples, all alike.
        dtype: Of weights and cache.
        adapter: As for :func:`lightkv_gnn.attach`.

    Raises:
        ImportError: The image processor needs a package that is not installed.
        OSError: There is no such configuration.
        ScheduleError: Layers and windows that the model does not have.
        UnsupportedInputError: The configuration does not tell the grid, nor does a processor.
        UnsupportedModelError: No adapter for this family.
        ValueError: Numbers out of range.
    """
    for name, value, least in (("batch", batch, 1), ("text", text, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}: expected {least} or more")
    if not sizes:
        raise ValueError("no pictures: give the size of one at least")
    model = on_meta(source, dtype, adapter)
    chosen = adapter_for(model, adapter)
    config = LightKVConfig.for_model(model, retention, stages=stages or None, adapter=chosen)
    pictures = [
        chosen.expected(size, len(sizes), partial(_process, source, size)) for size in sizes
    ]
    ledger = plan_prefill(
        model,
        config,
        _prompt(pictures, text, batch),
        adapter=chosen,
        bytes_per_value=dtype.itemsize,
    )
    weights = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    hidden = chosen.decoder.config.hidden_size * dtype.itemsize * ledger.rows[0].full.tokens
    full, light = (
        Memory(weights, *_shares(chosen, costs, text * batch, dtype), hidden)
        for costs in ([row.full for row in ledger.rows], [row.planned for row in ledger.rows])
    )
    counts = tuple(sum(encoded.lengths) for encoded in pictures)
    return Forecast(type(model).__name__, config, counts, ledger, full, light)


def picture_layout(
    source: str, size: Grid, dtype: torch.dtype = torch.bfloat16
) -> tuple[TokenLayout, int]:
    """Where the vision tokens of one picture lie, and the bytes of a token's keys and values.

    Args:
        source: As :func:`forecast` takes it.
        size: (height, width) of the picture, in pixels.
        dtype: Of the cache.

    Raises:
        ImportError: The image processor needs a package that is not installed.
        OSError: There is no such configuration.
        UnsupportedInputError: The configuration does not tell the grid, nor does a processor.
        UnsupportedModelError: No adapter for this family.
    """
    adapter = adapter_for(on_meta(source, dtype))
    encoded = adapter.expected(size, 1, partial(_process, source, size))
    sizes = (adapter.decoder_size(dtype.itemsize, layer) for layer in range(adapter.layers))
    return adapter.layout(_prompt([encoded], 0, 1)), sum(size.entry_bytes for size in sizes)


def on_meta(source: str, dtype: torch.dtype, adapter: AdapterChoice = None) -> Any:
    """The model of a configuration, on the meta device, which holds no numbers.

    Raises:
        OSError: There is no such configuration.
        UnsupportedModelError: No adapter for this family.
    """
    check_source(source)
    with loading(source):
        config = AutoConfig.from_pretrained(source)
    if adapter is None and config.model_type not in families():
        raise no_adapter(source, config, example=False)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype)


def _process(source: str, size: Grid, **options: Any) -> Mapping[str, Any]:
    """What the image processor beside a configuration makes of a blank picture."""
    place = Path(source).parent if Path(source).is_file() else source
    try:
        processor = AutoImageProcessor.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise UnsupportedInputError(
            f"the configuration of {source} does not tell how pictures are scaled or cut, and no "
            "image processor is beside it: add its preprocessor_config.json (or "
            "processor_config.json) to the folder"
        ) from error
    height, width = size
    processed: Mapping[str, Any] = processor(
        Image.new("RGB", (width, height), "white"), return_tensors="pt", **options
    )
    return processed


def _prompt(pictures: Sequence[Encoded], text: int, batch: int) -> VisionTokens:
    """The pictures of each sample, then its text."""
    lengths = [length for encoded in pictures for length in encoded.lengths]
    arguments = {
        name: [row for encoded in pictures for row in encoded.arguments[name]] * batch
        for name in pictures[0].arguments
    }
    mask = (torch.arange(sum(lengths) + text, device="cpu") < sum(lengths)).repeat(batch, 1)
    kind = pictures[0].kind
    shapes = [encoded.shape for encoded in pictures]
    shape = (sum(shape[0] for shape in shapes) * batch, *shapes[0][1:]) if all(shapes) else ()
    encoded = Encoded(kind, arguments, tuple(lengths * batch), shape)
    return VisionTokens({kind: mask}, torch.ones_like(mask), {kind: encoded})


def _shares(
    adapter: Adapter, costs: Sequence[LayerCost], text: int, dtype: torch.dtype
) -> tuple[int, int]:
    """Bytes of keys and values, of vision tokens and of text, which sliding windows forget last."""
    each = [adapter.decoder_size(dtype.itemsize, layer).entry_bytes for layer in range(len(costs))]
    of_text = [min(cost.kv_bytes, text * own) for cost, own in zip(costs, each, strict=True)]
    return sum(cost.kv_bytes for cost in costs) - sum(of_text), sum(of_text)
