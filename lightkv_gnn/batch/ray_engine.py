"""The engine on Ray Data: a pool of actors with a model each, restarted where they die."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from lightkv_gnn.batch.pictures import Asked, Pictures
from lightkv_gnn.batch.worker import Outcome, Settings, Worker

RETRIES = 2
"""How often questions are asked again after a worker died of them."""

MENDABLE = (ValueError, TypeError, OSError, ImportError)
"""Errors of a worker that are the user's to mend: no such model, no such schedule."""

STOPPED = -1
"""In place of a row: the worker cannot go on."""


@dataclass(frozen=True)
class RayEngine:
    """Workers on Ray: on the cluster that this process is connected to, or one started for the run.

    Every node has to see the pictures and the model under the same paths.  Where a worker dies,
    Ray starts another one and asks again; what no worker survives is asked singly, and is then
    an error.

    Attributes:
        batch: Questions that are answered together.
        workers: How many there are, a model each.
        gpus_per_worker: May be a fraction, for several on one.
        opened: Makes a worker where it is to work; one of a class of your own, if you like.
    """

    batch: int = 8
    workers: int = 1
    gpus_per_worker: float = 0.0
    opened: Callable[[Settings, Pictures], Worker] = Worker.opened

    def __post_init__(self) -> None:
        for name in ("batch", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.gpus_per_worker < 0:
            raise ValueError(f"GPUs per worker is {self.gpus_per_worker}: expected 0 or more")

    def outcomes(
        self, asked: Sequence[Asked], pictures: Pictures, settings: Settings
    ) -> Iterator[list[Outcome]]:
        """See :class:`lightkv_gnn.batch.Engine`.

        Raises:
            ImportError: Ray is not installed.
            ValueError: There are no such GPUs, or the workers cannot be made.
            RuntimeError: Something else went wrong in a worker.
        """
        if find_spec("ray") is None:
            raise ImportError("--engine ray needs Ray: pip install 'lightkv-gnn[ray]'")
        waiting = {one.row: one for one in asked}
        with _connected(self.gpus_per_worker):
            for batch in (self.batch, 1):
                for some in self._answered(list(waiting.values()), batch, pictures, settings):
                    for outcome in some:
                        del waiting[outcome.row]
                    yield some
                if not waiting:
                    return
        died = "every worker that was asked this died of it"
        yield [Outcome(row, "WorkerDied", died) for row in waiting]

    def _answered(
        self, asked: Sequence[Asked], batch: int, pictures: Pictures, settings: Settings
    ) -> Iterator[list[Outcome]]:
        """Outcomes of all questions but those that workers died of."""
        import ray.data

        rows = [one._asdict() for one in asked]
        blocks = -(-len(rows) // batch)
        # One at a time: whatever else waits at a worker that dies counts as tried.
        pool = ray.data.ActorPoolStrategy(
            size=min(self.workers, blocks), max_tasks_in_flight_per_actor=1
        )
        with _old_names():
            data = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
                _Actor,
                fn_constructor_args=(self.opened, settings, pictures),
                batch_size=batch,
                batch_format="pyarrow",
                compute=pool,
                num_cpus=1,
                num_gpus=self.gpus_per_worker,
                max_restarts=-1,
                max_task_retries=RETRIES,
            )
        for found in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield _unpacked(found)


def _unpacked(found: Any) -> list[Outcome]:
    """What a worker returned; raises what stopped it."""
    outcomes = [Outcome(**row) for row in found.to_pylist()]
    for outcome in outcomes:
        if outcome.row == STOPPED:
            mendable = outcome.error == ValueError.__name__
            raise (ValueError if mendable else RuntimeError)(outcome.message)
    return outcomes


class _Actor:
    """What Ray makes of a worker; it tells of errors, since Ray passes over those it raises."""

    def __init__(
        self,
        opened: Callable[[Settings, Pictures], Worker],
        settings: Settings,
        pictures: Pictures,
    ) -> None:
        self._worker: Worker | None = None
        self._stopped = Outcome(STOPPED)
        try:
            self._worker = opened(settings, pictures)
        except MENDABLE as error:
            self._stopped = Outcome(STOPPED, ValueError.__name__, str(error))

    def __call__(self, rows: Any) -> Any:
        import pyarrow as pa

        asked = [Asked(**row) for row in rows.to_pylist()]
        outcomes = [self._stopped]
        if self._worker is not None:
            try:
                outcomes = self._worker.answer(asked)
            except Exception:
                outcomes = [Outcome(STOPPED, "RuntimeError", traceback.format_exc())]
        return pa.Table.from_pylist([outcome._asdict() for outcome in outcomes])


@contextmanager
def _old_names() -> Iterator[None]:
    """Ray warns of its own context's fields, and of ``max_task_retries``, which has no new name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* deprecated", DeprecationWarning)
        yield


@contextmanager
def _connected(gpus: float) -> Iterator[None]:
    """Connects to Ray if this process is not, and keeps Ray Data from talking meanwhile."""
    import ray
    from ray.data import DataContext

    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    log = logging.getLogger("ray.data")
    with _old_names():
        context = DataContext.get_current().copy()
    level = log.level
    log.setLevel(logging.CRITICAL)
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1
    try:
        if gpus > ray.cluster_resources().get("GPU", 0):
            raise ValueError(f"{gpus:g} GPUs per worker: Ray has none so large")
        with DataContext.current(context):
            yield
    finally:
        log.setLevel(level)
        if own:
            ray.shutdown()
