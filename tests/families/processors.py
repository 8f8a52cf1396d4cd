"""Checkpoint folders that load without a network: a tiny model and its family's processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from families.models import BREAK, END, FAKE, GLOBAL, IMAGE, NEWLINE, START, TAGS, VIDEO, tiny

CHARACTERS = [chr(code) for code in range(32, 127)]
FIRST_CHARACTER, UNKNOWN, END_OF_UTTERANCE = 3, 98, 119
LLAVA_TOKENS = {"<image>": IMAGE, "<video>": VIDEO}
IDEFICS_TOKENS = {
    "<image>": IMAGE,
    "<fake_token_around_image>": FAKE,
    "<global-img>": GLOBAL,
    "<end_of_utterance>": END_OF_UTTERANCE,
    **{f"<row_{1 + n // 4}_col_{1 + n % 4}>": tag for n, tag in enumerate(TAGS)},
}
TEMPLATE = """\
{% for message in messages %}{{ message['role'] }}: \
{% for part in message['content'] %}\
{% if part['type'] == 'image' %}PLACEHOLDER{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""

# Its processor wants the images first, and sets the beginning of the text after them.
PREFIX_TEMPLATE = """\
{% for part in messages[0]['content'] %}\
{% if part['type'] == 'image' %}PLACEHOLDER{% endif %}{% endfor %}\
{% for part in messages[0]['content'] %}\
{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"""


@dataclass(frozen=True)
class Parts:
    """Classes of a processor by name with their options, and the tokenizer's special tokens."""

    processor: str
    image: str
    tokens: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)
    image_options: dict[str, Any] = field(default_factory=dict)
    video: str = ""
    video_options: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)  # the tokenizer's names of its tokens
    prompt: str = "<image>"  # what stands for an image in a prompt
    template: str = TEMPLATE


def square(side: int) -> dict[str, int]:
    """The size of a square."""
    return {"height": side, "width": side}


def llava(name: str, side: int, video: str = "") -> Parts:
    """LLaVA whose tower, a CLIP, takes squares of so many pixels."""
    size = {"size": {"shortest_edge": side}, "crop_size": square(side)}
    options = {
        "patch_size": 7,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    image = "CLIPImageProcessorPil" if name == "Llava" else "LlavaNextImageProcessorPil"
    return Parts(f"{name}Processor", image, LLAVA_TOKENS, options, size, video, size)


def qwen(name: str, video: str) -> Parts:
    """Qwen with patches of 4 x 4 pixels, and pictures of 4 to 144 patches."""
    options = {
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 8 * 8, "longest_edge": 48 * 48},
    }
    return Parts(
        f"{name}Processor",
        "Qwen2VLImageProcessorPil",
        {
            "<|image_pad|>": IMAGE,
            "<|video_pad|>": VIDEO,
            "<|vision_start|>": START,
            "<|vision_end|>": END,
        },
        image_options=options,
        video=video,
        video_options=options,
        prompt="<|vision_start|><|image_pad|><|vision_end|>",
    )


def idefics(name: str, video: str = "") -> Parts:
    """Idefics3, or its successor, with up to 3 x 3 sub-images."""
    size = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
    options = {"image_seq_len": 16}
    image = f"{name}ImageProcessorPil"
    video_size = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    return Parts(f"{name}Processor", image, IDEFICS_TOKENS, options, size, video, video_size)


PARTS: dict[str, Parts] = {
    "llava": llava("Llava", 28),
    "llava_pixtral": Parts(
        "PixtralProcessor",
        "PixtralImageProcessorPil",
        {"[IMG]": IMAGE, "[IMG_BREAK]": BREAK, "[IMG_END]": END},
        {"patch_size": 8},
        {"size": {"longest_edge": 64}, "patch_size": square(8)},
        prompt="[IMG]",
    ),
    "llava_next": llava("LlavaNext", 28),
    "llava_next_video": llava("LlavaNextVideo", 42, "LlavaNextVideoVideoProcessor"),
    "llava_onevision": Parts(
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessorPil",
        LLAVA_TOKENS,
        {
            "num_image_tokens": 25,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_4",
        },
        {"size": square(35)},
        "LlavaOnevisionVideoProcessor",
        {"size": square(35)},
    ),
    "qwen2_vl": qwen("Qwen2VL", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": qwen("Qwen2_5_VL", "Qwen2VLVideoProcessor"),
    "qwen3_vl": qwen("Qwen3VL", "Qwen3VLVideoProcessor"),
    "internvl": Parts(
        "InternVLProcessor",
        "GotOcr2ImageProcessorPil",
        {"<IMG_CONTEXT>": IMAGE, "<img>": START, "</img>": END, "<video>": VIDEO},
        {"image_seq_length": 16},
        {"size": square(32), "max_patches": 4},
        "InternVLVideoProcessor",
        {"size": square(32)},
        roles={
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
        prompt="<IMG_CONTEXT>",
    ),
    "gemma3": Parts(
        "Gemma3Processor",
        "Gemma3ImageProcessorPil",
        {"<image_soft_token>": IMAGE, "<start_of_image>": START, "<end_of_image>": END},
        {"image_seq_length": 16},
        {"size": square(32)},
        roles={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        prompt="<start_of_image>",
    ),
    "idefics3": idefics("Idefics3"),
    "smolvlm": idefics("SmolVLM", "SmolVLMVideoProcessor"),
    "paligemma": Parts(
        "PaliGemmaProcessor",
        "SiglipImageProcessorPil",
        {"<image>": IMAGE},
        image_options={"size": square(32), "image_seq_length": 16},
        template=PREFIX_TEMPLATE,
    ),
}
# For images alone, too; older versions of transformers want it for others as well, and SmolVLM's
# processor wants num2words.
NEED_TORCHVISION = ("llava_pixtral", *(family for family, parts in PARTS.items() if parts.video))


@contextmanager
def skipped_without_needs() -> Iterator[None]:
    """Some processors want torchvision, in older versions more of them, and one num2words."""
    try:
        yield
    except ImportError as error:
        lacking = [name for name in ("torchvision", "num2words") if not find_spec(name)]
        if not any(name in str(error).lower() for name in lacking):
            raise
        pytest.skip(f"{' and '.join(lacking)} not installed")


def save_checkpoint(family: str, folder: str | Path, **options: Any) -> Any:
    """Saves ``tiny(family, **options)`` and a processor that suits it; returns the model."""
    model = tiny(family, **options)
    model.save_pretrained(folder)
    processor(family, model).save_pretrained(folder)
    return model


def processor(family: str, model: Any) -> Any:
    """The family's own processor, made for its tiny model."""
    parts = PARTS[family]
    members = {
        "image_processor": image_processor(family, model),
        "tokenizer": tokenizer(parts.tokens, parts.roles),
    }
    if parts.video:
        members["video_processor"] = getattr(hf, parts.video)(**parts.video_options)
    template = parts.template.replace("PLACEHOLDER", parts.prompt)
    return getattr(hf, parts.processor)(**members, chat_template=template, **parts.options)


def image_processor(family: str, model: Any) -> Any:
    """The part of the processor that never needs torchvision."""
    parts = PARTS[family]
    pinpoints = getattr(model.config, "image_grid_pinpoints", None)
    grids = {"image_grid_pinpoints": pinpoints} if pinpoints else {}
    return getattr(hf, parts.image)(**parts.image_options, **grids)


def tokenizer(special: dict[str, int], roles: dict[str, str]) -> hf.PreTrainedTokenizerFast:
    """A tokenizer with a token for each character, at the ids that the tiny models expect."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": UNKNOWN, "\n": NEWLINE, **special}
    words |= {character: FIRST_CHARACTER + n for n, character in enumerate(CHARACTERS)}
    free = sorted(set(range(128)) - set(words.values()))
    words |= {f"<unused{id_}>": id_ for id_ in free}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = Fuse()
    backend.add_special_tokens(list(special))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=roles,
    )
