"""Run once in each process of a tensor-parallel model: writes down what a test compares.

``rank_worker.py FOLDER`` loads the models that :mod:`test_ranks` saved in FOLDER, split
over the processes and in one piece, and leaves ``whole.pt`` and one ``rank-N.pt`` there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForImageTextToText
from transformers.distributed import DistributedConfig

import lightkv_gnn as lk
from lightkv_gnn.seams import cache_in

STAGES = [lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.5)]


def most_attended(block: lk.guidance.GuidanceBlock) -> torch.Tensor:
    """No sum over heads: each process alone would find another maximum."""
    logits = lk.guidance.attention_logits(block.vision_query, block.text_key, block.scaling)
    return logits.amax(dim=(1, 3)).exp()


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "text to vision": ("llava", {}, {}),
    "vision to text": ("llava", {"guidance": "vision_to_text"}, {}),
    "last token": ("llava", {"guidance": "last_token"}, {}),
    "own guidance": ("llava", {"guidance": most_attended}, {}),
    "no positions": ("llava", {"rotary": False}, {}),
    "no guidance": ("llava", {"guidance": "none"}, {}),
    "random": ("llava", {"matcher": lk.graphs.random_matching}, {}),
    "protecting": ("llava", {"matcher": lk.graphs.protecting_matching}, {}),
    "coverage with mass": (
        "llava",
        {"matcher": lk.graphs.coverage_matching, "attention": "mass"},
        {},
    ),
    "reindex": ("llava", {"positions": "reindex"}, {}),
    "static cache": ("llava", {}, {"cache_implementation": "static"}),
    "beams": ("llava", {}, {"num_beams": 2}),
    "qwen": ("qwen2_5_vl", {}, {}),
}
"""Of each case: the model, fields of the configuration, and options of generate."""


def run(model: Any, inputs: dict[str, Any], fields: dict[str, Any], options: Any) -> dict[str, Any]:
    """What a case gives, as plain values."""
    options = {"return_dict_in_generate": True, "output_logits": True, **options}
    with torch.no_grad(), lk.attach(model, lk.LightKVConfig(STAGES, **fields)) as handle:
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False, **options)
    return {
        "tokens": out.sequences,
        "logits": torch.stack(out.logits),
        "survivors": [stage.survivor for stage in handle.trace],
        "weights": [stage.weight for stage in handle.trace],
        "guidance": [stage.guidance for stage in handle.trace if stage.guidance is not None],
        "ledger": handle.ledger.to_dict()["rows"],
        "lost": handle.ledger.to_dict()["lost"],
        "kv heads": cache_in(out).layers[4].keys.shape[1],
    }


def forward(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Without ``generate``, which encodes pictures outside of what FSDP looks after."""
    with torch.no_grad(), lk.attach(model, lk.LightKVConfig(STAGES)) as handle:
        logits = model(**inputs).logits
    return {"logits": logits, "ledger": handle.ledger.to_dict()["rows"]}


def gradients(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Of weights in front of the stages, and of those that speak only through guidance."""
    model.zero_grad()
    with lk.attach(model, lk.LightKVConfig(STAGES)):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    names = ("multi_modal_projector.linear_1.weight", "layers.1.self_attn.q_proj.weight")
    named = [(n, w) for n, w in model.named_parameters() if n.endswith(names)]
    return {n: getattr(w.grad, "full_tensor", lambda g=w.grad: g)() for n, w in named}


def main(folder: Path) -> None:
    models = sorted({model for model, _, _ in CASES.values()})
    split = DistributedConfig(tp_size=2)
    load = AutoModelForImageTextToText.from_pretrained
    inputs = {name: torch.load(folder / name / "inputs.pt") for name in models}
    whole = {name: load(folder / name) for name in models}
    parts = {name: load(folder / name, distributed_config=split) for name in models}
    rank = dist.get_rank()
    runs = {f"rank-{rank}": parts} if rank else {"whole": whole, "rank-0": parts}
    found: dict[str, dict[str, Any]] = {which: {} for which in runs}
    for which, of in runs.items():
        for case, (name, fields, options) in CASES.items():
            torch.manual_seed(rank)  # what is random is drawn otherwise on every process
            found[which][case] = run(of[name], inputs[name], fields, options)
        found[which]["gradients"] = gradients(of["llava"], inputs["llava"])
        found[which]["forward"] = forward(of["llava"], inputs["llava"])
    sharded = load(folder / "llava", distributed_config=DistributedConfig(fsdp_size=2))
    found[f"rank-{rank}"]["sharded"] = forward(sharded, inputs["llava"])
    for which, results in found.items():
        torch.save(results, folder / f"{which}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
