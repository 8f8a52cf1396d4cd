"""Ask about a picture with a lighter vision cache.

python examples/compress.py                                   the bundled tiny model
python examples/compress.py my-model/ photo.jpg "What is this?"   a model of your own
"""

import sys
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

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

model: Any = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
prompt = f"USER: <image>\n{question} ASSISTANT:"  # LLaVA-1.5's, for models without a template
if processor.chat_template:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=image, text=prompt, return_tensors="pt").to(model.device, model.dtype)

config = lk.LightKVConfig.for_model(model, retention=0.55)
with lk.attach(model, config) as handle:
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)

print(processor.batch_decode(tokens, skip_special_tokens=True)[0])
print(handle.trace)
print(handle.ledger)
