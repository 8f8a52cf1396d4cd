"""How many samples fit on a GPU, with and without compression: from a configuration, no weights.

python examples/plan_deployment.py                                    the bundled tiny model
python examples/plan_deployment.py my-model/ --image 1344x896 --memory 80
"""

from __future__ import annotations

import argparse
from typing import NoReturn

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import lightkv_gnn as lk
from lightkv_gnn import tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=str(tiny.WEIGHTS), help="folder or hub id")
    parser.add_argument("--image", default="128x128", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--text", type=int, default=512, help="tokens of question and answer")
    parser.add_argument("--memory", type=float, default=0.5, help="of the GPU, GiB")
    arguments = parser.parse_args()
    with torch.device("meta"):  # shapes without numbers
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(arguments.model), dtype=torch.bfloat16
        )
    width, height = map(int, arguments.image.split("x"))
    picture = lk.adapter_for(model).expected((height, width), 1, needs_processor)
    vision = sum(picture.lengths)
    mask = torch.arange(vision + arguments.text)[None] < vision
    prompt = lk.VisionTokens({"image": mask}, torch.ones_like(mask), {"image": picture})

    weights = 2 * sum(weight.numel() for weight in model.parameters())
    free = arguments.memory * 2**30 - weights
    print(f"{type(model).__name__}, {weights / 2**30:.2f} GiB of weights; {vision} vision tokens")
    print("asked  planned  stages              KV MiB  samples  of those without")
    for retention in (1.0, 0.75, 0.55, 0.4):
        config = lk.LightKVConfig.for_model(model, retention)
        plan = lk.plan_prefill(model, config, prompt)
        kv, full = (plan.totals()[name] for name in ("kv_bytes", "kv_bytes_full"))
        stages = ", ".join(f"{stage.layer}/{stage.windows}" for stage in config.stages)
        row = f"{retention:5.0%}  {plan.retention:7.1%}  {stages:18}  {kv / 2**20:6.1f}"
        print(f"{row}  {free // kv:7.0f}  {(free // kv) / (free // full):.2f} x")


def needs_processor() -> NoReturn:
    raise SystemExit("the grid depends on the image processor: use `lightkv-gnn plan` instead")


if __name__ == "__main__":
    main()
