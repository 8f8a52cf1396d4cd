"""What a compressed architecture stands for in a vLLM that it was not made for.

vLLM imports this when a model is started with one, tells why that failed, and ends.  An
architecture that it does not know might run as transformers has it: uncompressed.
"""

from __future__ import annotations

from lightkv_gnn.vllm.versions import check_engine

check_engine()
raise ImportError(
    "lightkv-gnn was refused when vLLM started, and is not now: start the process again"
)
