"""What is installed here, what of it works, and how to get what is missing.

Nothing that may be broken is imported before it is looked at.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightkv_gnn import __version__
from lightkv_gnn.commands.options import hush

REQUIRED = {
    "torch": "torch",
    "torch-geometric": "torch_geometric",
    "transformers": "transformers",
    "numpy": "numpy",
    "networkx": "networkx",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "tqdm": "tqdm",
    "typer": "typer",
    "filelock": "filelock",
}
"""Packages that nothing works without, and the modules they bring."""

OPTIONAL = {
    "matplotlib": ("matplotlib", "pictures", "pip install 'lightkv-gnn[draw]'"),
    "torch-scatter": (
        "torch_scatter",
        'scatter="torch_scatter"',
        "pip install --no-build-isolation torch-scatter",
    ),
    "triton": (
        "triton",
        'scatter="triton", on a GPU',
        "pip install 'lightkv-gnn[triton]'",
    ),
    "accelerate": (
        "accelerate",
        "several devices, and offloading",
        "pip install 'lightkv-gnn[devices]'",
    ),
    "lmms-eval": ("lmms_eval", "public benchmarks", "pip install 'lightkv-gnn[eval]'"),
    "pyarrow": ("pyarrow", "batches", "pip install 'lightkv-gnn[batch]'"),
    "ray": ("ray", "batches on several workers", "pip install 'lightkv-gnn[ray]'"),
    "torchvision": ("torchvision", "processors of some families, and of Pixtral", ""),
    "num2words": ("num2words", "SmolVLM's processor", "pip install num2words"),
    "flash-attn": (
        "flash_attn",
        'attn_implementation="flash_attention_2", on a GPU',
        "pip install --no-build-isolation flash-attn",
    ),
}
"""Packages that some parts need: their modules, what they are for, and how to get them."""

PROCESSOR_NEEDS = {
    **dict.fromkeys(
        ("llava_next_video", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"),
        ("torchvision",),
    ),
    "smolvlm": ("torchvision", "num2words"),
}
"""Optional packages without which the processor of a family does not load."""


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
        name: As pip knows it.
        version: None if it is not installed.
        problem: Why it cannot be imported, though it is installed.
        use: What it is for.
        get: The command that installs it.
    """

    name: str
    version: str | None
    problem: str | None
    use: str
    get: str

    @property
    def works(self) -> bool:
        """Whether it is installed, and can be imported."""
        return self.version is not None and self.problem is None


@dataclass(frozen=True)
class Family:
    """A model family with an adapter.

    Attributes:
        name: Its ``model_type``.
        known: Whether the installed transformers has it.
        missing: Packages that its processor needs.
    """

    name: str
    known: bool
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """Something that was tried on the bundled model.

    Attributes:
        works: Whether what the library relies on in transformers is there; or whether a compressed
            cache was as planned, and smaller.
        detail: What was found, or what went wrong.
    """

    works: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at; ``devices`` and ``families`` are empty without torch."""

    system: dict[str, str]
    required: tuple[Package, ...]
    optional: tuple[Package, ...]
    devices: tuple[str, ...]
    families: tuple[Family, ...]
    seams: Proof
    proof: Proof

    @property
    def works(self) -> bool:
        """Whether the basics do."""
        basics = all(package.works for package in self.required)
        return basics and self.seams.works and self.proof.works


def diagnose() -> Diagnosis:
    """Looks at everything, and compresses once."""
    required = [
        _package(name, module, "", f"pip install {name}") for name, module in REQUIRED.items()
    ]
    build = next(package.version for package in required if package.name == "torch")
    optional = [
        _package(name, module, use, get or torchvision_command(build))
        for name, (module, use, get) in OPTIONAL.items()
    ]
    system = {
        "lightkv-gnn": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    broken = [package.name for package in required if not package.works]
    if broken:
        proof = Proof(False, f"not tried without {', '.join(broken)}")
        return Diagnosis(system, tuple(required), tuple(optional), (), (), proof, proof)
    found = _devices(), _families(optional), _seams(), _prove()
    return Diagnosis(system, tuple(required), tuple(optional), *found)


def torchvision_command(torch_version: str | None) -> str:
    """How to get the torchvision that fits a torch: from the index that it came from."""
    _, _, build = (torch_version or "").partition("+")
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install torchvision{index}"


def _package(name: str, module: str, use: str, get: str) -> Package:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Package(name, None, None, use, get)
    try:
        import_module(module)
    except Exception as error:  # whatever a broken build raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Package(name, found, reason, use, get)
    return Package(name, found, None, use, get)


def _devices() -> tuple[str, ...]:
    import torch

    gpus = [
        f"cuda:{number} {torch.cuda.get_device_name(number)}, "
        f"{torch.cuda.get_device_properties(number).total_memory / 2**30:.0f} GiB"
        for number in range(torch.cuda.device_count())
    ]
    threads = torch.get_num_threads()
    return (f"cpu, {threads} thread{'s' if threads > 1 else ''}", *gpus)


def _families(optional: Sequence[Package]) -> tuple[Family, ...]:
    from transformers import CONFIG_MAPPING

    from lightkv_gnn.adapters import families

    there = {package.name for package in optional if package.works}
    return tuple(
        Family(
            name,
            name in CONFIG_MAPPING,
            tuple(need for need in PROCESSOR_NEEDS.get(name, ()) if need not in there),
        )
        for name in families()
    )


def _seams() -> Proof:
    """What is found of transformers' names, on the bundled model."""
    from lightkv_gnn import seams, tiny
    from lightkv_gnn.adapters import adapter_for

    hush()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a version never tested, which the detail tells
            seams.check_transformers()
        adapter = adapter_for(tiny.load()[0])
        (names,) = set(seams.names_of(adapter.decoder.layers))
        seams.check_attention(adapter.attention(0))
    except Exception as error:  # this is what a doctor is asked about
        return Proof(False, f"{type(error).__name__}: {error}")
    newer = ", which is newer" if seams.is_newer() else ""
    detail = f"{seams.tested()}{newer}; layers take {names.cache!r}, attention can be recorded"
    return Proof(True, detail)


def _prove() -> Proof:
    import numpy as np

    from lightkv_gnn import LightKVConfig, attach, tiny
    from lightkv_gnn.asking.answers import generate

    hush()
    try:
        model: Any
        model, processor = tiny.load()
        picture = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
        with attach(model, LightKVConfig.for_model(model)) as handle:
            generate(model, processor, picture, "list the objects .")
        totals = handle.ledger.totals()
    except Exception as error:  # this is what a doctor is asked about
        return Proof(False, f"{type(error).__name__}: {error}")
    planned, observed = totals["kv_bytes"], totals["kv_bytes_observed"]
    detail = f"retention {totals['retention']:.1%}, {totals['kv_ratio']:.1%} of KV"
    if not planned == observed < totals["kv_bytes_full"]:
        return Proof(False, f"{detail}; planned {planned} bytes of KV, observed {observed}")
    return Proof(True, detail)
