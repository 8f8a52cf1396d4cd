"""Every variant differs from the default in what its name says, and runs."""

import re

import pytest
import torch
from models import tiny_llava

from lightkv_gnn import LightKVConfig, ScheduleError, messages
from lightkv_gnn.baselines import Budget
from lightkv_gnn.evaluation.ablations import ABLATIONS, Folded, mass_guided

ALL = [(choice, variant) for choice, variants in ABLATIONS.items() for variant in variants()]
LARGE = Budget(0.65, 0, 8, (16, 16))
"""Within reach of any number of stages."""
IDS = [f"{choice}: {variant.name}" for choice, variant in ALL]


@pytest.fixture(scope="module")
def model():
    return tiny_llava(side=16, layers=8).eval()


@pytest.fixture(scope="module")
def inputs(model):
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, 100, (2, 6), generator=generator)
    image = torch.full((2, 256), model.config.image_token_id)
    return {
        "input_ids": torch.cat([words[:, :1], image, words[:, 1:]], dim=1),
        "attention_mask": torch.ones(2, 262, dtype=torch.int64),
        "pixel_values": torch.randn(2, 3, 112, 112, generator=generator),
    }


@pytest.fixture(scope="module")
def expected(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize(("choice", "variant"), ALL, ids=IDS)
def test_a_variant_runs_on_its_budgets(model, inputs, expected, choice, variant):
    with torch.no_grad():
        for budget in variant.budgets(model, [0.65], [0]):
            with variant.applied(model, budget) as applied:
                compressed = model(**inputs).logits
                assert applied.bill().retention == pytest.approx(budget.retention, abs=0.025)
            assert not torch.equal(compressed, expected)
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("choice", sorted(set(ABLATIONS) - {"depth"}))
def test_no_two_variants_of_a_choice_do_the_same(model, inputs, choice):
    found = []
    for variant in ABLATIONS[choice]():
        torch.manual_seed(0)
        with torch.no_grad(), variant.applied(model, LARGE):
            found.append(model(**inputs).logits)
    for number, logits in enumerate(found):
        assert not any(torch.equal(logits, other) for other in found[:number])


def test_names_say_what_is_varied():
    for variant in ABLATIONS["guidance"]():
        config, name = variant.config(LARGE), variant.name
        assert config.rotary == ("no rotary" not in name)
        if isinstance(config.guidance, str):
            assert name.partition(":")[0].partition(",")[0] == config.guidance
    for variant in ABLATIONS["prompt"]():
        config, name = variant.config(LARGE), variant.name
        assert (config.message is messages.guided_mean) == ("weights" in name)
        assert getattr(config.matcher, "resist", False) == ("matching" in name)
        assert (getattr(config.matcher, "protect", 0) > 0) == ("protection" in name)
    means = {
        "guided": messages.guided_mean,
        "mean": messages.mean,
        "pruned": messages.destination_only,
    }
    for variant in (*ABLATIONS["geometry"](), *ABLATIONS["depth"]()):
        config, kind = variant.config(LARGE), variant.name.partition(",")[0]
        assert isinstance(variant, Folded) == ("folded" in variant.name)
        assert config.message is means[kind]
        assert (config.guidance == "none") == (kind != "guided")
    for name in ("positions", "message"):
        for variant in ABLATIONS[name]():
            varied = getattr(variant.config(LARGE), name)
            assert variant.name == getattr(varied, "name", varied)


def test_variants_of_the_default_are_named_after_what_differs():
    default, *variants = ABLATIONS["default"]()
    config = default.config(LARGE)
    assert (default.name, config.attention) == ("as it is", "mass")
    for variant in variants:
        found, name = variant.config(LARGE), variant.name
        assert found.stages == config.stages
        told = {
            "guidance": "no guidance" if found.guidance == "none" else found.guidance,
            "message": "dropped" if found.message is messages.destination_only else "mean",
            "positions": "reindex",
            "attention": "no mass",
        }
        for field, word in told.items():
            assert (getattr(found, field) != getattr(config, field)) == (word in name)


def test_names_tell_variants_apart():
    for variants in ABLATIONS.values():
        names = [variant.name for variant in variants()]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(("choice", "variant"), ALL, ids=IDS)
def test_nothing_but_the_choice_varies(choice, variant):
    ours = choice in ("default", "windows", "stages", "depth")
    best = {"matcher": "coverage_matching", "attention": "mass"} if ours else {}
    found, default = variant.config(LARGE), LightKVConfig(variant.stages(LARGE), **best)
    fields = {"guidance": ("guidance", "rotary"), "prompt": ("matcher", "message")}
    fields["depth"] = fields["geometry"] = ("guidance", "message")
    fields["windows"], fields["stages"] = ("attention",), ("attention", "message")
    fields["matcher"] = ("matcher", "message", "attention")
    fields["default"] = ("guidance", "message", "positions", "attention")
    free = fields.get(choice, (choice,))
    for name in ("guidance", "rotary", "message", "matcher", "positions", "attention"):
        if name not in free:
            assert getattr(found, name) == getattr(default, name)


def test_windows_and_stages_are_those_of_the_name():
    small = Budget(0.2, 0, 8, (16, 16))  # out of reach of halves after evenly spaced layers
    for variant in ABLATIONS["windows"]():
        named = [int(number) for number in re.findall(r"\d+", variant.name)]
        for budget in (LARGE, small):
            assert [stage.windows for stage in variant.stages(budget)] == named
    for variant in ABLATIONS["stages"]():
        for budget in (LARGE, small):
            stages = variant.stages(budget)
            assert len(stages) == int(variant.name[0])
            assert len({stage.ratio for stage in stages[1:]}) <= 1
            assert {stage.windows for stage in stages} == {1}
        config = variant.config(LARGE)
        assert (config.message is messages.destination_only) == ("dropped" in variant.name)
    narrow = Budget(0.8, 2, 4, (16, 16))  # one layer is left to merge after
    for variant in (*ABLATIONS["windows"](), *ABLATIONS["stages"]()):
        if variant.number > 1:
            with pytest.raises(ScheduleError, match=f"takes 1 stages: .* for {variant.number}"):
                variant.stages(narrow)
        assert (variant.config(LARGE).attention == "plain") == ("no mass" in variant.name)


def test_mass_guided_is_guidance_times_mass():
    guidance = torch.tensor([0.2, 1.5, -3.0])
    mass = torch.tensor([1, 4, 2])
    weight = mass_guided.weigh(guidance, mass, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(weight.exp(), guidance.exp() * mass)
    assert mass_guided not in messages.MESSAGES.values()
