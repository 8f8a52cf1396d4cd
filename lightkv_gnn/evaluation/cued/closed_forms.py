"""What methods must score on one cued object of many, where nothing has moved before they run.

The prompt names one of ``objects`` objects on ``cells`` cells; one of ``choices`` answers is right.
A model whose object is gone can only guess.  The forms hold for a stage after layer 0 of the
suites here (see :mod:`lightkv_gnn.evaluation.cued.model`), and for nothing later: as soon as a
layer has read the picture, the answer may stand in the text.
"""

from __future__ import annotations


def random_pruning(kept: int, cells: int, choices: int) -> float:
    """Accuracy where ``kept`` of ``cells`` cells survive by chance.

    Raises:
        ValueError: Numbers that cannot be.
    """
    _check(kept, cells, choices)
    return _or_guess(kept / cells, choices)


def prompt_blind_saliency(kept: int, cells: int, objects: int, choices: int) -> float:
    """Accuracy where objects survive before background, but none before another.

    Raises:
        ValueError: Numbers that cannot be.
    """
    _check(kept, cells, choices)
    if not 1 <= objects <= cells:
        raise ValueError(f"there are {objects} objects: expected 1 to {cells}, one a cell")
    return _or_guess(min(1.0, kept / objects), choices)


def oracle(kept: int, cells: int, choices: int) -> float:
    """Accuracy where the cell that the prompt is about survives before all others.

    Raises:
        ValueError: Numbers that cannot be.
    """
    _check(kept, cells, choices)
    return _or_guess(float(kept > 0), choices)


def _or_guess(known: float, choices: int) -> float:
    return known + (1 - known) / choices


def _check(kept: int, cells: int, choices: int) -> None:
    if not 0 <= kept <= cells or choices < 1:
        raise ValueError(
            f"{kept} of {cells} cells are kept, and there are {choices} answers: expected "
            "0 <= kept <= cells and at least one answer"
        )
