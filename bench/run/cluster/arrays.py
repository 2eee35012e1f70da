"""From cells to job arrays: one per stage and need, cells grouped into tasks, transfers behind their pretrainings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.run.grid.profile import Cluster, Needs
from bench.spec import Cell, PretrainCell, TransferCell

WAVES = 8  # arrays that transfers with the same needs are spread over, so that few wait for a pretraining not theirs


@dataclass(frozen=True)
class Array:
    """One call of sbatch."""

    stage: str  # pretrain or transfer
    needs: Needs
    slots: int  # cells at a time in one job
    tasks: tuple[tuple[Cell, ...], ...]
    parents: tuple[str, ...] = ()  # keys of the pretrainings that have to end first

    @property
    def cells(self) -> list[Cell]:
        return [cell for task in self.tasks for cell in task]


def arrays_of(cells: Iterable[Cell], cluster: Cluster, running: Iterable[str] = (), ranks: int = 1) -> list[Array]:
    """The arrays of cells, pretrainings first.

    running: keys of pretrainings that are in the queue already. ranks: devices that one pretraining has to itself.
    """
    trainings: dict[Needs, list[PretrainCell]] = {}
    transfers: dict[Needs, list[TransferCell]] = {}
    for cell in cells:
        if isinstance(cell, PretrainCell):
            trainings.setdefault(cluster.needs_of(cell), []).append(cell)
        else:
            transfers.setdefault(cluster.needs_of(cell), []).append(cell)
    found = []
    for needs, wanted in trainings.items():
        longest_first = sorted(wanted, key=lambda cell: -cell.steps * cell.batch_size * cell.image_size**2)
        slots = max(1, needs.slots // ranks)
        found.append(Array(PretrainCell.kind, needs, slots, _deal(longest_first, slots, cluster.array_size)))
    ahead = {cell.key for wanted in trainings.values() for cell in wanted} | set(running)
    for needs, children in transfers.items():
        found += _transfers(children, needs, cluster.array_size, ahead)
    return found


def _transfers(cells: Sequence[TransferCell], needs: Needs, size: int, ahead: set[str]) -> list[Array]:
    free = [cell for cell in cells if cell.pretrain.key not in ahead]
    families: dict[str, list[TransferCell]] = {}
    for cell in cells:
        if cell.pretrain.key in ahead:
            families.setdefault(cell.pretrain.key, []).append(cell)
    slots = needs.slots
    found = [Array(TransferCell.kind, needs, slots, _deal(free, slots, size))] if free else []
    parents = list(families)
    for wave in range(min(WAVES, len(parents))):
        own = parents[wave::WAVES]
        children = [cell for key in own for cell in families[key]]
        found.append(Array(TransferCell.kind, needs, slots, _deal(children, slots, size), tuple(own)))
    return found


def _deal(cells: Sequence[Cell], slots: int, size: int) -> tuple[tuple[Cell, ...], ...]:
    """Cells over at most `size` tasks in turn; where cells run side by side in a job, as many to each as do so."""
    each = max(slots, math.ceil(len(cells) / size))
    count = math.ceil(len(cells) / each)
    return tuple(tuple(cells[start::count]) for start in range(count))


def gpu_hours(arrays: Iterable[Array], seconds: Mapping[str, float | None]) -> float:
    """GPU-hours that arrays may take: by what cells like theirs took, else up to their time limit.

    seconds: key of a cell -> what it should take; None where nothing like it was measured.
    """
    total = 0.0
    for array in arrays:
        limit = array.needs.minutes * 60.0
        for task in array.tasks:
            known = [seconds.get(cell.key) for cell in task]
            measured = [item for item in known if item is not None]
            took = sum(measured) / array.slots if len(measured) == len(known) else limit
            total += min(took, limit) * array.needs.gpus / 3600
    return total
