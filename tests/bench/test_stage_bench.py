"""What is compared computes the same."""

from __future__ import annotations

import pytest
import torch

from lightkv_gnn.bench.cases import StageCase, grid_of
from lightkv_gnn.bench.stage import compare, fits, sweep
from lightkv_gnn.bench.subjects import SUBJECTS, USUAL, compiled, subject_of

CASES = {
    "one": StageCase(96, 32, 2),
    "odd windows": StageCase(35, 32, 2),
    "batch": StageCase(64, 32, 4, batch=3),
    "ragged": StageCase(96, 32, 2, batch=4, ragged=True),
    "whole": StageCase(48, 64, 1),
}


@pytest.mark.parametrize("name", ["lean", "full_logits"])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_references_are_the_same_mathematics(case: StageCase, name: str) -> None:
    found, expected = SUBJECTS["ours"](case)(), SUBJECTS[name](case)()
    assert found.shape[0] == len(case.layout) - case.plan.total
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_floor_writes_as_much(case: StageCase) -> None:
    assert SUBJECTS["floor"](case)().shape == SUBJECTS["ours"](case)().shape


def test_ragged_pictures_have_different_sizes() -> None:
    assert CASES["ragged"].layout.counts == (96, 72, 48, 24)
    assert CASES["batch"].layout.counts == (64, 64, 64)


@pytest.mark.parametrize(("tokens", "grid"), [(576, (24, 24)), (2880, (48, 60)), (7, (1, 7))])
def test_grids_are_as_square_as_can_be(tokens: int, grid: tuple[int, int]) -> None:
    assert grid_of(tokens) == grid


def test_a_grid_needs_tokens() -> None:
    with pytest.raises(ValueError, match="tokens is 0"):
        grid_of(0)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_kernels_are_the_same_mathematics(case: StageCase) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    for with_kernels, without in (("triton", "ours"), ("coverage_triton", "coverage")):
        found, expected = SUBJECTS[with_kernels](case)(), SUBJECTS[without](case)()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@torch.no_grad()
def test_a_compiler_takes_a_stage_whole() -> None:
    """Guidance, windows, matching and means, in one graph without a break."""
    case = CASES["ragged"]
    found, expected = compiled(case, backend="aot_eager")(), SUBJECTS["ours"](case)()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_cuda_graph_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="a CUDA graph needs a GPU: this case is on cpu"):
        SUBJECTS["graphed"](CASES["one"])


def test_rows_compare_with_the_lean_reference() -> None:
    rows = {row.subject: row for row in compare(CASES["one"], USUAL, rounds=3)}
    assert list(rows) == list(USUAL)
    for row in rows.values():
        assert row.low <= row.seconds <= row.high
        assert row.extra_bytes > 0
        assert row.seconds_ratio == row.seconds / rows["lean"].seconds
        assert row.bytes_ratio == row.extra_bytes / rows["lean"].extra_bytes
        assert (row.launches, row.waits) == (None, None)
    (alone,) = compare(CASES["one"], ["floor"], rounds=3)
    assert (alone.seconds_ratio, alone.bytes_ratio) == (None, None)


def test_logits_of_long_sequences_are_left_out() -> None:
    long = StageCase(11520, 1024, 4)
    assert fits(CASES["one"], "full_logits")
    assert not fits(long, "full_logits")
    assert fits(long, "ours")


def test_a_quick_sweep_is_part_of_what_people_ask_about() -> None:
    base = StageCase(2880, 1024, 4)
    assert [(case.tokens, case.ragged) for case in sweep(base, quick=True)] == [
        (576, False),
        (2880, False),
        (576, True),
    ]
    full = {(case.tokens, case.channels) for case in sweep(base, quick=False)}
    assert {(11520, 4096), (576, 1024), (2880, 1024)} <= full


def half(case: StageCase):  # type: ignore[no-untyped-def]
    return lambda: case.features[::2]


def test_subjects_of_ones_own() -> None:
    assert subject_of("test_stage_bench:half")(CASES["one"])().shape == (48, 32)
    with pytest.raises(ValueError, match=r"expected ours, coverage, .*, graphed or module:"):
        subject_of("leaner")
    with pytest.raises(ImportError, match="math has no function nothing"):
        subject_of("math:nothing")
    with pytest.raises(ImportError, match="no_such_module"):
        subject_of("no_such_module:step")
