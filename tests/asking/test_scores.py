"""Scores of answers that are given are those of the model saying them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from families.inputs import PICTURES, batch
from families.models import FAMILIES, tiny
from marks import full
from models import greedy

import lightkv_gnn as lk
from lightkv_gnn import tiny as bundled
from lightkv_gnn.asking.prompts import as_chat
from lightkv_gnn.asking.scores import Score, answer_ids, score
from lightkv_gnn.baselines import METHODS, Budget

ANSWERS = [[70, 71, 72, 73], [], [74], [75, 71]]
SOME = ("llava", "qwen2_5_vl", "paligemma", "gemma3")
OTHERS = [family for family in FAMILIES if family not in SOME]


def asked(family):
    model = tiny(family)
    return model, batch(family, model, [4, PICTURES[family][0], 5])


def word_by_word(model, inputs, answer):
    """Log-likelihood of an answer that ``generate`` is made to say, and whether it would anyway."""

    def forced(ids, logits):
        said = ids.shape[1] - inputs["input_ids"].shape[1]
        return torch.full_like(logits, -torch.inf).index_fill_(1, torch.tensor(answer[said]), 0)

    out = model.generate(
        **inputs,
        max_new_tokens=len(answer),
        do_sample=False,
        logits_processor=[forced],
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.cat(out.logits).float()
    of_tokens = logits.log_softmax(-1)[range(len(answer)), answer]
    return float(of_tokens.sum()), bool((logits.argmax(-1) == torch.tensor(answer)).all())


@pytest.mark.parametrize("family", [*SOME, *full(*OTHERS)])
def test_scores_are_those_of_generating(family):
    model, inputs = asked(family)
    first = lk.adapter_for(model).legal_layers[0]
    config = lk.LightKVConfig.for_model(model, stages=[lk.Stage(first, 1, 0.5)])
    with lk.attach(model, config):
        found = score(model, inputs, ANSWERS)
        expected = [word_by_word(model, inputs, answer) for answer in ANSWERS if answer]
    assert found.pop(1) == Score(0.0, True)
    assert [one.greedy for one in found] == [flag for _, flag in expected]
    assert [one.log_likelihood for one in found] == pytest.approx(
        [value for value, _ in expected], abs=1e-4
    )


@pytest.mark.parametrize("method", ["fastv", "elastic_cache_like", "none"])
def test_scores_of_other_methods_are_those_of_generating(method):
    model, inputs = asked("llava")
    with METHODS[method].applied(model, Budget.of(model, 0.5, 0)):
        (found,) = score(model, inputs, ANSWERS[:1])
        assert found.log_likelihood == pytest.approx(
            word_by_word(model, inputs, ANSWERS[0])[0], abs=1e-4
        )


def test_scores_are_those_of_one_call_where_the_prompt_guides():
    model, inputs = asked("llava")
    config = lk.LightKVConfig.for_model(model, stages=[lk.Stage(0, 1, 0.5)])
    length, answer = inputs["input_ids"].shape[1], torch.tensor(ANSWERS[:1])
    whole = torch.cat([inputs["input_ids"], answer], 1)
    with lk.attach(model, config) as handle, handle.prompt([length]), torch.no_grad():
        logits = model(input_ids=whole, pixel_values=inputs["pixel_values"]).logits[0]
        (found,) = score(model, inputs, ANSWERS[:1])
    of_tokens = logits[length - 1 : -1].log_softmax(-1).gather(1, answer[0, :, None])
    assert found.log_likelihood == pytest.approx(float(of_tokens.sum()), abs=1e-4)


def test_what_the_model_would_say_is_greedy():
    model, inputs = asked("llava")
    said = greedy(model, inputs, 4)[0].tolist()
    found = score(model, inputs, [said, [*said[:-1], said[-1] ^ 1]])
    assert [one.greedy for one in found] == [True, False]
    assert found[0].log_likelihood > found[1].log_likelihood


def test_an_answer_is_cut_as_one_text_with_its_prompt():
    _, made = bundled.load()
    prompt = as_chat(made, "what shape is the red object ?")
    words = made.tokenizer(" circle", add_special_tokens=False).input_ids
    for answer in ("circle", " circle", "circle "):
        assert answer_ids(made.tokenizer, prompt, answer) == words
        assert answer_ids(made.tokenizer, prompt + "\n", answer) == words
    assert answer_ids(made.tokenizer, prompt, "") == []

    def in_pairs(text, **options):
        return SimpleNamespace(input_ids=[text[n : n + 2] for n in range(0, len(text), 2)])

    assert answer_ids(in_pairs, "what:", "red") == [": ", "re", "d"]
