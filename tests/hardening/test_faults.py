"""Something fails inside a call, anywhere and in any way: nothing stays behind, all goes on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from families import inputs as family_inputs
from families.models import tiny
from models import CACHE, RESETS, batch, footprint, greedy, prompt, tiny_llava
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lightkv_gnn as lk

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]
STEPS = 3


ERRORS = [KeyboardInterrupt, torch.OutOfMemoryError]
"""Torch tells hooks of the second one only."""


class Fuse:
    """Lets calls pass until it is told to fail at one of those to come."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.error: type[BaseException] = KeyboardInterrupt

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise self.error("out of memory")


class Bench:
    """A model with a fuse in one place, and everything that has to do with it.

    Attributes:
        options: Of the configuration.
        compressor: Instead of the configuration's.
        asking: Options of ``generate``.
    """

    def __init__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        self.model, self.inputs = model, inputs
        self.fuse = Fuse()
        self.options: dict[str, Any] = {}
        self.compressor: lk.TokenCompressor | None = None
        self.asking: dict[str, Any] = {}
        self.undo = ExitStack()

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model

    def attached(self) -> lk.Handle:
        config = lk.LightKVConfig(STAGES, **self.options)
        return lk.attach(self.model, config, compressor=self.compressor)

    def answer(self, **options: Any) -> Tensor:
        return greedy(self.model, self.inputs, STEPS, **self.asking, **options)

    def before(self, module: nn.Module) -> None:
        self.undo.callback(module.register_forward_pre_hook(self.fuse).remove)

    def after(self, module: nn.Module) -> None:
        self.undo.callback(module.register_forward_hook(self.fuse).remove)


def first(fuse: Fuse, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, after the fuse."""

    def run(*args: Any, **kwargs: Any) -> Any:
        fuse()
        return function(*args, **kwargs)

    return run


def in_matcher(bench: Bench) -> None:
    def matcher(x: Tensor, partition: lk.graphs.WindowPartition) -> lk.graphs.Matching:
        bench.fuse()
        return lk.graphs.cosine_matching(x, partition)

    bench.options["matcher"] = matcher


def in_message(bench: Bench) -> None:
    bench.options["message"] = first(bench.fuse, lk.guided_mean)


def in_guidance(bench: Bench) -> None:
    bench.options["guidance"] = first(bench.fuse, lambda block: 1.0 + block.vision.float())


def in_compressor(bench: Bench) -> None:
    class Fused(lk.TokenCompressor):
        def __call__(self, *args: Any, **kwargs: Any) -> lk.Compressed:
            done = super().__call__(*args, **kwargs)
            bench.fuse()
            return done

    bench.compressor = Fused()


def in_tower(bench: Bench) -> None:
    bench.after(getattr(bench.model.model, "vision_tower", None) or bench.model.model.visual)


def in_head(bench: Bench) -> None:
    bench.before(bench.model.lm_head)


def before_layer(number: int) -> Callable[[Bench], None]:
    return lambda bench: bench.before(bench.decoder.layers[number])


def after_layer(number: int) -> Callable[[Bench], None]:
    return lambda bench: bench.after(bench.decoder.layers[number])


def before_attention(number: int) -> Callable[[Bench], None]:
    """Where entries are announced to the cache and not written yet."""
    return lambda bench: bench.before(bench.decoder.layers[number].self_attn)


def in_attention_function(bench: Bench) -> None:
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = first(bench.fuse, original)
    bench.undo.callback(ALL_ATTENTION_FUNCTIONS._local_mapping.pop, "sdpa")


def in_processor(bench: Bench) -> None:
    bench.asking["logits_processor"] = [first(bench.fuse, lambda ids, scores: scores)]


def in_criterion(bench: Bench) -> None:
    goes_on = first(bench.fuse, lambda ids, scores: torch.zeros(len(ids), dtype=torch.bool))
    bench.asking["stopping_criteria"] = [goes_on]


def in_streamer(bench: Bench) -> None:
    class Streamer:
        def put(self, value: Tensor) -> None:
            bench.fuse()

        def end(self) -> None: ...

    bench.asking["streamer"] = Streamer()


PLACES: dict[str, Callable[[Bench], None]] = {
    "matcher": in_matcher,
    "message": in_message,
    "guidance": in_guidance,
    "compressor": in_compressor,
    "tower": in_tower,
    "before layer 0": before_layer(0),
    "after layer 1": after_layer(1),
    "before layer 2": before_layer(2),
    "before the attention of layer 3": before_attention(3),
    "after layer 4": after_layer(4),
    "after layer 5": after_layer(5),
    "attention function": in_attention_function,
    "head": in_head,
    "logits processor": in_processor,
    "stopping criterion": in_criterion,
    "streamer": in_streamer,
}
STEPPING = [
    "before layer 0",
    "before the attention of layer 3",
    "after layer 5",
    "head",
    "logits processor",
    "stopping criterion",
    "streamer",
]
"""Places that steps pass too, once each."""


def llava(place: str) -> Bench:
    one = place in ("streamer",)  # takes one sample
    prompts = [prompt(4, "image", 6), prompt(2, "image", 3, "image", 4, seed=1)]
    return Bench(tiny_llava(), batch(*prompts[: 1 if one else 2]))


def qwen(place: str) -> Bench:
    model = tiny("qwen2_vl")
    sample = [2, family_inputs.PICTURES["qwen2_vl"][0], 3]
    return Bench(model, family_inputs.batch("qwen2_vl", model, sample))


def functions(model: nn.Module) -> list[Any]:
    """What the classes of a model's modules do when they are called."""
    return [getattr(type(m), name) for m in model.modules() for name in ("forward", "__call__")]


@contextmanager
def failing(bench: Bench, error: type[BaseException], calls: int) -> Iterator[None]:
    """The block fails by ``error``, when the fuse was passed ``calls`` times."""
    bench.fuse.left, bench.fuse.error = calls, error
    with pytest.raises(error):
        yield
    assert bench.fuse.left is None


def waiting(cache: DynamicCache) -> list[Any]:
    """Layers that were told of entries which never came."""
    return [layer for layer in cache.layers if getattr(layer, "_pending", None) is not None]


def check_recovery(bench: Bench, error: type[BaseException], calls: int = 0) -> None:
    """Fails at the first and at the second ``generate`` of a handle; between them all is well."""
    model = bench.model
    text = {"input_ids": torch.arange(3, 9)[None]}
    with bench.undo:
        plain, decoded = bench.answer(), bench.decoder(**text).last_hidden_state
        before, own = footprint(model), functions(model)
        with bench.attached() as handle:
            expected = bench.answer()
            assert len(handle.trace) == len(STAGES)
        with bench.attached() as handle:
            for decoder_first in (True, False):
                cache = DynamicCache()
                with failing(bench, error, calls):
                    bench.answer(**{CACHE: cache})
                if decoder_first:  # it runs nobody's prefill now, whatever was interrupted
                    assert torch.equal(bench.decoder(**text).last_hidden_state, decoded)
                assert torch.equal(bench.answer(), expected)
                assert not waiting(cache)
                assert len(handle.trace) == len(STAGES)
                if RESETS:
                    cache.reset()
                    assert torch.equal(bench.answer(**{CACHE: cache}), expected)
            cache = DynamicCache()
            with failing(bench, error, calls):
                bench.answer(**{CACHE: cache})
        assert not waiting(cache)
        assert footprint(model) == before
        assert functions(model) == own
        assert torch.equal(bench.answer(), plain)
        with bench.attached():
            assert torch.equal(bench.answer(), expected)
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping


@pytest.mark.each
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_after_a_fault(place: str, error: type[BaseException]) -> None:
    bench = llava(place)
    PLACES[place](bench)
    check_recovery(bench, error)


@pytest.mark.parametrize("place", STEPPING)
@torch.no_grad()
def test_after_a_fault_in_a_step(place: str) -> None:
    bench = llava(place)
    PLACES[place](bench)
    check_recovery(bench, KeyboardInterrupt, calls=1)


@pytest.mark.parametrize(
    "place", ["matcher", "tower", "before layer 2", "before the attention of layer 3", "head"]
)
@torch.no_grad()
def test_after_a_fault_in_another_family(place: str) -> None:
    bench = qwen(place)
    PLACES[place](bench)
    check_recovery(bench, KeyboardInterrupt)


@torch.no_grad()
def test_an_interrupted_prefill_keeps_nothing_alive() -> None:
    """Not even in an open context, once there is another call: caches fill devices."""
    bench, cache = llava(""), DynamicCache()
    gone = weakref.ref(cache)
    bench.before(bench.decoder.layers[4])
    with bench.undo, bench.attached():
        with failing(bench, KeyboardInterrupt, 0):
            bench.answer(**{CACHE: cache})
        del cache
        bench.decoder(input_ids=torch.arange(3, 9)[None])
        gc.collect()
        assert gone() is None
