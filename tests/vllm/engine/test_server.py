"""``lightkv-gnn serve``: vLLM's own server, asked through the openai client."""

from __future__ import annotations

import base64
import io
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import openai
import pytest
from PIL import Image

from lightkv_gnn import tiny

TEXT = "list the objects ."
OPTIONS = (
    *("--dtype", "float32", "--max-model-len", "768", "--block-size", "32"),
    *("--enforce-eager", "--served-model-name", "tiny"),
)


@pytest.fixture(scope="module")
def client(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "lightkv_gnn", "serve", str(checkpoint)]
    command += ["--retention", "0.25", "--host", "127.0.0.1", "--port", str(port), *OPTIONS]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 240
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except URLError:
                time.sleep(0.5)
        assert "1024x768 pixels: 256 -> 64 tokens" in log.read_text()
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        server.terminate()
        server.wait(60)


def messages(picture: bytes) -> list[Any]:
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": TEXT}]
    return [{"role": "user", "content": content}]


def rendered() -> list[int]:
    """The prompt that the server makes of such messages; chats have no token before the first."""
    content = [{"type": "image"}, {"type": "text", "text": TEXT}]
    processor = tiny.build_processor()
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    tokens: list[int] = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return tokens


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_ten_at_once_one_of_them_broken(
    client: openai.OpenAI, engines: Any, questions: Any
) -> None:
    pictures = [picture for picture, _ in questions[:9]]
    prompt = rendered()
    expected = engines({"retention": 0.25}).ask([(picture, prompt) for picture in pictures])
    tokenizer = tiny.build_processor().tokenizer

    def ask(picture: bytes) -> tuple[str, int]:
        stream = client.chat.completions.create(
            model="tiny",
            messages=messages(picture),
            max_completion_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = list(stream)
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert len(parts) > 3
        return text, parts[-1].usage.prompt_tokens

    with ThreadPoolExecutor(10) as pool:
        broken = pool.submit(ask, b"no picture")
        answers = list(pool.map(ask, map(png, pictures)))
    with pytest.raises(openai.BadRequestError, match="image"):
        broken.result()
    for (text, prompt_tokens), one in zip(answers, expected, strict=True):
        wanted = tokenizer.decode(one.tokens, skip_special_tokens=True)
        assert (text.split(), prompt_tokens) == (wanted.split(), one.prompt)
    assert ask(png(pictures[0])) == answers[0]


def test_the_example_asks_it(
    client: openai.OpenAI,
    engines: Any,
    questions: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    questions[0][0].save(tmp_path / "photo.png")
    arguments = ["ask_server.py", str(tmp_path / "photo.png"), TEXT, str(client.base_url)]
    monkeypatch.setattr(sys, "argv", arguments)
    example = Path(__file__).parents[3] / "examples" / "ask_server.py"
    runpy.run_path(str(example), run_name="__main__")
    (one,) = engines({"retention": 0.25}).ask([(questions[0][0], rendered())])
    assert f"{one.prompt} tokens of prompt" in capsys.readouterr().out
