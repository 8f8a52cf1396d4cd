"""Engines of vLLM in one process, asked in turn: ``python -m lightkv_gnn.bench.engines IN OUT``.

Reads what :func:`lightkv_gnn.bench.serving.orders` writes.  All engines are started first, and take
turns in every round, so that a busy moment is shared.  Each request has a picture of its own, which
no cache knows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from lightkv_gnn.vllm import ARCHITECTURES
from lightkv_gnn.vllm.libraries import compressor_module

ALONE = 3
"""Requests of each round that are asked one by one."""


@dataclass
class Engine:
    """An engine, and what it was seen to do.

    Attributes:
        llm: vLLM's.
        rates: Requests a second, of each round.
        first: Seconds to the first token of each request that was asked alone.
        first_loaded: The same of each that was asked with all others.
        blocks: Most blocks that a request held when its prompt had been read.
        at_once: Most requests that ran at once.
        tokens: Of the longest prompt.
    """

    llm: Any
    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    first_loaded: list[float] = field(default_factory=list)
    blocks: int = 0
    at_once: int = 0
    tokens: int = 0

    def round(self, prompts: list[dict[str, Any]], answer: int) -> None:
        """Asks a few one by one, and then all others at once."""
        for prompt in prompts[:ALONE]:
            seconds, _ = self.ask([prompt], 1)
            self.first += seconds
        loaded, taken = self.ask(prompts[ALONE:], answer)
        self.first_loaded += loaded
        self.rates.append(len(loaded) / taken)

    def ask(self, prompts: list[dict[str, Any]], answer: int) -> tuple[list[float], float]:
        """Seconds to the first token of each request, and to the last of all."""
        from vllm import SamplingParams

        inner = self.llm.llm_engine
        params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True)
        first: dict[str, float] = {}
        began = time.perf_counter()
        for number, prompt in enumerate(prompts):
            inner.add_request(str(number), prompt, params)
        while inner.has_unfinished_requests():
            for output in inner.step():
                first.setdefault(output.request_id, time.perf_counter() - began)
                self.tokens = max(self.tokens, len(output.prompt_token_ids))
            self._look(inner.engine_core.engine_core.scheduler)
        return list(first.values()), time.perf_counter() - began

    def _look(self, scheduler: Any) -> None:
        self.at_once = max(self.at_once, len(scheduler.running))
        for request in scheduler.running:
            if request.num_output_tokens == 1:  # its prompt was read in this step
                held = scheduler.kv_cache_manager.get_block_ids(request.request_id)
                self.blocks = max(self.blocks, sum(map(len, held)))

    def told(self) -> dict[str, Any]:
        """What was seen, as plain values."""
        config = self.llm.llm_engine.vllm_config.cache_config
        return {
            "tokens": self.tokens,
            "blocks": self.blocks,
            "cache_blocks": config.num_gpu_blocks,
            "at_once": self.at_once,
            "rate": median(self.rates),
            "first": median(self.first),
            "first_loaded": median(self.first_loaded),
        }

    def forget(self) -> None:
        """Begins to count, after a round that warmed the engine up."""
        self.rates, self.first, self.first_loaded = [], [], []


def measure(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Starts the engines and asks them; they end with the process.

    Raises:
        ValueError: vLLM here runs on another device.
    """
    compressor_module()  # without numba, before an engine looks through what is loaded
    import vllm
    from vllm.platforms import current_platform

    if current_platform.device_type != asked["device"]:
        raise ValueError(
            f"--device {asked['device']}: the vLLM that is installed here runs on "
            f"{current_platform.device_type}: expected that"
        )
    (own, _) = ARCHITECTURES["LlavaForConditionalGeneration"]
    engines = []
    for settings in asked["settings"]:
        overrides = {} if settings is None else {"architectures": [own], "lightkv": settings}
        engines.append(Engine(vllm.LLM(**asked["options"], hf_overrides=overrides)))
    prompts = _prompts(asked["prompt"])
    for number in range(1 + asked["rounds"]):
        shown = [next(prompts) for _ in range(ALONE + asked["requests"])]
        for place in range(len(engines)):
            engine = engines[(number + place) % len(engines)]
            engine.round(shown, asked["answer"])
            if number == 0:
                engine.forget()
    found = [engine.told() for engine in engines]
    return {"vllm": vllm.__version__, "engines": found}


def _prompts(shape: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Random pictures, and random words behind them."""
    rng = np.random.default_rng(1)
    size = (shape["side"], shape["side"], 3)
    while True:
        pictures = [
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
            for _ in range(shape["pictures"])
        ]
        words = rng.integers(shape["image"] + 1, shape["vocabulary"], shape["words"]).tolist()
        tokens = [shape["image"]] * shape["pictures"] + words
        yield {"prompt_token_ids": tokens, "multi_modal_data": {"image": pictures}}


if __name__ == "__main__":
    orders, answer = map(Path, sys.argv[1:])
    found = measure(json.loads(orders.read_text(encoding="utf-8")))
    answer.write_text(json.dumps(found), encoding="utf-8")
