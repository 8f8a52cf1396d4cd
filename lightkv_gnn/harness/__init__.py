"""The model ``lightkv`` of lmms-eval, which finds it through an entry point.

Source: https://github.com/EvolvingLMMs-Lab/lmms-eval, 0.7.3: ``lmms_eval/models/registry_v2.py``.

``lmms`` is the class, ``simple`` that for tasks of likelihoods; ``arguments`` reads what
``--model_args`` says; ``prompts`` and ``decoding`` turn a task's requests into calls of the model,
``likelihoods`` those that come with answers; ``compression`` is at work meanwhile, and ``account``
adds up what it cost.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval's registry takes: the name of the model, and where its class is.

    It is called whenever lmms-eval starts, for whatever model, so nothing else is imported here.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="lightkv",
        simple_class_path="lightkv_gnn.harness.simple.LightKVSimple",
        chat_class_path="lightkv_gnn.harness.lmms.LightKV",
    )
