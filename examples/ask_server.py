"""Ask a server about a picture, and see what the picture costs.

lightkv-gnn serve my-model/ --retention 0.25        # elsewhere, beside vLLM
python examples/ask_server.py photo.jpg "What is this?" [http://localhost:8000/v1]

It is vLLM's own server, so any client of OpenAI's API will do: pip install openai.
"""

import base64
import mimetypes
import sys
from pathlib import Path

from openai import OpenAI

photo, question, *server = sys.argv[1:]
client = OpenAI(base_url=server[0] if server else "http://localhost:8000/v1", api_key="none")
model = client.models.list().data[0].id

kind = mimetypes.guess_type(photo)[0] or "image/png"
data = base64.b64encode(Path(photo).read_bytes()).decode()
content = [
    {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}},
    {"type": "text", "text": question},
]
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": content}],
    max_completion_tokens=64,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for part in stream:
    if part.choices:
        print(part.choices[0].delta.content or "", end="", flush=True)
    if part.usage:
        print(f"\n{part.usage.prompt_tokens} tokens of prompt, the picture's included")
