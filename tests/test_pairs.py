"""The rule that chooses combinations of parameters."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from pairs import covering

CHOICES = {"a": 2, "b": 3, "c": 4, "d": 3}


def rows(choices: dict[str, int]) -> list[dict[str, int]]:
    values = product(*(range(count) for count in choices.values()))
    return [dict(zip(choices, row, strict=True)) for row in values]


def test_every_pair_of_choices_is_there_and_few_combinations() -> None:
    every = rows(CHOICES)
    chosen = [every[number] for number in covering(every)]
    for one, other in combinations(CHOICES, 2):
        pairs = {(row[one], row[other]) for row in chosen}
        assert pairs == set(product(range(CHOICES[one]), range(CHOICES[other])))
    assert len(chosen) < len(every) / 4


@pytest.mark.parametrize("choices", [{}, {"a": 5}, {"a": 3, "b": 4}])
def test_one_or_two_parameters_run_in_every_combination(choices: dict[str, int]) -> None:
    every = rows(choices)
    assert covering(every) == set(range(len(every)))


def test_each_choice_is_there_and_none_more_often_than_it_must() -> None:
    every = rows({"a": 6, "b": 2})
    chosen = [every[number] for number in covering(every, 1)]
    assert sorted(row["a"] for row in chosen) == list(range(6))
    assert sorted(row["b"] for row in chosen) == [0, 0, 0, 1, 1, 1]


def test_combinations_that_are_not_there_are_not_asked_for() -> None:
    every = [row for row in rows(CHOICES) if row["a"] != row["b"]]
    chosen = [every[number] for number in covering(every)]
    assert {(row["a"], row["b"]) for row in chosen} == {(row["a"], row["b"]) for row in every}


def test_the_option_brings_every_combination(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        @pytest.mark.parametrize("x", range(3))
        @pytest.mark.parametrize("y", range(3))
        @pytest.mark.parametrize(("z", "expected"), [(n, n) for n in range(3)])
        def test_it(x, y, z, expected): pass
        @pytest.mark.full
        @pytest.mark.parametrize("x", range(9))
        def test_more(x): pass
        @pytest.mark.each
        @pytest.mark.parametrize("x", range(4))
        @pytest.mark.parametrize("y", range(2))
        def test_each(x, y): pass
        """
    )
    pytester.makeini("[pytest]\nmarkers =\n  full\n  each")
    few = pytester.inline_run("-p", "pairs").countoutcomes()[0]
    assert 9 + 4 <= few < 15 + 4
    assert pytester.inline_run("-p", "pairs", "--all").countoutcomes()[0] == 36 + 8


def test_what_is_left_out_covers_nothing(pytester: pytest.Pytester) -> None:
    """Each pair of choices comes from a combination that runs."""
    pytester.makeini("[pytest]\nmarkers = full")
    pytester.makepyfile(
        test_it="""
        import pytest
        first = pytest.param(0, marks=pytest.mark.full)
        @pytest.mark.parametrize("x", [first, 1])
        @pytest.mark.parametrize("y", range(2))
        @pytest.mark.parametrize("z", range(2))
        def test_it(x, y, z): pass
        """
    )
    assert pytester.inline_run("-p", "pairs").countoutcomes()[0] == 4
