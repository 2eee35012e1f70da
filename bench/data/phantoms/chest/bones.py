"""Spine, ribs, clavicles, shoulder blades and upper arms."""

from __future__ import annotations

import numpy as np

from bench.data.phantoms.chest.outline import SIDES, Band, Half, closed, curve, on_side, width_at, wobble
from bench.data.phantoms.drawing import Points

RIBS = 11
CLAVICLE = ([1.7, 2.1, 3.0, 6.0, 11.0, 15.8, 16.6], [0.7, 1.0, 0.92, 0.62, 0.66, 0.85, 0.45])  # half width at x, cm
_BLADE = ((10.6, -8.6), (10.9, -5.0), (11.9, -0.5), (13.0, 4.2), (13.7, 4.5), (14.3, 2.0), (15.0, -2.5), (15.9, -6.0))
BLADE = np.array([complex(*point) for point in (*_BLADE, (16.3, -7.6), (15.0, -9.3), (12.6, -9.4))])
_HUMERUS = ((17.4, -8.6), (19.2, -9.4), (20.9, -8.4), (21.4, -6.0), (21.2, -2.0), (24.6, 30.0), (22.2, 30.0))
HUMERUS = np.array([complex(*point) for point in (*_HUMERUS, (18.9, -2.0), (17.2, -5.2), (16.7, -7.0))])


def spine(rng: np.random.Generator) -> Points:
    y = np.linspace(-22.0, 26.0, 49)
    bend = rng.normal(0.0, 0.35) * np.sin((y + 8.0) / 11.0) + rng.normal(0.0, 0.15) * np.cos(y / 6.0)
    return bend + 1j * y


def clavicles(halves: tuple[Half, Half], turned: float, portable: bool, rng: np.random.Generator) -> tuple[Band, Band]:
    """An S each, from the breastbone to the shoulder; in bed they lie higher and flatter."""
    lift = rng.normal(0.0, 0.5) - 1.0 * portable
    slope = rng.normal(1.0, 0.18) * (0.75 if portable else 1.0)
    bands = []
    for half in halves:
        steep = slope * rng.normal(1.0, 0.1)
        line = np.array([1.7, 3.2 - 0.35j, 5.6 - 1.35j, 8.4 - 2.6j, 11.2 - 3.3j, 13.8 - 3.2j, 16.6 - 3.5j])
        line = line.real + 1j * (line.imag * steep - 6.5 + lift + rng.normal(0.0, 0.15))
        line = curve(wobble(line, 0.08, rng))
        width = np.interp(line.real, *CLAVICLE) * rng.normal(0.95, 0.06)
        bands.append(Band(on_side(half.side, line) + turned, width))
    return bands[0], bands[1]


def ribs(halves: tuple[Half, Half], rng: np.random.Generator) -> tuple[tuple[Band, ...], tuple[Band, ...]]:
    """Each rib is a tilted ring seen from the front: its back the upper arc, its front the lower one."""
    number = np.arange(RIBS)
    pitch = rng.normal(2.2, 0.05)
    joint = -9.9 + pitch * number + 0.06 * rng.standard_normal(RIBS)
    rise = np.interp(number, [0, 1, 2, 4, 10], [1.2, 2.6, 3.5, 4.4, 5.6]) * rng.normal(1.0, 0.1)
    drop = np.interp(number, [0, 1, 2, 4, 10], [1.5, 2.8, 3.9, 5.0, 5.4]) * rng.normal(1.0, 0.1)
    end = np.interp(number, [0, 1, 5, 10], [3.6, 4.8, 6.2, 11.5])
    out = np.sin(np.linspace(0.0, np.pi / 2, 16))  # from the spine to the side
    bow = 1.0 - np.sqrt(1.0 - out**2)
    posterior: list[Band] = []
    anterior: list[Band] = []
    for half in halves:
        for at in range(RIBS):
            side = joint[at] + rise[at]
            reach = width_at(half, side) * (0.80, 0.93, *[1.0] * (RIBS - 2))[at] - 0.1
            across = 3.2 + (reach - 3.2) * out
            neck = np.array([complex(1.3, joint[at] + 0.45), complex(2.2, joint[at] + 0.12)])
            upper = np.concatenate([neck, across + 1j * (joint[at] + rise[at] * (0.5 * out + 0.5 * bow))])
            lower = (across + 1j * (side + drop[at] * (0.45 * (1.0 - out) + 0.55 * (1.0 - bow))))[::-1]
            lower = lower[lower.real > end[at] * rng.normal(1.0, 0.05)]
            slim = 0.8 if at == 0 else 1.0
            for line, band, broad in ((upper, posterior, (0.44, 0.54)), (lower, anterior, (0.58, 0.74))):
                if len(line) < 3:
                    continue
                bone = Band(on_side(half.side, line), slim * np.linspace(*broad, len(line)))
                band.append(bone)
    return tuple(posterior), tuple(anterior)


def blades(portable: bool, rng: np.random.Generator) -> tuple[Points, ...]:
    """Shoulder blades: turned off the lungs on an upright film, over them in bed."""
    blades = []
    for side in SIDES:
        out = rng.normal(0.9, 0.5) - 2.3 * portable
        outline = closed(wobble(BLADE, 0.15, rng), 5) + out + 1j * rng.normal(0.0, 0.4)
        blades.append(on_side(side, outline))
    return tuple(blades)


def humeri(rng: np.random.Generator) -> tuple[Points, ...]:
    humeri = []
    for side in SIDES:
        out = rng.normal(0.0, 0.4)
        outline = closed(HUMERUS, 5) + out
        humeri.append(on_side(side, outline))
    return tuple(humeri)
