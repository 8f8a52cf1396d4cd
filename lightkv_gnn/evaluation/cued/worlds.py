"""What there is to see and to ask: pictures with questions, drawn by chance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lightkv_gnn.evaluation.cued import words
from lightkv_gnn.evaluation.cued.drawing import (
    BACKGROUND,
    COLOURS,
    DIGITS,
    SHAPES,
    digit_code,
    object_code,
    patch_code,
)


@dataclass(frozen=True, eq=False)
class Lesson:
    """Pictures, and behind each of them questions in a row, every one followed by its answer.

    Attributes:
        codes: Of the cells of each sample's pictures, `[batch, image, cell]`.
        text: Ids of the words behind the pictures, `[batch, word]`.
        answer: Which of the words are answers, `[word]` bool.
        relevant: Cells that each question depends on, `[batch, question, image * cell]` bool.
        behind: Photographs behind the pictures, 0 to 1, `[batch, image, channel, row, column]`;
            None for black.
    """

    codes: Tensor
    text: Tensor
    answer: Tensor
    relevant: Tensor
    behind: Tensor | None = None


class World(ABC):
    """A kind of pictures with questions about them.

    Args:
        side: Cells per side of a picture.

    Raises:
        ValueError: Too few cells.
    """

    least: ClassVar[int] = 1

    def __init__(self, side: int) -> None:
        if side * side < self.least:
            raise ValueError(
                f"side is {side}: {type(self).__name__} needs {self.least} cells or more"
            )
        self.side = side

    @abstractmethod
    def draw(self, generator: Generator, batch: int) -> Lesson:
        """Draws pictures and as many questions as there are."""


class Objects(World):
    """Objects of different colours on distinct cells; a colour asks for its object's shape.

    Args:
        side: Cells per side of a picture.
        objects: In each of a sample's pictures, which come in random order.
    """

    least = len(COLOURS)

    def __init__(self, side: int, objects: tuple[int, ...] = (len(COLOURS),)) -> None:
        super().__init__(side)
        if sum(objects) > len(COLOURS):
            raise ValueError(f"objects are {objects}: there are {len(COLOURS)} colours for them")
        self.objects = objects

    def draw(self, generator: Generator, batch: int) -> Lesson:
        """Every object is asked for once, in random order."""
        cells, total = self.side**2, sum(self.objects)
        colour = _shuffled(generator, batch, len(COLOURS))[:, :total]
        shape = torch.randint(len(SHAPES), (batch, total), generator=generator)
        picture = _shuffled(generator, batch, len(self.objects))
        place = [
            picture[:, number, None] * cells + _shuffled(generator, batch, cells)[:, :count]
            for number, count in enumerate(self.objects)
        ]
        where = torch.cat(place, dim=1)
        codes = torch.full((batch, len(self.objects) * cells), BACKGROUND)
        codes.scatter_(1, where, object_code(colour, shape))
        order = _shuffled(generator, batch, total)
        asked = words.COLOUR + colour.gather(1, order)
        told = words.SHAPE + shape.gather(1, order)
        relevant = torch.nn.functional.one_hot(where.gather(1, order), codes.shape[1]).bool()
        return _in_turn(codes.unflatten(1, (-1, cells)), asked, told, relevant)


class Counting(World):
    """Cells filled with colours; a colour asks how many are of it.

    Every picture has ``colours`` colours, and each fills 1 to ``most`` cells.
    """

    colours: ClassVar[int] = 4
    most: ClassVar[int] = 4
    least = colours * most

    def draw(self, generator: Generator, batch: int) -> Lesson:
        """Every colour that is there is asked for once, in random order."""
        cells, most = self.side**2, self.most
        colour = _shuffled(generator, batch, len(COLOURS))[:, : self.colours]
        count = 1 + torch.randint(most, (batch, self.colours), generator=generator)
        filled = torch.arange(most) < count[:, :, None]
        where = _shuffled(generator, batch, cells)[:, : self.least]
        code = patch_code(colour)[:, :, None].expand_as(filled)
        codes = torch.full((batch, cells), BACKGROUND)
        codes.scatter_(1, where, code.where(filled, torch.tensor(BACKGROUND)).flatten(1))
        relevant = codes[:, None, :] == patch_code(colour)[:, :, None]
        return _in_turn(codes[:, None], words.COLOUR + colour, words.DIGIT + count, relevant)


class Digits(World):
    """A digit in every cell; one word asks for all of them, row by row."""

    def draw(self, generator: Generator, batch: int) -> Lesson:
        """One question, whose answer is as long as the picture has cells."""
        digit = torch.randint(len(DIGITS), (batch, self.side**2), generator=generator)
        text = torch.cat([torch.full((batch, 1), words.READ), words.DIGIT + digit], dim=1)
        answer = torch.arange(text.shape[1]) > 0
        relevant = torch.ones_like(digit, dtype=torch.bool)[:, None]
        return Lesson(digit_code(digit)[:, None], text, answer, relevant)


def _in_turn(codes: Tensor, asked: Tensor, told: Tensor, relevant: Tensor) -> Lesson:
    """A lesson of one-word questions and answers, each `[batch, question]`."""
    text = torch.stack([asked, told], dim=2).flatten(1)
    return Lesson(codes, text, torch.arange(text.shape[1]) % 2 == 1, relevant)


def _shuffled(generator: Generator, batch: int, count: int) -> Tensor:
    """Independent permutations, `[batch, count]`."""
    return torch.rand(batch, count, generator=generator).argsort(dim=1)
