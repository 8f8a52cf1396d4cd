"""Engines in this process, one for each way to start it, and transformers beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Read when vLLM is imported.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from asking import Engine, Reference, start
from tiny_models import convert_tiny

from lightkv_gnn import tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled tiny LLaVA as vLLM takes it."""
    return convert_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def closing() -> Iterator[list[Engine]]:
    """Engines to close when all tests have run: one that closes takes the others' groups along."""
    engines: list[Engine] = []
    yield engines
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def engines(checkpoint: Path, closing: list[Engine]) -> Any:
    """Starts an engine of given settings once: ``engines({"retention": 0.25}, **options)``."""
    started: dict[str, Engine] = {}

    def of(lightkv: Mapping[str, Any] | None = None, **options: Any) -> Engine:
        key = repr((lightkv, sorted(options.items())))
        if key not in started:
            started[key] = start(checkpoint, lightkv, **options)
            closing.append(started[key])
        return started[key]

    return of


@pytest.fixture(scope="session")
def reference() -> Reference:
    """transformers, on the same merged embeddings."""
    return Reference(*tiny.load())


@pytest.fixture(scope="session")
def questions() -> list[tuple[Image.Image, str]]:
    """Twelve pictures, each with a prompt of a kind that the model has learnt."""
    rng = np.random.default_rng(7)
    asked = []
    for number in range(12):
        scene = tiny.sample_scene(rng)
        group = ("vqa", "hallucination", "captioning")[number % 3]
        question = tiny.ask(scene, group, rng)
        asked.append((tiny.render(scene), tiny.format_prompt(question.prompt_text)))
    return asked
