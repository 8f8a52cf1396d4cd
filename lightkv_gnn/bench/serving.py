"""vLLM with fewer tokens per picture beside vLLM as it is, on the same settings in one run.

An engine wants a process in which nothing was imported that it does not expect, and tells much of
what it does; it gets one, :mod:`lightkv_gnn.bench.engines`.  This makes a checkpoint for it, whose
weights vLLM fills in by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from lightkv_gnn.bench.shapes import IMAGE_TOKEN, PATCH, TEXT, VOCABULARY, Shape, config_of
from lightkv_gnn.vllm.serving import check_installed
from lightkv_gnn.vllm.settings import Settings

BLOCK = 32
"""Tokens of a block of keys and values; vLLM's attention on a CPU takes no fewer."""


@dataclass(frozen=True)
class ServeCase:
    """What is asked of each engine.

    Attributes:
        name: Of the decoder's shape.
        shape: Of the decoder, and of what each request shows.
        retentions: Shares of a picture's tokens, one engine for each; and one that keeps all.
        requests: That come at once.
        answer: Tokens of each answer, 2 or more.
        memory: Bytes of keys and values; if not given, for a third of the requests uncompressed.
        dtype: Of weights, keys and values.
        device: "cpu" or "cuda".
        rounds: Of all requests, that count.
    """

    name: str
    shape: Shape
    retentions: Sequence[float] = (0.5, 0.25)
    requests: int = 24
    answer: int = 16
    memory: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    rounds: int = 3
    settings: list[Settings] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", [Settings(share) for share in self.retentions])
        for name, least in (("requests", 1), ("answer", 2), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: expected {least} or more")
        if self.cache_bytes < self.block_bytes * (self.blocks(None) + 1):
            raise ValueError(
                f"memory is {self.cache_bytes} bytes: expected "
                f"{self.block_bytes * (self.blocks(None) + 1)} or more, for one request"
            )

    def prompt(self, settings: Settings | None) -> int:
        """Tokens of a prompt, as planned."""
        from lightkv_gnn.vllm.plan import plan_picture

        side = self.shape.side
        kept = side**2 if settings is None else plan_picture(settings, (side, side)).kept
        return self.shape.pictures * kept + TEXT

    def blocks(self, settings: Settings | None, answer: int | None = None) -> int:
        """Blocks of a request, as planned, with all of its answer that is kept, or some of it."""
        more = self.answer - 1 if answer is None else answer
        return -(-(self.prompt(settings) + more) // BLOCK)

    @property
    def block_bytes(self) -> int:
        """Keys and values of one block in all layers."""
        shape = self.shape
        width = {"float32": 4}.get(self.dtype, 2) * shape.channels // shape.heads
        return 2 * shape.layers * shape.kv_heads * width * BLOCK

    @property
    def cache_bytes(self) -> int:
        """Of all keys and values; a block of vLLM's own stays empty."""
        if self.memory is not None:
            return self.memory
        return self.block_bytes * (max(1, self.requests // 3) * self.blocks(None) + 1)


@dataclass(frozen=True)
class ServeRow:
    """One engine beside the one that keeps all tokens.

    Attributes:
        shape: Name of the decoder's.
        vllm: Its version.
        retention: Share of each picture's tokens that the decoder gets; 1 is vLLM as it is.
        tokens: Of each prompt.
        planned_blocks: Blocks of keys and values of each prompt, as planned.
        blocks: As the engine held.
        fits: Requests, with their answers, that the cache holds.
        at_once: Most that ran at once.
        requests_per_second: Of all requests, asked at once; median of the rounds.
        rate_ratio: Of the uncompressed engine's.
        first_token: Seconds to the first token of a request alone; median.
        first_ratio: Of the uncompressed engine's.
        first_token_loaded: Seconds to the first token, all requests asked at once; median.
        loaded_ratio: Of the uncompressed engine's.
    """

    shape: str
    vllm: str
    retention: float
    tokens: int
    planned_blocks: int
    blocks: int
    fits: int
    at_once: int
    requests_per_second: float
    rate_ratio: float
    first_token: float
    first_ratio: float
    first_token_loaded: float
    loaded_ratio: float


def compare_serving(case: ServeCase, threads: int = 1) -> Iterator[ServeRow]:
    """One row for vLLM as it is, and one for each retention.

    Raises:
        ImportError: There is no vLLM that compresses here.
        RuntimeError: The process with the engines failed; its last lines are told.
    """
    check_installed()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(case.shape, folder)
        found = _in_a_process(folder, case, threads)
    yield from rows_of(case, found)


def rows_of(case: ServeCase, found: Mapping[str, Any]) -> Iterator[ServeRow]:
    """Rows of what the engines were seen to do."""
    full = found["engines"][0]
    for settings, one in zip((None, *case.settings), found["engines"], strict=True):
        yield ServeRow(
            shape=case.name,
            vllm=found["vllm"],
            retention=1.0 if settings is None else settings.retention,
            tokens=one["tokens"],
            planned_blocks=case.blocks(settings, 0),
            blocks=one["blocks"],
            fits=(one["cache_blocks"] - 1) // case.blocks(settings),
            at_once=one["at_once"],
            requests_per_second=one["rate"],
            rate_ratio=one["rate"] / full["rate"],
            first_token=one["first"],
            first_ratio=one["first"] / full["first"],
            first_token_loaded=one["first_loaded"],
            loaded_ratio=one["first_loaded"] / full["first_loaded"],
        )


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """A configuration and a processor, without weights."""
    config = config_of(shape)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    names = ["<pad>", "<s>", "</s>", "<image>"]
    assert names.index("<image>") == IMAGE_TOKEN
    names += [f"w{number}" for number in range(len(names), VOCABULARY)]
    words = WordLevel({name: number for number, name in enumerate(names)}, unk_token="<pad>")
    side = {"height": shape.side * PATCH, "width": shape.side * PATCH}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(words),
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens={"image_token": "<image>"},
        ),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def orders(folder: Path, case: ServeCase) -> dict[str, Any]:
    """What the process with the engines is told, as plain values."""
    options = {
        "model": str(folder),
        "load_format": "dummy",
        "dtype": case.dtype,
        "seed": 0,
        "block_size": BLOCK,
        "kv_cache_memory_bytes": case.cache_bytes,
        "max_model_len": case.prompt(None) + case.answer,
        "max_num_seqs": case.requests,
        "limit_mm_per_prompt": {"image": case.shape.pictures},
        "enforce_eager": case.device == "cpu",
        "gpu_memory_utilization": 0.25,  # of each; the caches are given in bytes
    }
    return {
        "options": options,
        "settings": [None, *(settings.to_dict() for settings in case.settings)],
        "prompt": {
            "pictures": case.shape.pictures,
            "side": case.shape.side * PATCH,
            "image": IMAGE_TOKEN,
            "words": TEXT,
            "vocabulary": VOCABULARY,
        },
        **{name: getattr(case, name) for name in ("device", "requests", "answer", "rounds")},
    }


def _in_a_process(folder: Path, case: ServeCase, threads: int) -> dict[str, Any]:
    asked, answered, told = folder / "asked.json", folder / "found.json", folder / "log"
    asked.write_text(json.dumps(orders(folder, case)), encoding="utf-8")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it goes before the bytes that are asked for
    command = [sys.executable, "-m", "lightkv_gnn.bench.engines", str(asked), str(answered)]
    with told.open("w", encoding="utf-8") as log:
        ended = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    if ended.returncode:
        lines = told.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RuntimeError("vLLM ended with an error:\n" + "\n".join(lines[-20:]))
    found: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    return found
