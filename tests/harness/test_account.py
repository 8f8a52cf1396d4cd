"""Costs add up the same, however questions are shared out over batches and processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightkv_gnn.baselines.inspection import Seen
from lightkv_gnn.harness.account import Account, metrics, together
from lightkv_gnn.harness.compression import Cost

numbers = st.integers(1, 1000)
accounts = st.builds(
    Account.of, numbers, st.builds(Cost, numbers, numbers, numbers, numbers), numbers
)
shares = st.lists(st.dictionaries(st.sampled_from(["pope", "gqa"]), accounts), max_size=6)


@given(shares, st.integers(0, 6))
def test_any_split_adds_up_to_the_same(parts, cut):
    split = together([together(parts[:cut]), together(parts[cut:])])
    assert split == together(parts)
    for task in ("pope", "gqa"):
        own = [part[task] for part in parts if task in part]
        assert split.get(task, Account()).kv_bytes == sum(account.kv_bytes for account in own)


@given(shares)
def test_means_are_of_questions_not_of_batches(parts):
    total = together(parts)
    found = metrics(total)
    if not total:
        assert found == {}
        return
    batches = [account for part in parts for account in part.values()]
    questions = sum(account.questions for account in batches)
    assert found["kv_bytes"] == sum(account.kv_bytes for account in batches) / questions
    assert found["kv_bytes_full"] == sum(account.kv_bytes_full for account in batches) / questions
    seconds = sum(account.first_token for account in batches)
    assert found["seconds_to_first_token"] == pytest.approx(seconds / questions)
    vision = [(account.vision, account.vision_full) for account in batches]
    held, full = map(sum, zip(*vision, strict=True))
    assert found["retention"] == pytest.approx(held / full)


def test_a_batch_counts_as_often_as_it_has_questions():
    account = Account.of(3, Cost(6, 12, 30, 60), 0.5)
    assert account.metrics() == {
        "retention": 0.5,
        "kv_bytes": 10,
        "kv_bytes_full": 20,
        "seconds_to_first_token": 0.5,
        "method_seconds": 0,
    }


def test_what_was_looked_at_counts_as_often_as_it_was():
    one = Account.of(2, Cost(1, 1, 1, 1), 1.0, 0.25, Seen(1.0, [2.0, 4.0], [1.0]))
    other = Account.of(4, Cost(1, 1, 1, 1), 1.0, 0.5, Seen(1.0, [9.0], []))
    found = (one + other).metrics()
    assert found["method_seconds"] == (2 * 0.25 + 4 * 0.5) / 6
    assert found["effective_rank"] == 5.0
    assert found["attention_entropy"] == 1.0
    assert "agreement" not in found
    compared = Account.of_agreement(["a  b", "c", ""], ["a b", "d", ""])
    assert (one + compared).metrics()["agreement"] == 2 / 3


def test_several_tasks_are_told_apart():
    one, other = Account.of(1, Cost(1, 4, 2, 8), 1.0), Account.of(1, Cost(3, 4, 6, 8), 3.0)
    assert set(metrics({"pope": one})) == set(one.metrics())
    found = metrics({"pope": one, "gqa": other, "text": Account()})
    assert (found["retention"], found["pope_retention"], found["gqa_retention"]) == (
        0.5,
        0.25,
        0.75,
    )
    assert not any(name.startswith("text") for name in found)
