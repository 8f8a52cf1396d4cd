"""Two prompts on one picture, side by side in a page that opens in a browser.

python examples/compare_prompts.py page.html
"""

import sys
from typing import Any

import numpy as np
from PIL import Image

import lightkv_gnn as lk
from lightkv_gnn import tiny

model: Any
model, processor = tiny.load()
config = lk.LightKVConfig.for_model(model)


def ask(picture: Image.Image, question: str) -> lk.graphs.View:
    """The model's answer, and how the picture's tokens merged on the way to it."""
    inputs = processor(images=picture, text=tiny.format_prompt(question), return_tensors="pt")
    with lk.attach(model, config) as handle:
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    answer = processor.decode(new, skip_special_tokens=True)
    print(f"{question} {answer}")
    seen = lk.seen_tiles(model, processor, inputs)
    return handle.view(image=seen, prompt=question, answer=answer)


scene = tiny.sample_scene(np.random.default_rng(1))
first, *_, last = scene.objects
picture = tiny.render(scene)
views = [ask(picture, f"what shape is the {one.colour} object ?") for one in (first, last)]

same = [view.trace.kept()[view.trace.survivor_of()] for view in views]
print(f"{int((same[0] != same[1]).sum())} of {len(same[0])} patches live on in different places")

file = sys.argv[1] if len(sys.argv) > 1 else "prompts.html"
lk.graphs.write_page(file, views, title="Two prompts")
print(f"open {file} in a browser")
