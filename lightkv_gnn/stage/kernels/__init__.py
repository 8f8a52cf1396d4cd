"""Triton kernels of a stage: nearest destinations, greedy choices, guidance, weighted sums.

Each has its equal in plain torch, which says what it computes; see
:class:`lightkv_gnn.stage.scatter.TritonBackend`.  They run on a GPU, and with
``TRITON_INTERPRET=1`` set before anything imports triton, slowly, on a CPU.
"""

from lightkv_gnn.stage.kernels.device import check_device
from lightkv_gnn.stage.kernels.greedy import greedy_ranks
from lightkv_gnn.stage.kernels.nearest import nearest_destinations
from lightkv_gnn.stage.kernels.shares import text_shares
from lightkv_gnn.stage.kernels.sums import weighted_sum

__all__ = [
    "check_device",
    "greedy_ranks",
    "nearest_destinations",
    "text_shares",
    "weighted_sum",
]
