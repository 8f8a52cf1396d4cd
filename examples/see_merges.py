"""Look into a prefill: lineage, the graph of one window, networkx, pictures.

python examples/see_merges.py merges.png lineage.png window.png
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

window = int(trace.stages[0].window[row * 16 + col])
graph = handle.graph(0, window=window)
merges = graph["vision", "merges_into", "vision"]
print(f"its window in the first stage: {graph['vision'].num_nodes} tokens")
print("similarity of the merged pairs:", [round(s, 3) for s in merges.similarity.tolist()])

lineage = trace.to_networkx()
print(f"as networkx: {lineage}, a forest: {networkx.is_forest(lineage)}")

seen = lk.seen_tiles(model, processor, inputs)
figures: Any = (
    lk.graphs.draw_stages(trace, seen),
    lk.graphs.draw_lineage(trace.with_prompts([question]), seen[0], patch=(row, col)),
    lk.graphs.draw_window(trace, window, seen[0]).figure,
)
names = sys.argv[1:] or ["merges.png", "lineage.png", "window.png"]
for figure, name in zip(figures, names, strict=False):
    figure.savefig(name)
