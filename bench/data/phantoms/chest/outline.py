"""Curves, and the pieces a chest is made of; centimetres, x to the image's right (the patient's left), y downwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.data.phantoms.drawing import Points, Reals

RIGHT, LEFT = -1.0, 1.0  # the patient's sides, as the sign of x
SIDES = (RIGHT, LEFT)
FLOOR = 40.0  # cm; below every film


@dataclass(frozen=True)
class Half:
    """One half of the chest."""

    side: float  # RIGHT or LEFT
    wall: Points  # inner chest wall, from the medial end of the apex to the costophrenic angle
    arch: Points  # diaphragm, from the costophrenic angle to the midline
    middle: Points  # (2,) on up the midline
    cage: Points  # `wall` and on to below the film

    @property
    def field(self) -> Points:
        """Outline of the whole half, the part behind the heart included."""
        return np.concatenate([self.wall, self.arch, self.middle])


@dataclass(frozen=True)
class Band:
    """A bone or tube: centre line and half width along it."""

    line: Points  # (N,)
    half: Reals  # (N,)


def curve(points: Points, per: int = 8) -> Points:
    """Catmull-Rom curve through `points`, `per` steps between two of them."""
    before, after = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    a, b, c, d = (np.concatenate([[before], points, [after]])[at : at + len(points) - 1, None] for at in range(4))
    t = np.arange(per) / per
    inner = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([inner.ravel(), points[-1:]])


def closed(points: Points, per: int = 8) -> Points:
    """The closed Catmull-Rom curve through `points`."""
    return curve(np.concatenate([points[-2:], points, points[:2]]), per)[2 * per : -2 * per]


def wobble(points: Points, amount: float, rng: np.random.Generator) -> Points:
    """The points, each moved by about `amount` cm."""
    return points + amount * (rng.standard_normal(len(points)) + 1j * rng.standard_normal(len(points)))


def on_side(side: float, line: Points) -> Points:
    """A line drawn for the patient's left, on either side."""
    return line if side == LEFT else -line.conj()


def width_at(half: Half, y: float) -> float:
    """Inner half width of the chest in cm at a height below the apex."""
    lateral = half.cage[int(half.cage.imag.argmin()) :]
    return float(np.interp(y, lateral.imag, np.abs(lateral.real)))
