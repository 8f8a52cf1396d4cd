"""Questions about many pictures: read from files, answered in batches, written as Parquet.

Needs pyarrow, ``pip install 'lightkv-gnn[batch]'``, and for several workers Ray,
``pip install 'lightkv-gnn[ray]'``.

``items`` read what is asked, ``pictures`` are fetched from files or ``columns`` of Parquet; ``run``
sends what is not answered yet through an engine, here or on Ray (``ray_engine``), to a ``worker``
with a model; ``output`` only ever holds whole parts, and every id once.
"""

from importlib.util import find_spec

if find_spec("pyarrow") is None:
    raise ImportError("batches need pyarrow: pip install 'lightkv-gnn[batch]'")

from lightkv_gnn.batch.items import Items, read_items
from lightkv_gnn.batch.pictures import Asked, Pictures
from lightkv_gnn.batch.ray_engine import RayEngine
from lightkv_gnn.batch.run import Engine, LocalEngine, NothingAnsweredError, Summary, run_batch
from lightkv_gnn.batch.worker import Outcome, Settings, Worker

__all__ = [
    "Asked",
    "Engine",
    "Items",
    "LocalEngine",
    "NothingAnsweredError",
    "Outcome",
    "Pictures",
    "RayEngine",
    "Settings",
    "Summary",
    "Worker",
    "read_items",
    "run_batch",
]
