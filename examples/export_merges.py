"""Save what a prefill merged, load it again, and study the merges as a graph.

python examples/export_merges.py folder
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import networkx
import numpy as np

import lightkv_gnn as lk
from lightkv_gnn import tiny

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
folder.mkdir(parents=True, exist_ok=True)
model: Any
model, processor = tiny.load()
picture = tiny.render(tiny.sample_scene(np.random.default_rng(1)))
question = "list the objects ."
inputs = processor(images=picture, text=tiny.format_prompt(question), return_tensors="pt")

with lk.attach(model, lk.LightKVConfig.for_model(model)) as handle:
    model.generate(**inputs, max_new_tokens=4, do_sample=False)

file = folder / "merges.safetensors"
handle.trace.with_prompts([question]).save(file)
trace = lk.graphs.MergeTrace.load(file)  # needs no model, and trusts no file
print(f"{file}: {trace}, {file.stat().st_size} bytes")
trace.write_graphml(folder / "merges.graphml")  # for Gephi
trace.write_dot(folder / "merges.dot")  # for Graphviz: dot -Tsvg merges.dot

forest = trace.to_networkx()
assert networkx.is_forest(forest)
last = len(trace)
moves = Counter(  # how often the stages merged each patch into another token
    sum(forest.edges[edge]["merged"] for edge in networkx.utils.pairwise(path))
    for path in (
        [(stage, int(row)) for stage, row in enumerate(trace.path(patch))]
        for patch in range(len(trace.layout))
    )
)
masses = [mass for (stage, _), mass in forest.nodes(data="mass") if stage == last]
shares = trace.share()
print("\ndepth  patches")
for depth, patches in sorted(moves.items()):
    print(f"{depth:5}  {patches:7}")
print("\nmass      survivors")
for low in (2**power for power in range(max(masses).bit_length())):
    print(f"{low:3}-{2 * low - 1:<4}  {sum(low <= mass < 2 * low for mass in masses):9}")
print(f"\nthe heaviest survivor stands for {max(masses)} patches")
print(
    f"the most that one of several patches weighs in its survivor: {shares[shares < 1].max():.0%}"
)
