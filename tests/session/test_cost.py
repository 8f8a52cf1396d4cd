"""What compression must not cost: a matrix of tokens by tokens, or waiting for the device.

Both are observed at torch's operators, so that they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import CACHE, batch, prompt, tiny_llava
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightkv_gnn as lk
from lightkv_gnn.stage import guidance as guidance_module

# --- memory ---------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Remembers the most bytes that one result lies in; views count as what they look into."""

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


def prefill_under(model: torch.nn.Module, config: Any, inputs: Any, mode: Any) -> lk.Handle | None:
    """A prefill with ``mode`` on from before layer 0's hooks to after the decoder's."""
    decoder = model.model.language_model
    handle = None
    first = decoder.layers[0].register_forward_pre_hook(lambda *_: _enter(mode))
    try:
        if config is not None:
            handle = lk.attach(model, config)
        last = decoder.register_forward_hook(lambda *_: _leave(mode), always_call=True)
        try:
            model(**inputs)
        finally:
            last.remove()
    finally:
        first.remove()
        if handle is not None:
            handle.remove()
    return handle


def _enter(mode: Any) -> None:
    mode.__enter__()


def _leave(mode: Any) -> None:
    mode.__exit__(None, None, None)


SIDE, TEXT = 32, 180
LENGTH = SIDE * SIDE + TEXT
SQUARE = 4 * LENGTH * LENGTH
"""Bytes of one head's logits between all tokens; four heads have four times as many."""

LARGE = lk.LightKVConfig([lk.Stage(0, 4, 0.5), lk.Stage(2, 2, 0.5), lk.Stage(4, 1, 0.5)])


def large(attention: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    model = tiny_llava(attention="sdpa", side=SIDE)
    model.model.language_model.set_attn_implementation(attention)
    return model, batch(prompt(20, "image", TEXT - 20, side=SIDE), side=SIDE)


@pytest.mark.parametrize("kind", ["vision_to_text", "text_to_vision", "last_token", "none"])
@torch.no_grad()
def test_no_matrix_of_tokens_by_tokens(kind: str) -> None:
    """The largest tensor is guidance's, heads x vision x text, or the layers' own."""
    model, inputs = large("sdpa")
    config = lk.LightKVConfig(LARGE.stages, guidance=kind)
    plain = Largest()
    prefill_under(model, None, inputs, plain)
    largest = Largest()
    handle = prefill_under(model, config, inputs, largest)
    assert handle is not None
    assert repr(handle.trace).startswith("MergeTrace(vision tokens 1024 -> 512 -> 256 -> 128")
    block = 4 * SIDE * SIDE * TEXT * 4 if kind in ("vision_to_text", "text_to_vision") else 0
    assert largest.bytes == max(plain.bytes, block)
    assert largest.bytes < 4 * SQUARE / 7


@torch.no_grad()
def test_long_texts_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = large("sdpa")
    monkeypatch.setattr(guidance_module, "CHUNK", 2**17)
    largest = Largest()
    prefill_under(model, LARGE, inputs, largest)
    shares = 4 * SIDE * SIDE * TEXT
    assert largest.bytes == shares  # by text token, without heads


@torch.no_grad()
def test_eager_attention_does_make_that_matrix() -> None:
    """The check above can fail."""
    model, inputs = large("eager")
    largest = Largest()
    prefill_under(model, LARGE, inputs, largest)
    assert largest.bytes == 4 * SQUARE


# --- waiting --------------------------------------------------------------------------------------


class WaitError(AssertionError):
    """The host would have waited for the device here."""


WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "is_nonzero",
    "equal",
    "bincount",
    "repeat_interleave",
)

WAITING_METHODS = tuple(
    getattr(torch.Tensor, name)
    for name in (
        *("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"),
        *("nonzero", "unique", "equal"),
    )
)


class NoWaiting(TorchDispatchMode):
    """Raises at operators whose result, or its shape, the host has to read.

    Indexing by a mask is one of them.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING and "output_size" not in (kwargs or {}):
            raise WaitError(f"{func} in a stage")
        if name in ("index", "index_put", "index_put_"):
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    raise WaitError(f"{func} by a mask in a stage")
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    """Raises at methods that copy to the host, which are no operators on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in WAITING_METHODS:
            raise WaitError(f"{func.__name__} in a stage")
        return func(*args, **(kwargs or {}))


class NoHost:
    """Both of them."""

    def __enter__(self) -> None:
        self.modes = [NoWaiting(), NoReading()]
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)


RAGGED = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1), prompt(9, seed=2)]
STAGES = [lk.Stage(0, 2, 0.25), lk.Stage(2, 2, 0.5), lk.Stage(4, 1, 0.5)]


@pytest.mark.parametrize(("attention", "positions"), [("eager", "reindex"), ("sdpa", "preserve")])
@pytest.mark.parametrize(
    "matcher", [lk.graphs.cosine_matching, lk.graphs.random_matching, lk.graphs.stride_matching]
)
@torch.no_grad()
def test_stages_never_wait_for_the_device(matcher: Any, positions: str, attention: str) -> None:
    model = tiny_llava(attention=attention)
    config = lk.LightKVConfig(STAGES, matcher=matcher, positions=positions)
    for inputs in (batch(*RAGGED), batch(*RAGGED, padding="right"), batch(*RAGGED[:1])):
        handle = prefill_under(model, config, inputs, NoHost())
        assert handle is not None
        assert len(handle.trace) == 3


@pytest.mark.parametrize("kind", ["text_to_vision", "last_token", "none"])
@pytest.mark.parametrize("message", [lk.mean, lk.mass_mean, lk.destination_only])
@torch.no_grad()
def test_no_guidance_and_no_message_waits(kind: str, message: Any) -> None:
    model = tiny_llava(vision_feature_select_strategy="full")
    inputs = batch(prompt(4, "image", 6, extra=1), prompt(8))
    config = lk.LightKVConfig(STAGES, guidance=kind, rotary=False, message=message)
    prefill_under(model, config, inputs, NoHost())


@torch.no_grad()
def test_windows_of_unknown_size_do_not_wait() -> None:
    """Three windows per side after two: who survived where depends on the data."""
    model = tiny_llava(side=6)
    inputs = batch(prompt(4, "image", 6, side=6), prompt(2, "image", 2, side=6), side=6)
    config = lk.LightKVConfig([lk.Stage(0, 2, 0.5), lk.Stage(2, 3, 0.5)])
    prefill_under(model, config, inputs, NoHost())


@torch.no_grad()
def test_steps_and_turns_never_wait_for_the_device() -> None:
    model, inputs = tiny_llava(attention="eager"), batch(*RAGGED)
    ones = torch.ones(3, 1, dtype=torch.int64)
    with lk.attach(model, lk.LightKVConfig(STAGES, positions="reindex")):
        cache = model(**inputs)[CACHE]
        for more in (1, 3):
            new = ones.expand(-1, more)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], new], 1)
            call = {"input_ids": 9 * new, "attention_mask": inputs["attention_mask"]}
            mode, decoder = NoHost(), model.model.language_model
            hooks = [
                decoder.layers[0].register_forward_pre_hook(
                    lambda *_, mode=mode: _enter(mode), prepend=True
                ),
                decoder.register_forward_hook(lambda *_, mode=mode: _leave(mode)),
            ]
            model(**call, **{CACHE: cache})
            for hook in hooks:
                hook.remove()


WAITS: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x[0].tolist(),
    "cpu": lambda x: x.cpu(),
    "mask": lambda x: x[x[:, 0] > 0],
    "nonzero": lambda x: (x > 0).nonzero(),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeats": lambda x: x.repeat_interleave(torch.ones(len(x), dtype=torch.int64), 0),
}


@pytest.mark.parametrize("wait", WAITS)
@torch.no_grad()
def test_waiting_would_be_noticed(wait: str) -> None:
    def matcher(x: torch.Tensor, partition: lk.graphs.WindowPartition) -> lk.graphs.Matching:
        WAITS[wait](x)
        return lk.graphs.cosine_matching(x, partition)

    model, inputs = tiny_llava(), batch(*RAGGED)
    config = lk.LightKVConfig(STAGES, matcher=matcher)
    with pytest.raises(WaitError):
        prefill_under(model, config, inputs, NoHost())
    with lk.attach(model, config):
        model(**inputs)
