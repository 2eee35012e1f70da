"""What fills and befalls the lungs: pulmonary vessels, air beside a collapsed lung, nodules, clouding; and devices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.data.phantoms.chest.anatomy import Anatomy, Camera
from bench.data.phantoms.chest.outline import LEFT, RIGHT, SIDES, Half, curve, on_side
from bench.data.phantoms.drawing import Points, Reals

GENERATIONS = 6


@dataclass(frozen=True)
class Vessels:
    """One generation of branches of equal calibre."""

    lines: Points  # (N, K)
    width: float  # cm


@dataclass(frozen=True)
class Collapse:
    """Air between chest wall and lung."""

    half: Half
    outer: Points  # (N,) along the chest wall
    inner: Points  # (N,) the pleural line
    gap: Reals  # (N,) width of the air as share of the way to the hilum


@dataclass(frozen=True)
class Discs:
    """Roundish densities."""

    centre: Points  # (N,)
    radius: Reals  # (N,) cm
    strength: Reals  # (N,) in [0, 1]


@dataclass(frozen=True)
class Findings:
    """What this film shows besides anatomy."""

    collapse: Collapse | None
    nodules: Discs
    opacities: Discs
    cables: tuple[Points, ...]
    pads: Points  # electrodes
    tubes: tuple[Points, ...]


def grow_vessels(rng: np.random.Generator, anatomy: Anatomy) -> list[Vessels]:
    """Arteries and veins from the hila outwards; a parent goes on in one child and gives off another on its way."""
    start, heading = [], []
    for side, hilum in zip(SIDES, anatomy.hila, strict=True):
        angle = np.deg2rad(np.array([-76, -55, -32, -8, 18, 40, 60, 76]) + rng.normal(0.0, 6.0, 8))
        ray = np.cos(angle) + 1j * np.sin(angle)
        heading.append(on_side(side, ray))
        offset = complex(0.2 * side, 0.0) + 1j * np.linspace(-1.2, 1.6, 8)
        start.append(hilum + offset)
    place, ahead = np.concatenate(start), np.concatenate(heading)
    length, width = 2.3, 0.5
    grown = []
    for _ in range(GENERATIONS):
        count = len(place)
        bend = np.cumsum(0.12 * rng.standard_normal((count, 6)) + 0.06 * rng.standard_normal((count, 1)), axis=1)
        steps = ahead[:, None] * np.exp(1j * bend) * (length * rng.uniform(0.6, 1.4, (count, 1)) / 6)
        lines = place[:, None] + np.concatenate([np.zeros((count, 1)), np.cumsum(steps, axis=1)], axis=1)
        grown.append(Vessels(lines, width))
        tip = steps[:, -1] / np.abs(steps[:, -1])
        away = rng.choice([-1.0, 1.0], count)
        fork = lines[np.arange(count), rng.integers(2, 6, count)]
        first = tip * np.exp(-1j * away * np.deg2rad(rng.uniform(2, 18, count)))
        second = tip * np.exp(1j * away * np.deg2rad(rng.uniform(25, 60, count)))
        place, ahead = np.concatenate([lines[:, -1], fork]), np.concatenate([first, second])
        length, width = 0.9 * length, 0.72 * width
    return grown


def find(rng: np.random.Generator, anatomy: Anatomy, lens: Camera) -> Findings:
    """The findings of one film; every kind has random numbers of its own."""
    streams = rng.spawn(4)
    cables, pads, tubes = _devices(streams[3], lens)
    return Findings(
        collapse=_collapse(streams[0], anatomy, lens),
        nodules=_discs(streams[1], lens.nodules, (0.35, 1.3), (0.35, 0.9), anatomy),
        opacities=_discs(streams[2], lens.opacities, (1.4, 3.8), (0.3, 0.8), anatomy),
        cables=tuple(cables),
        pads=np.array(pads, dtype=complex),
        tubes=tuple(tubes),
    )


def _collapse(rng: np.random.Generator, anatomy: Anatomy, lens: Camera) -> Collapse | None:
    """Air over the apex, along the side, or around a lung that has shrunk to its hilum."""
    present = bool(rng.random() < lens.pneumothorax)
    at = int(rng.random() < 0.46)
    kind = rng.choice(["apical", "lateral", "total"], p=[0.55, 0.3, 0.15])
    half, hilum = anatomy.halves[at], anatomy.hila[at]
    outer = np.concatenate([half.wall, half.arch]) if kind == "total" else half.wall
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(outer)))])
    along = along / along[-1]
    if kind == "apical":
        reach = rng.uniform(0.45, 0.95)
        gap = rng.uniform(0.14, 0.5) * np.clip(1.0 - (along / reach) ** 2, 0.0, None) ** 0.7
        gap *= np.sin(0.5 * np.pi * np.clip(along / 0.12, 0.0, 1.0))
    elif kind == "lateral":
        first = rng.uniform(0.05, 0.25)
        share = np.clip((along - first) / (0.97 - first), 0.0, 1.0)
        gap = rng.uniform(0.12, 0.38) * np.sin(np.pi * share ** rng.uniform(0.7, 1.2)) ** 0.8
    else:
        gap = rng.uniform(0.5, 0.78) * np.sin(np.pi * np.clip(along, 0.0, 1.0)) ** 0.35
    wave = rng.normal(0.0, 0.05, 3) @ np.sin(np.pi * np.arange(2, 5)[:, None] * along)
    gap = np.clip(gap * (1.0 + wave), 0.0, 0.85)
    target = hilum + complex(0.8 * half.side, 0.8)
    inner = _even(outer + gap * (target - outer), 3 if kind != "total" else 10)
    return Collapse(half, outer, inner, gap) if present else None


def _even(line: Points, reach: int) -> Points:
    """The line without corners: each point the mean of `reach` neighbours on either side."""
    padded = np.pad(line, reach, mode="edge")
    return np.convolve(padded, np.full(2 * reach + 1, 1.0 / (2 * reach + 1)), mode="valid")


def _discs(
    rng: np.random.Generator,
    mean: float,
    radius: tuple[float, float],
    strength: tuple[float, float],
    anatomy: Anatomy,
) -> Discs:
    """Places within the lungs, drawn between chest wall and hilum."""
    count = int(rng.poisson(mean))
    side = rng.integers(0, 2, count)
    up, out = rng.uniform(0.12, 0.95, count), rng.uniform(0.1, 0.95, count)
    walls = [anatomy.halves[at].wall for at in side]
    edge = np.array([wall[int(share * (len(wall) - 1))] for wall, share in zip(walls, up, strict=True)], dtype=complex)
    centre = edge + out * (anatomy.hila[side] - edge)
    return Discs(centre, rng.uniform(*radius, count), rng.uniform(*strength, count))


def _devices(rng: np.random.Generator, lens: Camera) -> tuple[list[Points], list[complex], list[Points]]:
    """Cables of the monitor, their electrodes; tubes in airway and stomach, lines in the caval vein."""
    cables, pads, tubes = [], [], []
    for _ in range(int(rng.poisson(lens.devices))):
        kind = rng.choice(["cable", "airway", "line", "gastric"], p=[0.55, 0.15, 0.2, 0.1])
        if kind == "cable":
            pad = complex(rng.uniform(-14.0, 14.0), rng.uniform(-8.0, 14.0))
            end = complex(20.0 * rng.choice([RIGHT, LEFT]), rng.uniform(-12.0, 18.0))
            sag = 2.2 * (rng.standard_normal(4) + 1j * rng.standard_normal(4)) * [0, 1, 1, 0]
            cables.append(curve(pad + (end - pad) * np.array([0.0, 0.3, 0.65, 1.0]) + sag))
            pads.append(pad)
        elif kind == "airway":
            tubes.append(curve(np.array([0.5 - 20.0j, 0.1 - 11.0j, 0.2 - rng.uniform(2.0, 5.0) * 1j])))
        elif kind == "line":
            way = [-9.0 - 14.0j, -4.6 - 10.5j, -2.6 - 7.0j, -2.2 - 3.0j, complex(-2.2, rng.uniform(-1.0, 3.0))]
            tubes.append(curve(np.array(way)))
        else:
            tubes.append(curve(np.array([0.6 - 20.0j, 0.4 - 8.0j, 0.9 + 2.0j, 1.6 + 10.0j, 5.5 + 13.5j, 6.5 + 16.0j])))
    return cables, pads, tubes
