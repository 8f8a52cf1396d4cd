"""Models made ready to be asked: a layer that listens in front, and a folder to keep them in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

PREFIX = "model.language_model.layers."
_SILENT = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def with_listening_layer(model: Any, build: Callable[[int], Any]) -> Any:
    """The same model behind one more decoder layer, which listens and says nothing.

    A stage runs after a decoder layer and takes the prompt's guidance from that layer's attention.
    For closed forms to be exact, nothing may have moved between tokens by then; for guidance to
    mean something, the layer's attention must.  So the new layer 0 is a copy of what was the first
    layer, with output projections of zero: it asks what layer 1 is about to ask, and adds nothing
    to the residual stream.  No real model has such a layer: in one, what stands in a token after
    layer 0 has been mixed once, and guidance is one layer late.

    Args:
        model: A trained model.
        build: Makes one like it, with a number of decoder layers.
    """
    longer = build(model.config.text_config.num_hidden_layers + 1)
    moved = {}
    for name, weight in model.state_dict().items():
        if not name.startswith(PREFIX):
            moved[name] = weight
            continue
        number, part = name.removeprefix(PREFIX).split(".", 1)
        moved[f"{PREFIX}{int(number) + 1}.{part}"] = weight
        if number == "0":
            moved[f"{PREFIX}0.{part}"] = torch.zeros_like(weight) if part in _SILENT else weight
    longer.load_state_dict(moved)
    return longer


def save(model: Any, folder: Path) -> None:
    """Writes a model beside ``folder`` and renames it, so that the folder is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(scratch)
        scratch.chmod(0o755)
        os.rename(scratch, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same weights
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
