"""The tiny LLaVA: how it is built from code, and how the trained one is loaded."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lightkv_gnn.tiny.questions import PLURALS
from lightkv_gnn.tiny.scenes import COLOURS, IMAGE_SIZE, SHAPES

__all__ = [
    "PATCH_SIZE",
    "PROMPT",
    "PROMPT_QUESTION_FIRST",
    "WEIGHTS",
    "build_model",
    "build_processor",
    "export",
    "format_prompt",
    "load",
]

WEIGHTS = Path(__file__).parent / "weights"
PATCH_SIZE = 8
PROMPT = "USER: <image>\n{question} ASSISTANT:"
PROMPT_QUESTION_FIRST = "USER: {question}\n<image> ASSISTANT:"

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_ROLES = ("USER:", "ASSISTANT:")
_WORDS = (
    *("what", "shape", "is", "the", "object", "?", "left", "of", "above", "so", "none"),
    *("how", "many", "are", "there", "a", "an", "list", "objects", ".", ",", "yes", "no"),
)

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ASSISTANT: ' }}{% else %}{{ 'USER: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def format_prompt(question: str, image_first: bool = True) -> str:
    """Wrap a question in the LLaVA-1.5 prompt, with the picture before or after it."""
    template = PROMPT if image_first else PROMPT_QUESTION_FIRST
    return template.format(question=question)


def build_processor() -> LlavaProcessor:
    """Build the processor from code: a PIL image processor and a word-level tokenizer."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(
        size=side, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=_build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE,
    )


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Build the untrained model; the global random state is left as it was."""
    vocabulary = _vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        initializer_range=0.06,  # the usual 0.02 is meant for models ten times as wide
        pad_token_id=vocabulary["<pad>"],
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=vocabulary["<image>"],
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    _favour_matching(model)
    return model


def load(
    device: str | torch.device = "cpu", attn_implementation: str | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the bundled model and its processor.

    Args:
        device: where to put the weights.
        attn_implementation: passed on to ``from_pretrained``; ``None`` keeps its default.

    Returns:
        The model in evaluation mode, and the processor.

    Raises:
        ValueError: if the bundled folder holds no weights.
    """
    if not (WEIGHTS / "model.safetensors").is_file():
        raise ValueError(
            f"expected trained weights in {WEIGHTS}, found none; reinstall the package or run "
            f"examples/train_tiny.py --out {WEIGHTS}"
        )
    extra = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS, local_files_only=True, **extra)
    processor = AutoProcessor.from_pretrained(WEIGHTS, local_files_only=True)
    return model.to(device).eval(), processor


def export(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write a model and its processor, replacing older files one by one when all is written."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as scratch:
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            file.chmod(0o644)
            file.replace(folder / file.name)


def _favour_matching(model: LlavaForConditionalGeneration) -> None:
    """Start where a token attends to tokens that resemble it, and a patch to its neighbours.

    Queries and keys begin equal, words begin large beside what the layers add to them, and patch
    positions begin as waves. From the library's own initial values this small model stays at
    chance for many hundred steps.
    """
    decoder, tower = model.model.language_model, model.model.vision_tower
    with torch.no_grad():
        for block in tower.encoder.layers:
            block.self_attn.q_proj.weight.mul_(1.5)
            block.self_attn.k_proj.weight.copy_(block.self_attn.q_proj.weight)
        tower.embeddings.patch_embedding.weight.mul_(2)
        tower.embeddings.position_embedding.weight[1:] = 0.3 * _waves(tower.config)
        decoder.embed_tokens.weight.mul_(8)
        for layer in decoder.layers:
            layer.self_attn.q_proj.weight.mul_(1.5)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            layer.self_attn.o_proj.weight.mul_(0.25)
            layer.mlp.down_proj.weight.mul_(0.25)


def _waves(config: CLIPVisionConfig) -> torch.Tensor:
    """Return sines and cosines of a patch's row and column as ``[patch, channel]``."""
    side, quarter = config.image_size // config.patch_size, config.hidden_size // 4
    rates = torch.pi / 2 ** torch.linspace(0, 5, quarter)
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([line.repeat_interleave(side, dim=0), line.repeat(side, 1)], dim=1)


def _vocabulary() -> dict[str, int]:
    """Map every word to its id; the order is part of the trained weights."""
    numbers = [str(number) for number in range(len(COLOURS) + 1)]
    words = [*_SPECIAL, *_ROLES, *_WORDS, *COLOURS, *SHAPES, *PLURALS.values(), *numbers]
    return {word: index for index, word in enumerate(dict.fromkeys(words))}


def _build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer.

    The roles are added tokens matched before normalisation, so that lower-casing the question
    leaves them alone.
    """
    vocabulary = _vocabulary()
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    core.add_special_tokens([AddedToken(word, special=True) for word in _SPECIAL])
    core.add_tokens([AddedToken(word, normalized=False) for word in _ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
