"""A server that answers about pictures, each answer with what its own request cost.

    uvicorn server:app  # in this folder; then
    curl --data-binary @photo.png -H "Content-Type: image/png" "localhost:8000/?prompt=what"

It needs ``pip install fastapi uvicorn``.  ``python examples/server.py`` asks it 50 questions at
once, with httpx in uvicorn's place.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Annotated, Any

import numpy as np
from fastapi import Body, FastAPI
from PIL import Image

import lightkv_gnn as lk
from lightkv_gnn import tiny

app = FastAPI()
model, processor = tiny.load()
handle = lk.attach(model, lk.LightKVConfig.for_model(model, retention=0.55))


@app.post("/")
def answer(prompt: str, picture: Annotated[bytes, Body(media_type="image/png")]) -> dict[str, Any]:
    """FastAPI runs each request in a thread; the watch tells of the calls of that thread alone."""
    image = Image.open(BytesIO(picture)).convert("RGB")
    inputs = processor(images=image, text=tiny.format_prompt(prompt), return_tensors="pt")
    with handle.watch() as call:
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=48)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    return {
        "answer": processor.decode(new, skip_special_tokens=True).strip(),
        "retention": call.ledger.retention,
        "kv_bytes": call.ledger.totals()["kv_bytes"],
        "lost": [lost.share for lost in call.ledger.lost],
        "merged": str(call.trace),
    }


def ask(client: Any, number: int) -> dict[str, Any]:
    """One request, with a picture drawn for it."""
    scene = tiny.sample_scene(np.random.default_rng(number))
    png = BytesIO()
    tiny.render(scene).save(png, "PNG")
    prompt = ("list the objects .", f"what shape is the {scene.objects[0].colour} object ?")
    return client.post("/", params={"prompt": prompt[number % 2]}, content=png.getvalue()).json()


if __name__ == "__main__":
    from fastapi.testclient import TestClient

    with TestClient(app) as client, ThreadPoolExecutor(50) as pool:
        for number, found in enumerate(pool.map(lambda number: ask(client, number), range(50))):
            print(number, found)
