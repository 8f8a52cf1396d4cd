"""Numbers put on a device are kept there, and fit every mode that torch runs in."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lightkv_graphs import host

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_kept", {})


def test_the_same_numbers_are_put_there_once() -> None:
    first = host.to_device((3, 1, 2), CPU)
    assert first.tolist() == [3, 1, 2]
    assert first.dtype == torch.int64
    assert host.to_device((3, 1, 2), CPU) is first
    assert host.to_device((3, 1), CPU).tolist() == [3, 1]
    assert host.to_device((3, 1, 2), torch.device("meta")).device.type == "meta"
    assert host.to_device(((1, 2), (3, 4)), CPU).tolist() == [[1, 2], [3, 4]]


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "MOST", 3)
    for number in range(10):
        assert host.to_device((number,), CPU).tolist() == [number]
    assert [numbers for numbers, _ in host._kept] == [(7,), (8,), (9,)]
    host.to_device((7,), CPU)
    host.to_device((3,), CPU)
    assert [numbers for numbers, _ in host._kept] == [(9,), (7,), (3,)]  # asked for last, kept


def test_what_was_made_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        index = host.to_device((1, 0), CPU)
    x = torch.randn(2, 3, requires_grad=True)
    x.index_select(0, index).sum().backward()  # saves the index for the backward pass
    assert x.grad is not None


def test_what_was_made_in_a_mode_stays_in_it() -> None:
    with FakeTensorMode():
        assert isinstance(host.to_device((5,), CPU), FakeTensor)
    assert type(host.to_device((5,), CPU)) is torch.Tensor
