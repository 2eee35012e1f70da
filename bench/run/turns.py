"""Whose turn it is: which parameters learn in each turn of a step, and what stands still meanwhile.

A parameter belongs to the part of the recipe whose prefix its name begins with, and otherwise to the recipe itself;
one that takes no gradient (a momentum copy) is nobody's. A buffer goes with the parameters of the innermost module
around it that has any, the method itself not counted: running statistics do, while a queue, a bank or a counter beside
the networks is nobody's and moves in every turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.spec import BenchError, Part, Recipe

Owner = Recipe | Part


@dataclass(frozen=True)
class Turn:
    """One turn of a step."""

    number: int
    loss: str  # key of what `training_step` returns
    optimizers: tuple[int, ...]  # places of those that step, the recipe's own being 0 and its parts 1, 2, ...
    frozen: tuple[nn.Parameter, ...]  # parameters of the other turns
    still: tuple[str, ...]  # names of the buffers of the other turns

    @contextmanager
    def alone(self, method: nn.Module) -> Iterator[None]:
        """Meanwhile the parameters of the other turns take no gradient; at the end their buffers are as before.

        The other side works as it is, in training mode: it normalises with the statistics of the batch, as adversaries
        do, and forgets that it saw it.
        """
        buffers = dict(method.named_buffers()) if self.still else {}
        kept = {name: buffers[name].clone() for name in self.still}
        for item in self.frozen:
            item.requires_grad_(False)
        try:
            yield
        finally:
            for item in self.frozen:
                item.requires_grad_(True)
            with torch.no_grad():
                for name, value in kept.items():
                    buffers[name].copy_(value)


def owners(method: nn.Module, recipe: Recipe, label: str) -> dict[str, Owner]:
    """Who optimises each parameter of `method` that takes a gradient, by its name.

    BenchError, naming the method by `label`, where a prefix fits no such parameter, one has two owners, or the
    recipe's own optimiser has none left.
    """
    names = [name for name, item in method.named_parameters() if item.requires_grad]
    for part in recipe.parts:
        for prefix in part.prefixes:
            if not any(name.startswith(prefix) for name in names):
                known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names)) or "nothing"
                raise BenchError(
                    f"the recipe of {label} has an optimiser for {prefix!r}, with which no parameter that learns "
                    f"begins; there are {known}"
                )
    found: dict[str, Owner] = {}
    for name in names:
        parts = [part for part in recipe.parts if name.startswith(part.prefixes)]
        if len(parts) > 1:
            raise BenchError(
                f"the recipe of {label} gives {name} to two optimisers, by {_begins(parts[0], name)!r} and by "
                f"{_begins(parts[1], name)!r}: a parameter has one"
            )
        found[name] = parts[0] if parts else recipe
    if recipe.parts and not any(owner is recipe for owner in found.values()):
        raise BenchError(
            f"the parts of the recipe of {label} leave its own optimiser nothing: make one of them its own"
        )
    return found


def _begins(part: Part, name: str) -> str:
    return next(prefix for prefix in part.prefixes if name.startswith(prefix))


def turns(method: nn.Module, recipe: Recipe, label: str) -> tuple[Turn, ...]:
    """The turns of a step in their order.

    BenchError, naming the method by `label`, where turns are not numbered 0, 1, ..., where optimisers of one turn
    minimise two losses, and where `owners` raises it.
    """
    everybody: tuple[Owner, ...] = (recipe, *recipe.parts)
    owner_of, parameters = owners(method, recipe, label), dict(method.named_parameters())
    numbers = sorted({owner.turn for owner in everybody})
    if numbers != list(range(len(numbers))):
        raise BenchError(f"the turns of the recipe of {label} are {', '.join(map(str, numbers))}, not 0, 1, and so on")
    made, buffer_turns = [], _buffer_turns(method, owner_of) if len(numbers) > 1 else {}
    for number in numbers:
        losses = list(dict.fromkeys(owner.loss for owner in everybody if owner.turn == number))
        if len(losses) > 1:
            raise BenchError(
                f"turn {number} of the recipe of {label} minimises {' and '.join(map(repr, losses))}: "
                "give each loss a turn of its own, or return their sum"
            )
        made.append(
            Turn(
                number,
                losses[0],
                tuple(at for at, owner in enumerate(everybody) if owner.turn == number),
                tuple(parameters[name] for name, owner in owner_of.items() if owner.turn != number),
                tuple(name for name, turn in buffer_turns.items() if turn != number),
            )
        )
    return tuple(made)


def _buffer_turns(method: nn.Module, owner_of: Mapping[str, Owner]) -> dict[str, int]:
    """The turn of every buffer that goes with parameters of one turn."""
    found = {}
    for name, _ in method.named_buffers():
        around = _around(name, owner_of)
        if len(around) == 1:
            found[name] = around.pop()
    return found


def _around(buffer: str, owner_of: Mapping[str, Owner]) -> set[int]:
    """The turns of the parameters of the innermost module around a buffer that has any; the method itself is none."""
    module = buffer.rpartition(".")[0]
    while module:
        inside = {owner.turn for name, owner in owner_of.items() if name.startswith(f"{module}.")}
        if inside:
            return inside
        module = module.rpartition(".")[0]
    return set()


def losses_of(found: Sequence[Mapping[str, Tensor]], made: Sequence[Turn]) -> dict[str, Tensor]:
    """What the turns of a step returned, as one: under the loss of a turn stands what that turn minimised."""
    every = {name: value for parts in found for name, value in parts.items()}
    return every | {turn.loss: parts[turn.loss] for turn, parts in zip(made, found, strict=True)}
