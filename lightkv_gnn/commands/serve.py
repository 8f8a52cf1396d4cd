"""The command ``lightkv-gnn serve``."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from lightkv_gnn.commands.options import make_app, one_of
from lightkv_gnn.commands.plan import _size
from lightkv_gnn.sources import check_source, loading
from lightkv_gnn.vllm.guidance import GUIDANCE
from lightkv_gnn.vllm.settings import MATCHERS, MESSAGES, Settings

app = make_app()

Model = Annotated[str, typer.Argument(help="A hub id, or a folder with model and processor.")]
Retention = Annotated[
    float, typer.Option(metavar="SHARE", help="Of each picture's tokens that the decoder gets.")
]
Windows = Annotated[int, typer.Option(min=1, help="Per side, that a picture is cut into.")]
SHORT = [name.removesuffix("_matching") for name in MATCHERS]
Matcher = Annotated[str, one_of((*SHORT, *MATCHERS), metavar="|".join(SHORT), help="Who stays.")]
Message = Annotated[str, one_of(MESSAGES, help="What a survivor becomes.")]
Guidance = Annotated[
    str,
    typer.Option(
        metavar="|".join(GUIDANCE),
        help="Whether the prompt says who stays; module:function is one of your own.",
    ),
]
Size = Annotated[
    Any,
    typer.Option(
        "--image", parser=_size, metavar="WIDTHxHEIGHT", help="Pixels of a picture to be told of."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the command and a picture's cost, and start nothing.")
]
NEAR = 0.8
"""From here on an option is one of ours, misspelt; vLLM has none as near."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Model,
    retention: Retention = 0.25,
    windows: Windows = 2,
    matcher: Matcher = "coverage",
    message: Message = "mass_mean",
    guidance: Guidance = "none",
    image: Size = "1024x768",
    as_json: Json = False,
) -> None:
    """Start vLLM's server with fewer tokens per picture; other options are passed on to it."""
    if model.startswith("-"):
        raise typer.BadParameter(f"No such option: {model}; those of vLLM come after MODEL")
    ours = [name for one in context.command.params for name in one.opts]
    for option in (arg.partition("=")[0] for arg in context.args if arg.startswith("--")):
        for near in get_close_matches(option, ours, n=1, cutoff=NEAR):
            raise typer.BadParameter(f"No such option: {option}; did you mean {near}?")
    settings = Settings(retention, windows, matcher, message, guidance)
    check_source(model)

    from transformers import PreTrainedConfig

    from lightkv_gnn.adapters import families
    from lightkv_gnn.planning.model import picture_layout
    from lightkv_gnn.vllm.plan import plan_picture
    from lightkv_gnn.vllm.serving import server_command

    with loading(model):
        config, _ = PreTrainedConfig.get_config_dict(model)
    command = server_command(model, settings, config, context.args)
    height, width = image
    picture = None
    if config.get("model_type") in families():
        layout, token_bytes = picture_layout(model, image)
        (tiles,) = layout.tiles or ()
        tokens = {"full": len(layout), "compressed": plan_picture(settings, *tiles).kept}
        picture = {"width": width, "height": height, "tokens": tokens, "token_bytes": token_bytes}
    if as_json:
        print(json.dumps({"picture": picture, "command": command}, indent=2))
        return
    if picture is None:
        print(
            "what a picture costs is not known for checkpoints with code of their own", flush=True
        )
    else:
        before, after = (count * token_bytes / 2**20 for count in tokens.values())
        print(
            f"a picture of {width}x{height} pixels: {tokens['full']} -> {tokens['compressed']} "
            f"tokens, {before:.2f} -> {after:.2f} MiB of keys and values in 16 bits",
            flush=True,
        )
    os.execv(command[0], command)
