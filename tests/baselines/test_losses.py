"""What stages lose is measured as it is defined, and measuring changes nothing."""

from __future__ import annotations

import pytest
import torch
from models import batch, prompt, tiny_llava
from reference import features, make_layout
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.baselines import Loss, MeasuredCompressor
from lightkv_gnn.baselines.pruning import keep_highest
from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_graphs import cosine_matching, plan_stage


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("matcher", [cosine_matching, keep_highest], ids=["merging", "pruning"])
def test_losses_are_those_of_the_definition(matcher: object) -> None:
    layout = make_layout([[(4, 6)], [(5, 5)]], newlines=True)
    x, guidance = features(layout)
    inner = TokenCompressor(matcher=matcher)  # type: ignore[arg-type]
    measured = MeasuredCompressor(inner)
    plan = plan_stage(layout.occupancy, 2, 0.5)
    done = measured(x, layout, plan, guidance)
    plain = inner(x, layout, plan, guidance)
    assert torch.equal(done.hidden_states, plain.hidden_states)
    (loss,) = measured.losses
    assert (loss.before, loss.after) == (len(x), len(done.kept))
    error = divergence = 0.0
    for token, row in enumerate(done.survivor.tolist()):
        error += float((x[token] - done.hidden_states[row]).square().sum())
        heir = int(done.kept[row])
        if heir != token:
            divergence += 1 - cosine(x[token], x[heir])
    assert float(loss.squared_error) == pytest.approx(error, rel=1e-5)
    assert float(loss.divergence) == pytest.approx(divergence, rel=1e-5)
    assert float(loss.squared_norm) == pytest.approx(float(x.square().sum()), rel=1e-5)


def test_nothing_is_lost_where_nothing_differs() -> None:
    layout = make_layout([[(4, 4)]])
    measured = MeasuredCompressor(TokenCompressor())
    measured(torch.ones(16, 3), layout, plan_stage(layout.occupancy, 1, 0.5))
    assert float(measured.losses[0].squared_error) == 0
    assert float(measured.losses[0].divergence) == pytest.approx(0, abs=1e-5)
    assert measured.seconds > 0
    measured.forget()
    assert measured.losses == []
    assert measured.seconds == 0


@torch.no_grad()
def test_every_stage_of_every_prefill_is_in_the_account() -> None:
    model, inputs = tiny_llava(), batch(prompt(3, "image", 4), prompt(2, "image", "image", 2))
    measured = MeasuredCompressor(TokenCompressor())
    config = lk.LightKVConfig([lk.Stage(1, 2, 0.5), lk.Stage(3, 1, 0.25)])
    with lk.attach(model, config, compressor=measured):
        for _ in range(2):
            model(**inputs)
    assert [(loss.before, loss.after) for loss in measured.losses] == [(48, 24), (24, 18)] * 2
    assert all(isinstance(loss, Loss) for loss in measured.losses)


def test_a_loss_holds_no_graph() -> None:
    layout = make_layout([[(4, 4)]])
    x = features(layout)[0].requires_grad_()
    measured = MeasuredCompressor(TokenCompressor())
    measured(x, layout, plan_stage(layout.occupancy, 1, 0.5))
    loss = measured.losses[0]
    assert not any(
        v.requires_grad for v in (loss.divergence, loss.squared_error, loss.squared_norm)
    )
