"""What is compared: this library's step, and references written for the comparison."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightkv_gnn.bench.cases import StageCase
from lightkv_gnn.choices import ScatterName
from lightkv_gnn.stage.compressor import TokenCompressor
from lightkv_gnn.stage.guidance import prompt_guidance

Step = Callable[[], Tensor]
"""Returns the survivors' features, `[survivor, channel]`."""


class NoGPUError(ValueError):
    """A subject runs on a GPU alone."""


Subject = Callable[[StageCase], Step]
"""Prepares a step; what it makes ready is not timed."""


def ours(case: StageCase) -> Step:
    """This library with the paper's matching: guidance, then one stage."""
    return _ours(case, TokenCompressor())


def coverage(case: StageCase) -> Step:
    """This library with its default matching, coverage."""
    return _ours(case, TokenCompressor(matcher="coverage_matching"))


def triton(case: StageCase, matcher: str = "cosine_matching") -> Step:
    """The first of these with its Triton kernels; needs a GPU, or Triton's interpreter."""
    compressor = TokenCompressor(matcher=matcher, scatter="triton")
    try:
        compressor.scatter.check_device(case.device)
    except ValueError as error:
        raise NoGPUError(str(error)) from error
    return _ours(case, compressor)


def coverage_triton(case: StageCase) -> Step:
    """The second with its kernels."""
    return triton(case, "coverage_matching")


def _ours(case: StageCase, compressor: TokenCompressor) -> Step:
    def step() -> Tensor:
        shares = compressor.scatter.text_shares
        weight = prompt_guidance(case.block, "text_to_vision", shares).weight.reshape(-1)[case.flat]
        return compressor(case.features, case.layout, case.plan, weight).hidden_states

    return step


def compiled(case: StageCase, backend: str = "inductor") -> Step:
    """This library's tensors alone, compiled whole; what the compiler takes is not timed."""
    torch.compiler.reset()  # there is a limit to what is compiled for one function
    step = torch.compile(_tensors(case), fullgraph=True, dynamic=False, backend=backend)
    step()
    return step


def graphed(case: StageCase) -> Step:
    """This library's tensors alone, with the kernels, replayed as one CUDA graph."""
    if case.device.type != "cuda":
        raise NoGPUError(f"a CUDA graph needs a GPU: this case is on {case.device}")
    step = _tensors(case, "triton")
    beside, graph = torch.cuda.Stream(case.device), torch.cuda.CUDAGraph()
    beside.wait_stream(torch.cuda.current_stream(case.device))
    with torch.cuda.stream(beside):
        for _ in range(3):  # libraries get ready, and sizes to the device, before the capture
            step()
    torch.cuda.current_stream(case.device).wait_stream(beside)
    with torch.cuda.device(case.device), torch.cuda.graph(graph):
        out = step()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _tensors(case: StageCase, scatter: ScatterName = "torch") -> Step:
    """Guidance, matching and means, without graph objects around them."""
    compressor = TokenCompressor(scatter=scatter)
    layout, plan, x = case.layout, case.plan, case.features
    block, flat = case.block, case.flat
    shares = compressor.scatter.text_shares

    def step() -> Tensor:
        weight = prompt_guidance(block, "text_to_vision", shares).weight.reshape(-1)[flat]
        return compressor.means(x, compressor.merges(x, layout, plan, weight))

    return step


def lean(case: StageCase) -> Step:
    """The same mathematics in padded dense torch, without graphs.

    A matrix of similarities for each padded window, and a softmax over the vision tokens for the
    rows of the text alone.  Windows and counts are made ready beforehand.
    """
    dense = _Dense(case)

    def step() -> Tensor:
        block = case.block
        logits = block.text_query.float() @ block.vision_key.float().transpose(2, 3)
        return dense.merged(dense.weights(logits * block.scaling))

    return step


def full_logits(case: StageCase) -> Step:
    """As ``lean``, but from the logits of the whole sequence with itself."""
    dense = _Dense(case)

    def step() -> Tensor:
        block = case.block
        logits = block.query.float() @ block.key.float().transpose(2, 3) * block.scaling
        batch = torch.arange(len(logits), device=logits.device)[:, None, None]
        rows = logits[batch, :, block.text[:, :, None], block.vision[:, None, :]]
        return dense.merged(dense.weights(rows.permute(0, 3, 1, 2)))

    return step


def floor(case: StageCase) -> Step:
    """Every token is read once, and every survivor written once; nothing is computed."""
    kept = len(case.layout) - case.plan.total

    def step() -> Tensor:
        return torch.add(case.features[:kept], case.features[-kept:])

    return step


class _Dense:
    """Padded windows of a case, and the steps that both dense references share."""

    def __init__(self, case: StageCase) -> None:
        self.case = case
        tokens, side = len(case.layout), case.windows
        size = torch.tensor(case.grids)[case.layout.image.cpu()]
        row, col = case.layout.row.cpu(), case.layout.col.cpu()
        piece = (row * side // size[:, 0]) * side + col * side // size[:, 1]
        window = case.layout.image.cpu() * side**2 + piece
        number = torch.bincount(window, minlength=case.batch * side**2)
        width = int(number.max() + number.max() % 2)
        slots = torch.full((len(number), width), tokens)
        for own in range(len(number)):
            slots[own, : number[own]] = (window == own).nonzero()[:, 0]
        self.slots = slots.to(case.device)
        self.leave = (number // 2)[:, None].to(case.device)
        self.empty = self.slots == tokens

    def weights(self, logits: Tensor) -> Tensor:
        """Weight of each token from logits `[batch, head, text, vision]`."""
        hidden = logits.masked_fill(~self.case.block.vision_mask[:, None, None, :], -torch.inf)
        return hidden.softmax(dim=3).sum(dim=(1, 2)).reshape(-1)[self.case.flat]

    def merged(self, weight: Tensor) -> Tensor:
        """Survivors' features, `[survivor, channel]`."""
        x = self.case.features.float()
        tokens, channels = x.shape
        padded = torch.cat([x, x.new_zeros(1, channels)])[self.slots]
        unit = normalize(padded, dim=2)
        similar = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
        similar = similar.masked_fill(self.empty[:, None, 1::2], -torch.inf)
        best, nearest = similar.max(dim=2)
        best = best.masked_fill(self.empty[:, 0::2], -torch.inf)
        rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        goes = rank < self.leave
        into = torch.arange(padded.shape[1], device=x.device).expand(len(padded), -1).clone()
        into[:, 0::2] = torch.where(goes, 2 * nearest + 1, into[:, 0::2])
        share = torch.cat([weight, weight.new_zeros(1)])[self.slots]
        total = torch.zeros_like(share).scatter_add_(1, into, share)
        start = torch.arange(len(padded), device=x.device)[:, None] * padded.shape[1]
        spoken = (padded * share[:, :, None]).flatten(0, 1)
        mean = torch.zeros_like(spoken).index_add_(0, (start + into).flatten(), spoken)
        mean = mean.view_as(padded) / total[:, :, None]
        stays = ~self.empty
        stays[:, 0::2] &= ~goes
        flat = x.new_empty(tokens + 1, channels)
        flat[self.slots] = mean
        kept = torch.zeros(tokens + 1, dtype=torch.bool, device=x.device)
        kept[self.slots] = stays
        order = (~kept[:-1]).to(torch.uint8).argsort(stable=True)
        return flat[order[: tokens - self.case.plan.total]].to(self.case.dtype)


SUBJECTS: dict[str, Subject] = {
    "ours": ours,
    "coverage": coverage,
    "lean": lean,
    "full_logits": full_logits,
    "floor": floor,
    "triton": triton,
    "coverage_triton": coverage_triton,
    "compiled": compiled,
    "graphed": graphed,
}
"""By name."""

USUAL = ("ours", "coverage", "lean", "full_logits", "floor")
"""Those that run everywhere without a compiler."""


def subject_of(name: str) -> Subject:
    """One of :data:`SUBJECTS`, or ``module:function``, a :data:`Subject` of one's own.

    Raises:
        ValueError: No such name.
        ImportError: The module cannot be imported, or has no such function.
    """
    if name in SUBJECTS:
        return SUBJECTS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"subject {name!r}: expected {', '.join(SUBJECTS)} or module:function")
    found = getattr(import_module(module), attribute, None)
    if not callable(found):
        raise ImportError(f"{module} has no function {attribute}")
    return found
