"""Which combinations of parameters run: every pair of choices, or with ``--all`` every combination.

A test with three or more parameters runs with every value of each together with every value of each
other one, in as few combinations as a greedy choice finds.  Two choices that go wrong together are
found so; three that go wrong only together are found by ``make test-all``.  What is marked ``full``
is like another case but for little, and runs with ``--all`` too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations

import pytest

Choices = dict[str, Hashable]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="every combination of parameters")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    left_out = {item for item in items if item.get_closest_marker("full")}
    of_test = defaultdict(list)
    for item in items:
        if item not in left_out:
            of_test[item.nodeid.partition("[")[0]].append(item)
    for same in of_test.values():
        chosen = covering([choices_of(item) for item in same])
        left_out |= {item for number, item in enumerate(same) if number not in chosen}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def choices_of(item: pytest.Item) -> Choices:
    """What a test was given: a choice for each of its lists of values, and of its fixtures'.

    Names that come from one list are one choice: its rows are examples, and all of them run.
    """
    call = getattr(item, "callspec", None)
    if call is None:
        return {}
    left, choices = dict(call.params), {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        choices[",".join(names)] = tuple(id(left.pop(name)) for name in names)
    return {**choices, **{name: id(value) for name, value in left.items()}}


def covering(rows: Sequence[Choices]) -> set[int]:
    """Numbers of rows that have every pair of choices of all rows between them.

    Rows of fewer than three parameters are all taken.
    """
    if any(len(row) < 3 for row in rows):
        return set(range(len(rows)))
    pairs = [set(combinations(sorted(row.items()), 2)) for row in rows]
    missing, chosen = set().union(*pairs), set[int]()
    while missing:
        best = max(range(len(rows)), key=lambda number: len(pairs[number] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return chosen
