"""The class that lmms-eval makes for ``--model lightkv --force_simple``.

Only such models are asked for likelihoods: conversations are for answers alone.
"""

from __future__ import annotations

import copy
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance

from lightkv_gnn.harness.likelihoods import contents
from lightkv_gnn.harness.lmms import LightKV


class LightKVSimple(LightKV):
    """The same model for requests that come with a text and its pictures."""

    is_simple = True

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers, in the order of the requests.

        Each request's arguments are the context, the options of generation, a function from the
        document to its pictures, the document's number, the task and the split.
        """
        return super().generate_until([_as_conversation(request) for request in requests])


def _as_conversation(request: Instance) -> Instance:
    """The request as models for conversations get it."""
    context, options, to_pictures, *document = request.args

    def to_messages(row: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": contents(context, to_pictures, row, "url")}]

    changed = copy.copy(request)
    changed.arguments = (context, to_messages, options, *document)
    return changed
