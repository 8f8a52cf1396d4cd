"""Methods that choose who stays one by one: each against a slow loop, or a law of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from models import batch, prompt, tiny_llava
from reference import cosine, features, make_layout
from torch import Tensor

import lightkv_gnn as lk
from lightkv_gnn.baselines import METHODS, Budget, choosing
from lightkv_gnn.baselines.anchorprune import NOVEL, keep_anchored
from lightkv_gnn.baselines.apet import BASIS, RIDGE, keep_unpredictable
from lightkv_gnn.baselines.cdpruner import keep_conditionally_diverse
from lightkv_gnn.baselines.d2pruner import PIVOTS, affinity, debiased, keep_independent
from lightkv_gnn.baselines.schedules import windowed
from lightkv_gnn.baselines.scope import keep_salient_cover
from lightkv_gnn.baselines.tower import TowerAttention
from lightkv_gnn.baselines.visiontrim import TextLogits, complement, dominant, local_affinity
from lightkv_gnn.baselines.visionzip import dominant_and_contextual
from lightkv_graphs import Matching, TokenLayout, WindowPartition, plan_stage, window_partition

LAYOUT = make_layout([[(4, 5)], [(3, 3), (5, 5)]], newlines=True)
IMAGES = [((LAYOUT.image == n) & ~LAYOUT.protected).nonzero()[:, 0].tolist() for n in range(3)]
ratios = pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])


def partition_of(ratio: float, layout: TokenLayout = LAYOUT, windows: int = 1) -> WindowPartition:
    return window_partition(layout, plan_stage(layout.occupancy, windows, ratio))


def heard(seed: int = 0) -> Tensor:
    """Logarithm of a guidance, `[token]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(LAYOUT), generator=generator).log()


def text_of(seed: int = 0) -> TextLogits:
    text = TextLogits()
    generator = torch.Generator().manual_seed(seed)
    text.by_token = torch.randn(len(LAYOUT), 4, generator=generator)
    return text


def tower_of(seed: int = 0) -> TowerAttention:
    tower = TowerAttention.__new__(TowerAttention)
    generator = torch.Generator().manual_seed(seed)
    tower.keys = torch.randn(len(LAYOUT), 6, generator=generator)
    return tower


Run = Callable[[Tensor, WindowPartition, Tensor], Matching]
MATCHERS: dict[str, Run] = {
    "scope": keep_salient_cover,
    "cdpruner": keep_conditionally_diverse,
    "anchorprune": keep_anchored,
    "d2pruner": lambda x, partition, g: keep_independent(x, partition, g, LAYOUT),
    "apet": lambda x, partition, g: keep_unpredictable(x, partition),
    "visiontrim": lambda x, partition, g: complement(text_of(), x, partition, g, LAYOUT),
    "visionzip": lambda x, partition, g: dominant_and_contextual(tower_of(), x, partition, g),
}


def kept(matching: Matching) -> list[list[int]]:
    """Tokens that stay, of each image."""
    gone = set(matching.edge_index[0].tolist())
    return [[token for token in image if token not in gone] for image in IMAGES]


def greedy(image: list[int], number: int, worth: Callable[[list[int], int], float]) -> list[int]:
    """The most worthy one, again and again; the lowest index of several."""
    chosen: list[int] = []
    while len(chosen) < number:
        left = [token for token in image if token not in chosen]
        chosen.append(max(left, key=lambda token: (round(worth(chosen, token), 5), -token)))
    return chosen


# --- what all of them owe -----------------------------------------------------------------------


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.97])
@pytest.mark.parametrize("kind", ["usual", "equal", "zero", "nan"])
def test_any_features_give_as_many_edges_as_planned(name: str, ratio: float, kind: str) -> None:
    """Features without direction, all alike or broken, and guidance that is zero or even."""
    x, guidance = features(LAYOUT)[0], heard()
    if kind == "equal":
        x, guidance = torch.ones_like(x), torch.zeros_like(guidance)
    elif kind == "zero":
        x[::2] = 0
        guidance[::3] = -torch.inf
    elif kind == "nan":
        x[::4] = torch.nan
    partition = partition_of(ratio)
    matching = MATCHERS[name](x, partition, guidance)
    matching.check(partition)
    again = MATCHERS[name](x, partition, guidance)
    assert torch.equal(matching.edge_index, again.edge_index)


@pytest.mark.parametrize("name", MATCHERS)
def test_no_tokens_are_no_edges(name: str) -> None:
    layout = TokenLayout.from_grids([])
    partition = partition_of(0.5, layout)
    empty = torch.zeros(0)
    run: Run = MATCHERS[name]
    if name == "d2pruner":
        run = lambda x, p, g: keep_independent(x, p, g, layout)  # noqa: E731
    elif name in ("visiontrim", "visionzip"):
        pytest.skip("their tensors come with a prefill")
    assert run(torch.zeros(0, 8), partition, empty).edge_index.shape == (2, 0)


@pytest.mark.parametrize("name", ["scope", "cdpruner", "anchorprune", "d2pruner"])
@pytest.mark.parametrize("windows", [2, 3])
def test_windows_choose_apart(name: str, windows: int) -> None:
    partition = partition_of(0.5, windows=windows)
    matching = MATCHERS[name](features(LAYOUT)[0], partition, heard())
    matching.check(partition)


def test_merging_methods_join_the_most_similar_host() -> None:
    x, partition = features(LAYOUT)[0], partition_of(0.5)
    matching = keep_unpredictable(x, partition)
    stay = kept(matching)
    for source, destination in matching.edge_index.T.tolist():
        (own,) = [image for image in stay if destination in image]
        best = max(own, key=lambda n: cosine(x[source].tolist(), x[n].tolist()))
        assert destination == best
    assert matching.dropped is None


# --- each of them -------------------------------------------------------------------------------


@ratios
@pytest.mark.parametrize("seed", range(2))
def test_cdpruner_grows_the_determinant_most(ratio: float, seed: int) -> None:
    """Against determinants of all sets with one token more."""
    x, guidance = features(LAYOUT, seed)[0], heard(seed)
    found = kept(keep_conditionally_diverse(x, partition_of(ratio), guidance))
    for image, own in zip(IMAGES, found, strict=True):
        share = guidance[image].double().exp()
        share = (share - share.min()) / (share.max() - share.min())
        direction = torch.nn.functional.normalize(x[image].double(), dim=1)
        kernel = share[:, None] * (direction @ direction.T) * share[None, :]

        def gain(chosen: list[int], token: int, kernel=kernel, image=image) -> float:
            rows = [image.index(n) for n in [*chosen, token]]
            before = torch.linalg.det(kernel[rows[:-1]][:, rows[:-1]]) if chosen else 1.0
            return float(torch.linalg.det(kernel[rows][:, rows]) / before)

        rank = min(len(own), x.shape[1] - 1)  # beyond the rank all determinants vanish
        first = greedy(image, rank, gain)
        assert set(first) <= set(own)


def test_cdpruner_is_near_the_best_set() -> None:
    """Of all triples of a small picture, the greedy one is at most a little smaller."""
    layout = make_layout([[(2, 4)]])
    x = features(layout, 3)[0]
    matching = keep_conditionally_diverse(x, partition_of(0.625, layout), torch.zeros(8))
    gone = set(matching.edge_index[0].tolist())
    direction = torch.nn.functional.normalize(x.double(), dim=1)
    volume = {
        rows: float(torch.linalg.det((direction @ direction.T)[list(rows)][:, list(rows)]))
        for rows in itertools.combinations(range(8), 3)
    }
    own = volume[tuple(n for n in range(8) if n not in gone)]
    assert own >= 0.5 * max(volume.values())
    assert own > sum(volume.values()) / len(volume)


@ratios
def test_scope_equals_a_slow_loop(ratio: float) -> None:
    x, guidance = features(LAYOUT)[0], heard()
    rows = x.tolist()
    found = kept(keep_salient_cover(x, partition_of(ratio), guidance))
    for image, own in zip(IMAGES, found, strict=True):

        def worth(chosen: list[int], token: int, image=image) -> float:
            gain = 0.0
            for other in image:
                covered = max([0.0, *(cosine(rows[other], rows[n]) for n in chosen)])
                gain += max(0.0, cosine(rows[other], rows[token]) - covered)
            return gain * float(guidance[token].exp())

        assert sorted(greedy(image, len(own), worth)) == own


@ratios
@pytest.mark.parametrize("alike", [1, 5])
def test_anchorprune_equals_a_slow_loop(ratio: float, alike: int) -> None:
    """With features of all kinds, or four of five alike, so that anchors stop being novel."""
    x, guidance = features(LAYOUT, 1)[0], heard(1)
    for number in range(1, alike):
        x[number::alike] = x[0] + 0.1 * x[number::alike]
    rows = x.tolist()
    found = kept(keep_anchored(x, partition_of(ratio), guidance))
    stopped = 0
    for image, own in zip(IMAGES, found, strict=True):

        def apart(chosen: list[int], token: int) -> float:
            return min([2.0, *(1 - cosine(rows[token], rows[n]) for n in chosen)])

        anchors: list[int] = []
        for token in sorted(image, key=lambda n: -float(guidance[n])):
            if len(anchors) < len(own) // 2 and apart(anchors, token) >= NOVEL:
                anchors.append(token)
        stopped += len(anchors) < len(own) // 2
        chosen = list(anchors)
        while len(chosen) < len(own):
            left = [n for n in image if n not in chosen]
            worth = {n: float(guidance[n].exp()) * apart(chosen, n) for n in left}
            chosen.append(max(left, key=lambda n: worth[n]))
        assert sorted(chosen) == own
    assert stopped or alike == 1 or ratio > 0.2


@pytest.mark.parametrize("alike", [0.2, 2.0])
def test_d2pruner_keeps_pivots_and_an_independent_set(alike: float) -> None:
    x, guidance = features(LAYOUT)[0], heard()
    x = alike * x + x.mean(dim=0)
    partition = partition_of(0.7)
    found = kept(keep_independent(x, partition, guidance, LAYOUT))
    slots = partition.slots()
    near = affinity(x, slots, LAYOUT) > 0.8
    level = debiased(choosing.of_slots(guidance, slots), slots < len(x))
    for window, (image, own) in enumerate(zip(IMAGES, found, strict=True)):
        place = {token: image.index(token) for token in image}
        order = sorted(image, key=lambda n, w=window: -float(level[w, place[n]]))
        pivots = order[: int(PIVOTS * len(own))]
        chosen: list[int] = []
        for token in order:
            free = not any(near[window, place[token], place[n]] for n in chosen)
            if token not in pivots and free:
                chosen.append(token)
        chosen = chosen[: len(own) - len(pivots)]
        rest = [n for n in order if n not in pivots and n not in chosen]
        chosen += rest[: len(own) - len(pivots) - len(chosen)]
        assert sorted(pivots + chosen) == own


def test_debiasing_takes_a_trend_away_and_nothing_else() -> None:
    real = torch.ones(2, 12, dtype=torch.bool)
    real[1, 9:] = False
    level = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)) - 5
    trend = 0.3 * torch.arange(12.0)
    plain, tilted = debiased(level, real), debiased(level + trend, real)
    for row, width in ((0, 12), (1, 9)):
        difference = (tilted - plain)[row, :width]
        torch.testing.assert_close(difference, difference[:1].expand(width))
    flat = debiased(trend.expand(2, 12), real)[0]
    torch.testing.assert_close(flat, flat[:1].expand(12))


@ratios
def test_apet_keeps_the_basis_and_the_largest_errors(ratio: float) -> None:
    x = features(LAYOUT)[0]
    found = kept(keep_unpredictable(x, partition_of(ratio)))
    for image, own in zip(IMAGES, found, strict=True):
        rows = x[image].double()
        first = int((rows - rows.mean(dim=0)).norm(dim=1).argmax())
        basis = [first]
        while len(basis) < min(BASIS, len(own)):
            apart = torch.cdist(rows, rows[basis]).amin(dim=1)
            basis.append(int(apart.argmax()))
        known = rows[basis]
        ridge = RIDGE * known.square().sum(dim=1).mean() * torch.eye(len(basis))
        share = torch.linalg.solve(known @ known.T + ridge, known @ rows.T)
        error = (rows - share.T @ known).norm(dim=1)
        error[basis] = torch.inf
        stay = error.argsort(descending=True)[: len(own)].tolist()
        assert sorted(image[n] for n in stay) == own


def test_apet_lets_go_of_what_a_basis_spans() -> None:
    """Eight directions and their mixtures: only the eight are needed."""
    layout = make_layout([[(4, 4)]])
    generator = torch.Generator().manual_seed(0)
    x = 5 * torch.eye(16)[:, :9]
    x[8] = 0
    x[9:] = torch.rand(7, 8, generator=generator) @ x[:8] / 8
    x[3, 8] = 7.0  # beyond the span of the others: the largest error if it is not in the basis
    matching = keep_unpredictable(x, partition_of(0.5, layout))
    assert set(range(8)).isdisjoint(matching.edge_index[0].tolist())


@ratios
def test_visiontrim_merges_around_what_the_text_asks(ratio: float) -> None:
    x, guidance, partition, text = features(LAYOUT)[0], heard(), partition_of(ratio), text_of()
    matching = complement(text, x, partition, guidance, LAYOUT)
    slots = partition.slots()
    level = dominant(choosing.of_slots(guidance, slots), x, slots, LAYOUT)
    words = text.by_token.double().softmax(dim=1)
    edges = dict(matching.edge_index.T.tolist())
    for window, (image, own) in enumerate(zip(IMAGES, kept(matching), strict=True)):
        number = max(1, round(len(own) / 4))
        order = sorted(range(len(image)), key=lambda n, w=window: -float(level[w, n]))
        stay = [image[n] for n in order[: len(own) - number]]
        rest = [n for n in image if n not in stay]
        wanted = text.by_token[rest].double().softmax(dim=0).mean(dim=1)
        centres = [rest[n] for n in wanted.argsort(descending=True)[:number].tolist()]
        assert sorted(stay + centres) == own
        for token in set(image) - set(own):
            agree = {centre: float(words[token] @ words[centre]) for centre in centres}
            assert edges[token] == max(agree, key=lambda n: agree[n])


def test_local_affinity_prefers_what_is_like_its_neighbours() -> None:
    layout = make_layout([[(5, 5)]])
    x = torch.ones(25, 4)
    x[12] = 9.0
    partition = partition_of(0.5, layout)
    level = local_affinity(x, partition.slots(), layout)[0, :25]
    assert int(level.argmin()) == 12
    assert float(level[0]) > float(level[6])  # a corner is no neighbour of the middle


@ratios
def test_visionzip_merges_into_even_targets(ratio: float) -> None:
    x, guidance, partition, tower = features(LAYOUT)[0], heard(), partition_of(ratio), tower_of()
    matching = dominant_and_contextual(tower, x, partition, guidance)
    edges = dict(matching.edge_index.T.tolist())
    keys = tower.keys.tolist()
    for image, own in zip(IMAGES, kept(matching), strict=True):
        number = max(1, round(len(own) * 10 / 64))
        order = sorted(image, key=lambda n: -float(guidance[n]))
        stay = order[: len(own) - number]
        others = [n for n in image if n not in stay]
        targets = [n for n in own if n not in stay]
        assert len(targets) == number
        assert set(stay) <= set(own)
        gaps = [others.index(n) for n in targets]
        gaps = [b - a for a, b in itertools.pairwise([-1, *gaps])]
        assert max(gaps) - min(gaps) <= 1
        for token in set(image) - set(own):
            assert edges[token] == max(targets, key=lambda n: cosine(keys[token], keys[n]))


# --- what they hear -----------------------------------------------------------------------------


@torch.no_grad()
def test_the_tower_is_heard_as_it_attends() -> None:
    model = tiny_llava(attention="eager")
    inputs = batch(prompt(2, "image", 3, "image", 4), prompt("image", 9, seed=2))
    tower = model.model.vision_tower
    pixels = inputs["pixel_values"]
    attention = tower(pixels, output_attentions=True).attentions[-1].mean(dim=1)[:, 0, 1:]
    budget = Budget.of(model, 0.6, 0)
    with METHODS["visionzip_like"].applied(model, budget) as applied:
        model(**inputs)
        stays = applied.handle.trace.kept().tolist()
        (stage,) = applied.handle.trace.stages
    number = len(stays) // 3
    dominant_ones = number - max(1, round(number * 10 / 64))
    for image, scores in enumerate(attention):
        best = scores.argsort(descending=True)[:dominant_ones] + 16 * image
        assert set(best.tolist()) <= set(stays)
    assert stage.layer == 0


@torch.no_grad()
def test_what_the_text_looks_for_is_its_attention() -> None:
    """Logits of text tokens become attention by a softmax, of one head at a time."""
    model = tiny_llava(attention="eager", text_options={"num_attention_heads": 1} | ONE_HEAD)
    inputs = batch(prompt(4, "image", 6), prompt("image", 3, seed=1))
    attention = model(**inputs, output_attentions=True).attentions[0][:, 0]
    method = METHODS["visiontrim_like"]
    budget = Budget.of(model, 0.6, 0)
    with method.applied(model, budget) as applied:
        model(**inputs)
        text = applied.handle.config.guidance
    assert isinstance(text, TextLogits)
    vision = inputs["input_ids"] == 120
    last = attention[:, -1]
    for sample, tokens in enumerate(text.by_token.split(16)):
        seen = last[sample][vision[sample]]
        column = tokens[:, 9 if sample == 0 else 2]
        torch.testing.assert_close(column.softmax(dim=0), seen / seen.sum())


ONE_HEAD = {"num_key_value_heads": 1}


def test_a_tower_without_attention_at_hand_is_refused() -> None:
    model = tiny_llava()
    model.config.vision_feature_layer = -3
    with (
        pytest.raises(lk.errors.UnsupportedInputError, match="before the 2 layers of the vision"),
        METHODS["visionzip_like"].applied(model, Budget.of(model, 0.6, 0)),
    ):
        pass


# --- windows ------------------------------------------------------------------------------------


@torch.no_grad()
def test_windowed_fastv_keeps_the_same_share_of_every_window() -> None:
    model = tiny_llava(attention="eager", side=8)
    inputs = batch(prompt(4, "image", 6, side=8), prompt("image", 9, side=8, seed=2), side=8)
    attention = model(**inputs, output_attentions=True).attentions[0].mean(1)
    budget = Budget.of(model, 0.58, 0)
    with METHODS["window_fastv"].applied(model, budget) as applied:
        model(**inputs)
        stays = set(applied.handle.trace.kept().tolist())
    vision = inputs["input_ids"] == 120
    for sample in range(2):
        score = attention[sample, -1][vision[sample]].reshape(4, 2, 4, 2)
        for row, col in itertools.product(range(4), range(4)):
            own = score[row, :, col].flatten().argsort(descending=True)[:2]
            cells = [(2 * row + n // 2) * 8 + 2 * col + n % 2 for n in own.tolist()]
            window = {(2 * row + a) * 8 + 2 * col + b for a in (0, 1) for b in (0, 1)}
            assert {n - 64 * sample for n in stays} & window == set(cells)


def test_windows_give_way_to_the_budget() -> None:
    assert windowed(8, 0.5, 0, (24, 24))[0].windows == 4
    assert windowed(8, 0.5, 0, (6, 6))[0].windows in (2, 4)
    assert windowed(8, 0.5, 0, (3, 3))[0].windows in (1, 2)
    assert windowed(8, 0.5, 0)[0].windows == 2
