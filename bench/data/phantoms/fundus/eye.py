"""The eye before the camera: its fixed parts and its lesions, in degrees of visual angle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.data.phantoms.drawing import Points, Reals, Settings


@dataclass(frozen=True)
class Camera(Settings):
    """How a photograph is taken and what kind of eye sits before the lens; gains and amounts have no unit."""

    modality: ClassVar[str] = "fundus"

    fov: float = 45.0  # degrees across the image
    height: float = 1.0  # visible height over width of the field of view; below 1 the top and bottom are cut off
    centre: float = 0.4  # where the camera points: 0 at the fovea, 1 at the disc
    jitter: float = 1.5  # degrees, standard deviation of the pointing
    roll: float = 4.0  # degrees, standard deviation of the head's tilt
    notch: float = 0.0  # above 0.5 a tab marks the upper right edge of the field
    red: float = 1.0  # channel gains
    green: float = 1.0
    blue: float = 1.0
    exposure: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    uneven: float = 0.15  # depth of the illumination gradient
    vignette: float = 0.25  # share of light lost at the edge
    haze: float = 0.0  # media opacity, 0 clear, 1 nothing seen
    blur: float = 0.0025  # standard deviation as share of the image side
    noise: float = 0.012  # standard deviation of the sensor noise, image range 1
    dust: float = 0.0  # mean number of specks
    vessel: float = 1.0  # vessel contrast
    central_reflex: float = 0.5  # light streak on the arteries
    nerve_fibre: float = 0.3  # silky reflexes along the arcades
    texture: float = 1.0  # choroidal pattern
    tortuosity: float = 1.0
    calibre: float = 1.0
    cup: float = 0.45  # vertical cup to disc ratio
    exudates: float = 0.0  # mean number of clusters
    haemorrhages: float = 0.0  # mean number
    microaneurysms: float = 0.0  # mean number
    drusen: float = 0.0  # mean number
    cotton_wool: float = 0.0  # mean number


@dataclass(frozen=True)
class Anatomy:
    """The parts of one eye that need no drawing."""

    right: bool
    fovea: complex
    disc: Points  # outline, degrees
    cup: Points
    crescent: Points  # peripapillary atrophy, at the temporal side of the disc
    disc_radius: float
    hilus: complex  # where the vessels leave the disc
    pigment: Reals  # (3,) reflectance of the retina
    macula: Reals  # (2,) depth and radius in degrees of the macular shade
    depths: Reals  # (3,) how visible mottle, choroidal vessels and grain are


@dataclass(frozen=True)
class Vessel:
    """One unbranched run of a vessel: a child starts a run of its own."""

    line: Points  # (N,)
    calibre: Reals  # (N,) diameter in degrees
    vein: bool


@dataclass(frozen=True)
class Blobs:
    """Roundish lesions."""

    centre: Points  # (N,)
    radius: Reals  # (N,) degrees
    strength: Reals  # (N,) in [0, 1]


@dataclass(frozen=True)
class Lesions:
    """What disease left on the retina; none lies on the disc."""

    exudates: Blobs
    haemorrhages: Blobs
    microaneurysms: Blobs
    drusen: Blobs
    cotton_wool: Blobs

    @property
    def dark(self) -> Blobs:
        return merge([self.haemorrhages, self.microaneurysms])

    @property
    def pale(self) -> Blobs:
        return merge([self.drusen, self.cotton_wool])


def build_eye(rng: np.random.Generator, lens: Camera) -> Anatomy:
    right = bool(rng.random() < 0.5)
    fovea = complex(15.5 + 0.7 * rng.standard_normal(), 1.6 + 0.8 * rng.standard_normal())
    radius = 3.05 + 0.25 * rng.standard_normal()
    axes = np.array([radius, radius * rng.uniform(1.02, 1.16)])
    disc = _outline(axes, 0.010, rng)
    ratio = float(np.clip(lens.cup * (1 + 0.16 * rng.standard_normal()), 0.18, 0.82))
    shift = complex(rng.uniform(0.0, 0.12), rng.uniform(-0.06, 0.06)) * radius * (1 - ratio) * 1.6
    cup = _outline(axes * ratio * rng.uniform([0.92, 0.98], [1.06, 1.02]), 0.018, rng) + shift
    crescent = disc * rng.choice([1.0, 1.06, 1.14], p=[0.5, 0.3, 0.2]) + rng.uniform(0.05, 0.3)
    orange, red, brown = np.array([0.74, 0.36, 0.17]), np.array([0.72, 0.29, 0.16]), np.array([0.62, 0.28, 0.14])
    mix = rng.dirichlet([2.0, 1.2, 0.8])
    return Anatomy(
        right=right,
        fovea=fovea,
        disc=disc,
        cup=cup,
        crescent=crescent,
        disc_radius=float(radius),
        hilus=complex(-0.16 + 0.08 * rng.standard_normal(), 0.06 * rng.standard_normal()) * radius + 0.5 * shift,
        pigment=mix[0] * orange + mix[1] * red + mix[2] * brown,
        macula=rng.uniform([0.22, 3.2], [0.42, 4.6]),
        depths=rng.uniform([0.03, 0.02, 0.005], [0.08, 0.22, 0.02]) * lens.texture,
    )


def _outline(axes: Reals, roughness: float, rng: np.random.Generator) -> Points:
    """A closed outline of 64 points: an ellipse with three slow waves on it."""
    angle = np.linspace(0.0, 2.0 * np.pi, 64, endpoint=False)
    waves = rng.standard_normal((3, 2)) * roughness
    orders = np.arange(2, 5)[:, None] * angle
    rim = 1.0 + (waves[:, :1] * np.cos(orders) + waves[:, 1:] * np.sin(orders)).sum(axis=0)
    outline: Points = rim * (axes[0] * np.cos(angle) + 1j * axes[1] * np.sin(angle))
    return outline


def scatter_lesions(rng: np.random.Generator, anatomy: Anatomy, lens: Camera) -> Lesions:
    clusters = [_cluster(rng, anatomy) for _ in range(rng.poisson(lens.exudates))]
    haemorrhages = _scatter(rng, rng.poisson(lens.haemorrhages), 11.0, (0.25, 0.9), (0.55, 0.95), anatomy)
    microaneurysms = _scatter(rng, rng.poisson(lens.microaneurysms), 9.0, (0.13, 0.24), (0.5, 0.8), anatomy)
    drusen = _scatter(rng, rng.poisson(lens.drusen), 4.5, (0.15, 0.5), (0.2, 0.42), anatomy)
    wool = _scatter(rng, rng.poisson(lens.cotton_wool), 10.0, (0.7, 1.5), (0.35, 0.6), anatomy)
    parts = (merge(clusters), haemorrhages, microaneurysms, drusen, wool)
    return Lesions(*(_clear_of_disc(part, anatomy) for part in parts))


def _cluster(rng: np.random.Generator, anatomy: Anatomy) -> Blobs:
    """Hard exudates: a cloud, a ring around a leak, a plaque with satellites, or rays of a macular star."""
    kind = rng.choice(["cloud", "ring", "plaque", "star"], p=[0.5, 0.25, 0.15, 0.1])
    away = rng.gamma(2.5, 2.1) + 0.6
    middle = anatomy.fovea + away * np.exp(2j * np.pi * rng.random())
    count = int(rng.integers(7, 40))
    radius = np.minimum(0.10 + rng.gamma(1.6, 0.085, count), 0.55)
    spread = rng.standard_normal(count) + 1j * rng.standard_normal(count)
    turn = np.exp(2j * np.pi * rng.random(count))
    if kind == "cloud":
        place = middle + rng.uniform(0.5, 1.6) * spread * np.exp(1j * rng.random())
    elif kind == "ring":
        arc = np.exp(1j * (rng.uniform(0, 2 * np.pi) + rng.uniform(2.5, 6.2) * rng.random(count)))
        place = middle + rng.uniform(1.2, 3.2) * arc + 0.16 * spread
    elif kind == "plaque":
        core = rng.random(count) < 0.5
        place = middle + np.where(core, 0.4, 1.5) * spread
        radius = np.where(core, radius * rng.uniform(1.2, 2.4), radius)
    else:
        rays = np.exp(1j * (rng.uniform(0, 2 * np.pi) + np.deg2rad(24.0) * rng.integers(0, 8, count)))
        place = anatomy.fovea + rays * rng.uniform(0.9, 4.0, count) + 0.06 * spread + 0.02 * turn
    return Blobs(place, radius, rng.uniform(0.8, 1.0, count))


def _scatter(
    rng: np.random.Generator,
    count: int,
    spread: float,
    radius: tuple[float, float],
    strength: tuple[float, float],
    anatomy: Anatomy,
) -> Blobs:
    offset = rng.standard_normal(count) + 1j * rng.standard_normal(count)
    return Blobs(0.8 * anatomy.fovea + spread * offset, rng.uniform(*radius, count), rng.uniform(*strength, count))


def merge(parts: Sequence[Blobs]) -> Blobs:
    return Blobs(
        np.concatenate([np.empty(0, dtype=complex), *(part.centre for part in parts)]),
        np.concatenate([np.empty(0), *(part.radius for part in parts)]),
        np.concatenate([np.empty(0), *(part.strength for part in parts)]),
    )


def _clear_of_disc(blobs: Blobs, anatomy: Anatomy) -> Blobs:
    keep = np.abs(blobs.centre) > 1.35 * anatomy.disc_radius + blobs.radius
    return Blobs(blobs.centre[keep], blobs.radius[keep], blobs.strength[keep])
