"""Look into a prefill: lineage, the graph of one window, networkx, a picture.

python examples/see_merges.py merges.png
"""

import sys
from typing import Any

import networkx
import numpy as np

import lightkv_gnn as lk
from lightkv_gnn import tiny

model: Any
model, processor = tiny.load()
scene = tiny.sample_scene(np.random.default_rng(1))
picture = tiny.render(scene)
question = f"what shape is the {scene.objects[0].colour} object ?"
inputs = processor(images=picture, text=tiny.format_prompt(question), return_tensors="pt")

with lk.attach(model, lk.LightKVConfig.for_model(model)) as handle:
    model.generate(**inputs, max_new_tokens=4, do_sample=False)

trace = handle.trace
print(trace)
row, col = (int(centre) // 8 for centre in reversed(scene.objects[0].centre))
survivor = int(trace.survivor_of()[row * 16 + col])
members = [divmod(token, 16) for token in trace.members(survivor).tolist()]
print(f"the patch at row {row}, column {col} lives on with {members}")

graph = handle.graph(0, image=0, window=int(handle.graph(0)["vision"].window[row * 16 + col]))
merges = graph["vision", "merges_into", "vision"]
print(f"its window in the first stage: {graph['vision'].num_nodes} tokens")
print("similarity of the merged pairs:", [round(s, 3) for s in merges.similarity.tolist()])

lineage = trace.to_networkx()
print(f"as networkx: {lineage}, a forest: {networkx.is_forest(lineage)}")

seen = lk.seen_tiles(model, processor, inputs)
lk.graphs.draw_stages(trace, seen).savefig(sys.argv[1] if len(sys.argv) > 1 else "merges.png")
