"""Split a model over processes by its heads, and merge alike on all of them.

torchrun --nproc-per-node 2 examples/split_heads.py                          the bundled tiny model
torchrun --nproc-per-node 2 examples/split_heads.py my-model/ photo.jpg "What is this?"

Each process takes a GPU, if there is one for each, else a share of the CPU.  Needs accelerate.
"""

import os
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.distributed import DistributedConfig  # type: ignore[attr-defined]

import lightkv_gnn as lk
from lightkv_gnn import tiny

if len(sys.argv) == 4:
    folder, file, question = sys.argv[1:]
    image = Image.open(file).convert("RGB")
elif len(sys.argv) == 1:
    folder, question = str(tiny.WEIGHTS), "list the objects ."
    image = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
else:
    sys.exit(__doc__)

split = DistributedConfig(tp_size=int(os.environ["WORLD_SIZE"]))
model: Any = AutoModelForImageTextToText.from_pretrained(folder, distributed_config=split)
processor = AutoProcessor.from_pretrained(folder)
content = [{"type": "image"}, {"type": "text", "text": question}]
messages = [{"role": "user", "content": content}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=image, text=prompt, return_tensors="pt").to(model.device, model.dtype)

config = lk.LightKVConfig.for_model(model, retention=0.55)
with torch.no_grad(), lk.attach(model, config) as handle:
    out = model.generate(**inputs, max_new_tokens=64, do_sample=False, return_dict_in_generate=True)

mine = [stage.survivor.tolist() for stage in handle.trace]
everyone: list[Any] = [None] * dist.get_world_size()
dist.all_gather_object(everyone, mine)
if dist.get_rank() == 0:
    print(processor.batch_decode(out.sequences, skip_special_tokens=True)[0])
    print(handle.trace)
    print(handle.ledger)
    cache = out["cache" if "cache" in out else "past_key_values"]  # before transformers 5.24
    heads = cache.layers[-1].keys.shape[1]
    print(f"of each layer's cache, this process has {heads} heads")
    print("merged alike on all processes:", all(theirs == mine for theirs in everyone))
dist.destroy_process_group()
