"""Models and their processors, from folders, from the hub, or the bundled one."""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightkv_gnn import tiny
from lightkv_gnn.sources import TINY, check_source, loading

AUTO = "auto"
"""Every device there is: layers that do not fit on one go on the next."""


def load(
    source: str, device: str | None = None, dtype: str = "auto", attention: str | None = None
) -> tuple[Any, Any]:
    """A model and its processor.

    Args:
        source: A folder that ``save_pretrained`` wrote, a hub id, or "tiny" for the bundled model.
        device: A GPU if there is one, else the CPU, if not given; "auto" spreads a model over all
            GPUs, and what is left over the CPU's memory (needs accelerate).
        dtype: Of the weights, by name; "auto" is float32 on a CPU, else the checkpoint's.
        attention: Of transformers' attention implementations; the model's default if not given.

    Raises:
        ImportError: The processor needs a package that is not installed.
        OSError: There is no such model.
        ValueError: It is no model that answers questions about pictures, or accelerate is missing.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = not torch.cuda.is_available() if device == AUTO else torch.device(device).type == "cpu"
    if dtype == "auto" and on_cpu:
        dtype = "float32"
    if source == TINY and device != AUTO:
        model, processor = tiny.load(device)
        if attention:
            model.set_attn_implementation(attention)
        return model if dtype == "auto" else model.to(getattr(torch, dtype)), processor
    source = str(tiny.WEIGHTS) if source == TINY else source
    check_source(source)
    with loading(source):
        processor = AutoProcessor.from_pretrained(source)
    if sys.stderr.isatty():
        transformers.logging.enable_progress_bar()
    spread = {"device_map": AUTO} if device == AUTO else {}
    with loading(source):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, attn_implementation=attention, **spread
        )
    transformers.logging.disable_progress_bar()
    return (loaded if spread else loaded.to(device)).eval(), processor
