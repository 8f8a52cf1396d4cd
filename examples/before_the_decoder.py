"""Merge a picture's tokens before the language model, for engines that cannot do it inside.

python examples/before_the_decoder.py

What comes out are image embeddings, fewer of them, and a prompt with as many placeholders: every
layer then has the same tokens.  No prompt guides these merges, as no layer has read it yet.
"""

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import lightkv_gnn as lk
from lightkv_gnn import tiny

model: Any = AutoModelForImageTextToText.from_pretrained(str(tiny.WEIGHTS))
processor = AutoProcessor.from_pretrained(str(tiny.WEIGHTS))
image = tiny.render(tiny.sample_scene(np.random.default_rng(0)))
content = [{"type": "image"}, {"type": "text", "text": "list the objects ."}]
messages = [{"role": "user", "content": content}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=image, text=prompt, return_tensors="pt")

compressor = lk.TokenCompressor(lk.mass_mean)
layout = lk.graphs.TokenLayout.from_grids([[(16, 16)]])  # of this model's pictures
with torch.no_grad():
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    for windows, ratio in ((8, 0.5), (4, 0.5)):
        plan = lk.graphs.plan_stage(layout.occupancy, windows, ratio)
        done = compressor(features, layout, plan)
        features, layout = done.hidden_states, done.layout

ids = inputs["input_ids"][0]
is_image = ids == model.config.image_token_id
kept = ~is_image | (is_image.cumsum(0) <= len(features))  # one placeholder for each embedding
ids = ids[kept][None]
print(f"{int(is_image.sum())} vision tokens, merged to {len(features)}")

# An engine takes the embeddings and the prompt from here; this is transformers, as a stand-in.
embeddings = model.get_input_embeddings()(ids)
embeddings = embeddings.masked_scatter(ids[..., None] == model.config.image_token_id, features)
tokens = model.generate(
    inputs_embeds=embeddings, attention_mask=torch.ones_like(ids), max_new_tokens=64
)
print(processor.batch_decode(tokens, skip_special_tokens=True)[0])
