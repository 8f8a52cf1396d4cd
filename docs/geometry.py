"""Draws the windows of a stage over what the models of every family see of one picture.

python docs/geometry.py [family ...]

The models are tiny and random, but take pictures as the published checkpoints do: the image
processors are transformers' own, and image, patch and pooling sizes are those of the checkpoints.
The pictures are written into docs/geometry/.
"""

from __future__ import annotations

import io
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in (".", "graphs", "tests")]

from families.models import tiny  # noqa: E402

import lightkv_gnn as lk  # noqa: E402
from lightkv_gnn.session.pictures import vision_tokens  # noqa: E402
from lightkv_graphs import draw_windows  # noqa: E402

WINDOWS = 4
PICTURE = (1000, 640)
HEIGHT = {1: 4.5, 2: 4.0, 3: 2.8, 4: 2.4}
"""Inches that a row of so many tiles is high."""

COLOURS = 96
"""Colours of a file."""


@dataclass(frozen=True)
class View:
    """How a family takes pictures, and how many tiles to draw beside each other.

    With ``frames``, pictures are those of a video, which the image processor prepares: it does
    what the family's video processor does, and that one needs torchvision.
    """

    title: str
    processor: str
    options: dict[str, Any]
    vision: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    columns: int = 2
    frames: int = 0


def square(side: int) -> dict[str, int]:
    """Size of a square."""
    return {"height": side, "width": side}


CLIP = {"size": {"shortest_edge": 336}, "crop_size": square(336)}
CLIP_TOWER = {"image_size": 336, "patch_size": 14}
NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)]
QWEN = {"size": {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}, "patch_size": 14}
QWEN3 = {"size": {"shortest_edge": 64 * 64, "longest_edge": 1280 * 32 * 32}, "patch_size": 16}
VIEWS = {
    "llava": View("LLaVA-1.5", "CLIPImageProcessorPil", CLIP, CLIP_TOWER),
    "llava_pixtral": View(
        "LLaVA with Pixtral",
        "PixtralImageProcessorPil",
        {"size": {"longest_edge": 1024}, "patch_size": square(16)},
        {"image_size": 1024, "patch_size": 16},
    ),
    "llava_next": View(
        "LLaVA-NeXT",
        "LlavaNextImageProcessorPil",
        {**CLIP, "image_grid_pinpoints": NEXT},
        CLIP_TOWER,
        {"image_grid_pinpoints": NEXT},
    ),
    "llava_next_video": View(
        "LLaVA-NeXT-Video, a video", "CLIPImageProcessorPil", CLIP, CLIP_TOWER, columns=4, frames=4
    ),
    "llava_onevision": View(
        "LLaVA-OneVision",
        "LlavaOnevisionImageProcessorPil",
        {"size": square(384), "image_grid_pinpoints": ONEVISION},
        {"image_size": 384, "patch_size": 14},
        {"image_grid_pinpoints": ONEVISION, "vision_aspect_ratio": "anyres_max_9"},
    ),
    "qwen2_vl": View("Qwen2-VL", "Qwen2VLImageProcessorPil", QWEN, {"patch_size": 14}),
    "qwen2_5_vl": View(
        "Qwen2.5-VL",
        "Qwen2VLImageProcessorPil",
        QWEN,
        {"patch_size": 14, "window_size": 112},
    ),
    "qwen3_vl": View(
        "Qwen3-VL",
        "Qwen2VLImageProcessorPil",
        {**QWEN3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"patch_size": 16, "num_position_embeddings": 48 * 48},
    ),
    "internvl": View(
        "InternVL",
        "GotOcr2ImageProcessorPil",
        {"size": square(448), "crop_to_patches": True, "max_patches": 12},
        {"image_size": [448, 448], "patch_size": [14, 14]},
        {"image_seq_length": 256},
        columns=3,
    ),
    "gemma3": View(
        "Gemma 3",
        "Gemma3ImageProcessorPil",
        {"size": square(896)},
        {"image_size": 896, "patch_size": 14},
        {"mm_tokens_per_image": 256},
    ),
    "idefics3": View(
        "Idefics3",
        "Idefics3ImageProcessorPil",
        {"size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364}},
        {"image_size": 364, "patch_size": 14},
        {"scale_factor": 2},
        columns=4,
    ),
    "smolvlm": View(
        "SmolVLM2",
        "SmolVLMImageProcessorPil",
        {"size": {"longest_edge": 4 * 512}, "max_image_size": {"longest_edge": 512}},
        {"image_size": 512, "patch_size": 16},
        {"scale_factor": 4},
        columns=4,
    ),
    "paligemma": View(
        "PaliGemma",
        "SiglipImageProcessorPil",
        {"size": square(224)},
        {"image_size": 224, "patch_size": 14},
    ),
}


def picture(ball: int = 480) -> Image.Image:
    """A drawn landscape with names in its corners and one diagonal from edge to edge."""
    width, height = PICTURE
    drawn = Image.new("RGB", PICTURE, (150, 200, 235))
    pen = ImageDraw.Draw(drawn)
    pen.rectangle((0, 0.62 * height, width, height), fill=(110, 170, 90))
    pen.ellipse((0.66 * width, 60, 0.66 * width + 150, 210), fill=(250, 210, 70))
    pen.rectangle((140, 280, 380, 500), fill=(190, 90, 70), outline=(60, 30, 20), width=6)
    pen.polygon([(110, 280), (260, 150), (410, 280)], fill=(120, 50, 50))
    pen.rectangle((225, 390, 295, 500), fill=(90, 50, 30))
    pen.rectangle((165, 310, 215, 360), fill=(250, 240, 160))
    pen.rectangle((720, 330, 750, 520), fill=(100, 70, 40))
    pen.ellipse((650, 220, 820, 400), fill=(50, 120, 60))
    pen.ellipse((ball, 480, ball + 120, 600), fill=(200, 50, 60), outline=(255, 255, 255), width=8)
    pen.line((0, 0, width - 1, height - 1), fill=(30, 30, 120), width=5)
    font = ImageFont.load_default(size=40)
    for text, place, anchor in (
        ("top left", (60, 12), "lt"),
        ("top right", (width - 12, 12), "rt"),
        ("bottom left", (12, height - 12), "lb"),
        ("bottom right", (width - 70, height - 12), "rb"),
    ):
        pen.text(place, text, fill=(0, 0, 0), font=font, anchor=anchor)
    pen.rectangle((0, 0, width - 1, height - 1), outline=(220, 0, 180), width=6)
    return drawn


def draw(family: str, view: View) -> Figure:
    """The tiles of a family with their tokens and windows."""
    model = tiny(family, vision=view.vision, **view.model)
    processor = getattr(transformers, view.processor)(**view.options)
    inputs = prepared(processor, view.frames)
    adapter = lk.adapter_for(model)
    token = adapter.placeholders["video" if view.frames else "image"]
    inputs["input_ids"] = torch.full((1, 2), token)
    (encoded,) = vision_tokens(adapter, inputs).encoded.values()
    inputs["input_ids"] = torch.full((1, sum(encoded.lengths)), token)  # the picture alone
    layout = adapter.layout(vision_tokens(adapter, inputs))
    return figure(view, layout, lk.seen_tiles(model, processor, inputs))


def prepared(processor: Any, frames: int) -> dict[str, Any]:
    """What the processor makes of the picture, or of the frames of a video."""
    if not frames:
        return dict(processor(picture(), return_tensors="pt"))
    moving = [picture(400 + 90 * number) for number in range(frames)]
    return {"pixel_values_videos": processor(moving, return_tensors="pt")["pixel_values"][None]}


def figure(view: View, layout: lk.graphs.TokenLayout, tiles: list[Image.Image]) -> Figure:
    """Every tile with its windows, in rows of as many columns as the view has."""
    columns = min(view.columns, len(tiles))
    rows, height = math.ceil(len(tiles) / columns), HEIGHT[columns]
    widths = [tile.width / tile.height for tile in tiles[:columns]]
    size = (height * sum(widths) + 0.2, (height + 0.3) * rows + 0.4)
    canvas = Figure(figsize=size, layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False, width_ratios=widths)
    for image, ax in enumerate(axes.flat):
        if image < len(tiles):
            draw_windows(layout, WINDOWS, tiles[image], image=image, ax=ax)
            high, wide = layout.grids[image]
            ax.set_title(f"image {image}: {high} x {wide} tokens", fontsize=9)
        else:
            ax.set_axis_off()
    canvas.suptitle(f"{view.title}: {WINDOWS} x {WINDOWS} windows", fontsize=11)
    return canvas


def save(canvas: Figure, file: Path) -> None:
    """A compact PNG."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, dpi=100)
    colours = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    colours.save(file, optimize=True)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    for name in sys.argv[1:] or VIEWS:
        save(draw(name, VIEWS[name]), ROOT / "docs" / "geometry" / f"{name}.png")
