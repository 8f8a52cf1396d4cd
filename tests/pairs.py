"""Which combinations of parameters run: every pair of choices, or with ``--all`` every combination.

A test with three or more parameters runs with every value of each together with every value of each
other one, in as few combinations as a greedy choice finds.  Two choices that go wrong together are
found so; three that go wrong only together are found by ``make test-all``.  A test marked ``each``
has choices that have little to do with each other, and runs with each of them at least once.  What
is marked ``full`` is like another case but for little.  Both run whole with ``--all``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
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
        rows = [choices_of(item) for item in same]
        chosen = covering(rows, 1 if same[0].get_closest_marker("each") else 2)
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


def covering(rows: Sequence[Choices], together: int = 2) -> set[int]:
    """Numbers of rows that have all choices of the others, so many together.

    Rows of two parameters have nothing but pairs: of those, all are taken.
    """
    groups = [set(combinations(sorted(row.items()), together)) for row in rows]
    missing, chosen = set().union(*groups), set[int]()
    if any(len(row) < together for row in rows):
        return set(range(len(rows)))
    used = Counter[tuple[str, Hashable]]()
    while missing:
        # Most that is new, and of such rows the one whose choices were taken least.
        best = max(
            range(len(rows)),
            key=lambda n: (len(groups[n] & missing), -sum(used[one] for one in rows[n].items())),
        )
        chosen.add(best)
        used.update(rows[best].items())
        missing -= groups[best]
    return chosen
