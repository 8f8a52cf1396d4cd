"""Types of models behind transformers' ``AutoModelForImageTextToText`` that have no adapter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Unserved(NamedTuple):
    """Why models of a type are not served.

    Attributes:
        kind: A key of :data:`KINDS`.
        why: A plain sentence.
    """

    kind: str
    why: str

    @property
    def target(self) -> bool:
        """Whether its vision tokens stand in a decoder's sequence, so that it could be served."""
        return self.kind in TARGETS


KINDS: Mapping[str, str] = MappingProxyType(
    {
        "encoder–decoder": "its decoder reads pictures from an encoder, and has no vision tokens "
        "in its own sequence",
        "cross-attention": "pictures enter through cross-attention beside the sequence, in which "
        "there are no vision tokens",
        "Q-Former": "queries that have read the picture stand in its decoder's sequence, but no "
        "call hands them to a decoder that compression knows",
        "other": "it is no decoder that answers after a prompt with vision tokens",
        "decoder": "its vision tokens stand in its decoder's sequence, but a layer of that decoder "
        "does not take a shorter sequence as it is handed one",
    }
)
"""Kinds of types without an adapter, and what is said of each of them."""

TARGETS = frozenset({"decoder", "Q-Former"})
"""Kinds whose vision tokens stand in a decoder's sequence."""

_INDEXED = (
    "its attention looks at the entries that an indexer picks, whose own keys the cache keeps "
    "beside the others"
)
_STATES = "it has layers that hold a state of the whole sequence instead of an entry per token"
_STREAMS = "its layers carry several streams of hidden states, joined by hyper-connections"
_CONVOLVED = "its attention convolves neighbouring keys, and knows distances by a bias of its own"
_QUERIES = (
    "its own generate puts the 32 queries {of} into the embedded prompt, and hands that to the "
    "language model past the call that pictures are seen in; with T5, an encoder reads them"
)
_SINUSOIDAL = "its decoder adds sinusoidal positions to the embeddings, and has no rotary ones"


def _all_of(kind: str, types: Mapping[str, str]) -> dict[str, Unserved]:
    return {name: Unserved(kind, why) for name, why in types.items()}


UNSERVED: Mapping[str, Unserved] = MappingProxyType(
    {
        **_all_of(
            "encoder–decoder",
            {
                "florence2": "its BART decoder reads the picture and the prompt from its encoder",
                "pix2struct": "its decoder reads the patches, the prompt drawn among them, from "
                "its encoder",
                "pp_formulanet": "its MBART decoder reads the formula from its encoder",
                "t5gemma2": "its decoder reads pictures and prompt from its encoder",
                "udop": "its T5 decoder reads the page and its words from its encoder",
                "vision-encoder-decoder": "its decoder reads the picture from a vision encoder",
            },
        ),
        **_all_of(
            "cross-attention",
            {
                "blip": "every layer of its BERT decoder attends to the picture beside the text",
                "evolla": "layers attend to an encoded protein beside the text; it takes no "
                "pictures",
                "idefics": "every few layers gated cross-attention reads the pictures",
                "mllama": "every few layers cross-attention reads the pictures",
            },
        ),
        **_all_of(
            "Q-Former",
            {
                "blip-2": "it hands 32 queries of a picture to OPT, which has learnt positions and "
                "no rotary ones, or to T5, whose encoder reads them",
                "instructblip": _QUERIES.format(of="of a picture"),
                "instructblipvideo": _QUERIES.format(of="of each frame"),
                "kosmos-2": f"a resampler makes 64 latents of a picture; {_SINUSOIDAL}",
                "kosmos-2.5": f"a resampler makes 2048 latents of a page; {_SINUSOIDAL}",
            },
        ),
        **_all_of(
            "other",
            {
                "diffusion_gemma": "it refines a canvas of text by diffusion; nothing is decoded "
                "token by token",
                "git": "its features are put before the embedded text inside of its BERT, and no "
                "tokens of the prompt stand for them",
                "mistral4": "it is the text model alone, which takes no pictures",
                "pi0": "it makes actions of a robot by flow matching, and no text",
            },
        ),
        **_all_of(
            "decoder",
            {
                "chameleon": "pictures become tokens of its vocabulary inside of the one module "
                "that is base and decoder at once, which encodes nothing a stage could see",
                "dots3_note": _INDEXED,
                "fuyu": "patches are projected right into the sequence: there is no encoder, and "
                "only newline tokens tell the grid",
                "gemma3n": "its layers carry four streams of hidden states, and the last of them "
                "share the keys and values of others",
                "glm5_next": f"{_STATES}, and {_STREAMS.removeprefix('its layers ')}",
                "hy_v4_vl": f"{_INDEXED}; {_STREAMS}",
                "inkling2": _CONVOLVED,
                "inkling2_loop": f"{_CONVOLVED}; it runs the same layers several times",
                "inkling_mm_model": _CONVOLVED,
                "mistral_large4": _INDEXED,
                "nemotron_h_omni": "its attention has no rotary positions, and layers of experts "
                "or of an MLP alone stand between those that attend and those that hold a state",
                "qwen4_exp": f"{_STATES}; in the others, {_INDEXED}",
                "unlimited_ocr": "its attention slides over what is decoded while it keeps the "
                "whole prompt, in a cache of its own",
            },
        ),
    }
)
"""Of each type without an adapter, why."""
