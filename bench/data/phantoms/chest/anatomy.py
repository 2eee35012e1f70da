"""The chest before the film.

The origin lies on the spine at the level of the carina. Proportions of an adult's film in deep inspiration: apices
11 cm above the carina, the right dome 11 cm below it and 1.3 cm above the left one, ten posterior ribs over the lungs,
a heart that takes 45 % of the chest's inner width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.data.phantoms.chest import bones
from bench.data.phantoms.chest.outline import (
    FLOOR,
    LEFT,
    RIGHT,
    SIDES,
    Band,
    Half,
    closed,
    curve,
    on_side,
    width_at,
    wobble,
)
from bench.data.phantoms.drawing import Points, Settings


@dataclass(frozen=True)
class Camera(Settings):
    """How a film is taken and whose chest it shows; gains and amounts have no unit."""

    modality: ClassVar[str] = "chest"

    field: float = 36.0  # cm across the image
    height: float = 1.0  # height over width of the field; the film is squashed to a square
    jitter: float = 0.7  # cm, standard deviation of the pointing
    roll: float = 1.2  # degrees, standard deviation of the tilt
    portable: float = 0.0  # chance of a film taken in bed: large heart, high domes, shoulder blades over the lungs
    build: float = 1.0  # thickness of the soft tissue
    inspiration: float = 0.0  # cm by which both domes stand lower
    heart: float = 1.0  # width of the heart
    breasts: float = 0.35  # chance
    pneumothorax: float = 0.0  # chance
    nodules: float = 0.0  # mean number
    opacities: float = 0.0  # mean number of clouded areas
    devices: float = 0.0  # mean number of cables and tubes
    markings: float = 1.0  # contrast of the pulmonary vessels
    bones: float = 1.0  # contrast of the bones
    exposure: float = 1.0
    contrast: float = 1.0
    enhance: float = 0.0  # local contrast added by the digital system
    scatter: float = 0.15  # share of veiling radiation
    uneven: float = 0.05  # slope of the exposure over the film
    blur: float = 0.0012  # standard deviation as share of the image side
    noise: float = 0.012  # standard deviation, image range 1
    collimation: float = 0.0  # chance that a border of the film is unexposed
    marker: float = 0.6  # chance of a letter that names the side


@dataclass(frozen=True)
class Anatomy:
    """One chest."""

    portable: bool
    female: bool
    halves: tuple[Half, Half]  # right, left
    body: tuple[Points, ...]  # torso with neck and shoulders, arms
    mediastinum: tuple[Points, ...]
    heart: Points
    hila: Points  # (2,) right, left
    spine: Points  # centre line from top to bottom
    airway: tuple[Band, ...]
    clavicles: tuple[Band, Band]
    posterior: tuple[Band, ...]
    anterior: tuple[Band, ...]
    blades: tuple[Points, ...]
    humeri: tuple[Points, ...]
    gas: tuple[Points, ...]  # stomach and bowel
    breasts: tuple[Points, ...]
    stretch: tuple[float, float]  # how wide and tall the patient is


def build_chest(rng: np.random.Generator, lens: Camera) -> Anatomy:
    """A chest; the same numbers are drawn whatever the camera, so one patient keeps the bones under every camera."""
    chances = rng.random(2)
    portable, female = bool(chances[0] < lens.portable), bool(chances[1] < lens.breasts)
    wide, tall = np.clip(rng.normal([0.95 if female else 1.0, 0.95 if female else 1.0], 0.05), 0.84, 1.12)
    depth = lens.inspiration + rng.normal(0.0, 0.7) - 1.8 * portable
    right = 11.0 + depth + rng.normal(0.0, 0.3)
    left = right + np.clip(rng.normal(1.3, 0.45), -0.2, 2.6)
    halves = (_half(RIGHT, right, rng), _half(LEFT, left, rng))
    turned = rng.normal(0.0, 0.25)  # cm that the front is turned against the spine
    ratio = float(np.clip(rng.normal(0.43, 0.032) * lens.heart + 0.07 * portable, 0.34, 0.62))
    heart = _heart(ratio, 0.5 * (right + left), halves, turned, rng)
    spine = bones.spine(rng)
    posterior, anterior = bones.ribs(halves, rng)
    clavicles = bones.clavicles(halves, turned, portable, rng)
    return Anatomy(
        portable=portable,
        female=female,
        halves=halves,
        body=_body(halves, lens.build * rng.uniform(0.7, 1.5), clavicles, rng),
        mediastinum=_mediastinum(heart, turned, portable, rng),
        heart=heart,
        hila=np.array([-3.4 + 2.4j, 3.7 + 1.3j]) + turned + wobble(np.zeros(2), 0.25, rng),
        spine=spine,
        airway=_airway(turned, rng),
        clavicles=clavicles,
        posterior=posterior,
        anterior=anterior,
        blades=bones.blades(portable, rng),
        humeri=bones.humeri(rng),
        gas=_gas(left, rng),
        breasts=_breasts(female, rng),
        stretch=(float(wide), float(tall)),
    )


def _half(side: float, dome: float, rng: np.random.Generator) -> Half:
    """`dome`: cm from the carina down to the diaphragm."""
    angle = dome + 3.9 + 0.35 * rng.standard_normal() - (0.7 if side == LEFT else 0.0)
    low = angle + 11.0
    barrel = rng.normal(0.0, 0.35)
    wall = [2.5 - 9.0j, 3.3 - 10.4j, 4.9 - 11.0j, 6.9 - 10.1j, 8.9 - 7.8j, 10.6 - 4.7j, 12.0 - 0.6j]
    wall += [complex(12.9 + barrel, 0.2 * low - 0.8), complex(13.6 + barrel, 0.45 * low - 2.6)]
    wall += [complex(13.9 + 0.7 * barrel, 0.75 * low - 7.6)]
    points = np.array([*wall, complex(13.9 + 0.6 * barrel, angle)])
    points[:-1] = wobble(points[:-1], 0.13, rng)
    points = points - (0.35 if side == LEFT else 0.0)
    end = points[-1]
    out = np.array([0.0, -1.5, -3.5]) + end.real
    heights = np.array([end.imag, dome + 2.3, dome + 0.8, dome, dome + 0.3, dome + 1.5])
    arch = np.concatenate([out, [7.6, 4.8, 1.9]]) + 1j * heights
    arch[1:] += 1j * 0.15 * rng.standard_normal(5)
    skirt = np.array([end, complex(end.real + 0.1, end.imag + 4.0), complex(end.real - 0.6, FLOOR)])
    wall_line, middle = curve(points), np.array([2.0 + 1j * (dome + 1.5), 1.9 - 5.0j])
    lines = (wall_line, curve(arch)[1:], middle, np.concatenate([wall_line, skirt]))
    return Half(side, *(on_side(side, line) for line in lines))


def _heart(ratio: float, dome: float, halves: tuple[Half, Half], turned: float, rng: np.random.Generator) -> Points:
    """Outline from the right upper corner: right atrium, diaphragm, apex, left ventricle, great vessels."""
    inner = width_at(halves[0], dome) + width_at(halves[1], dome)
    across = ratio * inner
    right, left = -across * rng.normal(0.335, 0.03), across * rng.normal(0.665, 0.03)
    scale = across / (left - right)
    right, left = right * scale + turned, left * scale + turned
    top, bottom = rng.normal(0.6, 0.35), dome + rng.normal(0.7, 0.3)
    tall = bottom - top
    droop = rng.normal(0.0, 0.05)  # of the apex
    shape = np.array(
        [
            complex(-2.5 + turned, top + 0.06 * tall),
            complex(right * 0.86, top + 0.27 * tall),
            complex(right, top + 0.53 * tall),
            complex(right * 0.93, top + 0.78 * tall),
            complex(right * 0.62, top + 0.93 * tall),
            complex(0.5, top + 1.0 * tall),
            complex(left * 0.55, top + (1.04 + droop) * tall),
            complex(left * 0.90, top + (0.99 + droop) * tall),
            complex(left, top + (0.84 + droop) * tall),
            complex(left * 0.90, top + 0.60 * tall),
            complex(left * 0.68, top + 0.36 * tall),
            complex(left * 0.47, top + 0.17 * tall),
            complex(3.2 + turned, top + 0.02 * tall),
            complex(0.4 + turned, top - 0.06 * tall),
        ]
    )
    return closed(wobble(shape, 0.1, rng))


def _mediastinum(heart: Points, turned: float, portable: bool, rng: np.random.Generator) -> tuple[Points, ...]:
    """What hides the lungs in the middle besides the heart: vessels and airways above, the shadow below the heart."""
    wide = rng.normal(1.0, 0.08) * (1.12 if portable else 1.0)
    knob = rng.normal(0.0, 0.3)
    left = [2.2 - 24.0j, 2.1 - 13.0j, 2.2 - 10.0j, 2.4 - 7.8j, 2.8 - 6.0j, 3.5 + knob - 4.9j, 3.8 + knob - 3.7j]
    left += [3.6 + knob - 2.6j, 3.2 - 1.5j, 3.2 - 0.4j, 3.6 + 0.8j, 3.8 + 2.2j, 3.4 + 4.0j]
    right = [-2.9 + 4.0j, -3.0 + 2.4j, -2.9 + 0.4j, -2.9 - 1.6j, -2.75 - 4.0j, -2.5 - 7.0j, -2.3 - 10.5j, -2.2 - 24.0j]
    upper = [curve(wobble(np.array(border), 0.07, rng) * [complex(wide)]) + turned for border in (left, right)]
    low, high = 0.93 * heart.real.min(), 0.95 * heart.real.max()
    floor = heart[heart.imag > heart.imag.mean()]
    left_end, right_end = floor[np.abs(floor.real - high).argmin()], floor[np.abs(floor.real - low).argmin()]
    below = np.array([left_end, complex(high, FLOOR), complex(low, FLOOR), right_end])
    return (np.concatenate([upper[0], [0.6 * heart.mean()], upper[1]]), below)


def _airway(turned: float, rng: np.random.Generator) -> tuple[Band, ...]:
    """Trachea and main bronchi; the right one is steeper."""
    fork = complex(0.3 + turned, rng.normal(0.0, 0.25))
    trachea = curve(np.array([-26.0j, -9.0j + 0.1, fork - 4.0j + 0.25, fork + 0.3j]))
    right = curve(np.array([fork - 0.5j, fork - 1.5 + 1.5j, fork - 3.3 + 3.3j]))
    left = curve(np.array([fork - 0.5j, fork + 1.8 + 1.0j, fork + 4.0 + 2.1j]))
    half = rng.normal(0.85, 0.07)
    return (
        Band(trachea, np.full(len(trachea), half)),
        Band(right, np.full(len(right), 0.62 * half)),
        Band(left, np.full(len(left), 0.55 * half)),
    )


def _body(
    halves: tuple[Half, Half], fat: float, clavicles: tuple[Band, Band], rng: np.random.Generator
) -> tuple[Points, ...]:
    """Torso with neck and shoulders, and the arms; `fat` scales the soft tissue over the ribs."""
    highest = min(float(bone.line.imag.min()) for bone in clavicles)
    shoulder = highest - rng.uniform(0.9, 1.9)
    parts = []
    neck = 4.9 + 0.8 * fat
    sides = []
    for half in halves:
        y = np.array([-2.0, 3.0, 8.0, 13.0, 20.0, FLOOR])
        wall = np.array([width_at(half, float(level)) for level in y]) + 1.6 + 1.2 * fat
        top = [complex(neck, -25.0), complex(neck + 0.2, -17.0), complex(neck + 2.0, shoulder - 2.4)]
        top += [complex(12.0, shoulder - 0.8), complex(16.8, shoulder), complex(19.6, shoulder + 1.6)]
        top += [complex(20.6, shoulder + 5.0), complex(wall[0] + 3.2, -4.0)]
        line = curve(np.array([*top, *(wall + 1j * y)]))
        sides.append(on_side(half.side, line))
        away = rng.uniform(1.0, 5.0)
        armpit = [15.0 - 9.0j, complex(wall[0] + 1.6, -2.0), complex(wall[1] + 1.0 + 0.4 * away, 5.0)]
        inner = curve(np.array([*armpit, complex(wall[3] + away, FLOOR)]))
        arm = np.concatenate([inner, [complex(40.0, FLOOR), complex(26.0, -3.0), complex(20.0, shoulder + 2.0)]])
        parts.append(on_side(half.side, arm))
    return (np.concatenate([sides[1], sides[0][::-1]]), *parts)


def _gas(dome: float, rng: np.random.Generator) -> tuple[Points, ...]:
    """The stomach's bubble under the left dome, and bowel beside it."""
    angle = np.linspace(0.0, 2 * np.pi, 24, endpoint=False)
    half = rng.uniform([1.6, 0.6], [3.0, 1.5])
    middle = complex(rng.uniform(6.2, 8.6), dome + 1.2 + half[1])
    bubble = middle + half[0] * np.cos(angle) + 1j * half[1] * np.where(np.sin(angle) > 0, 0.6, 1.0) * np.sin(angle)
    count = int(rng.integers(0, 5))
    loops = [
        complex(rng.uniform(3.0, 12.5), dome + rng.uniform(3.5, 7.0)) + rng.uniform(0.4, 1.1) * np.exp(1j * angle)
        for _ in range(count)
    ]
    return (bubble, *loops)[0 if rng.random() < 0.75 else 1 :]


def _breasts(female: bool, rng: np.random.Generator) -> tuple[Points, ...]:
    shapes = []
    angle = np.linspace(0.0, 2 * np.pi, 40, endpoint=False)
    size, low, apart = rng.normal(6.6, 0.9), rng.normal(7.2, 1.8), rng.normal(8.3, 0.5)
    for side in SIDES:
        radius = size * rng.normal(1.0, 0.04)
        round_ = radius * np.cos(angle) + 1j * radius * np.where(np.sin(angle) > 0, 0.72, 1.5) * np.sin(angle)
        outline = complex(apart + rng.normal(0.0, 0.3), low + rng.normal(0.0, 0.3)) + round_
        shapes.append(on_side(side, outline))
    return tuple(shapes) if female else ()
