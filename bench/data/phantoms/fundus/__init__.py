"""Fundus phantoms: a colour photograph of a retina with exact masks of vessels, disc, cup, hard exudates and field.

The eye is built in degrees of visual angle on the retina (1 degree is about 0.29 mm) with the disc at the origin, x
towards the temporal side and y downwards, as complex numbers; a right eye is mirrored when it is photographed. Anatomy
after textbook values: fovea 15.5 degrees temporal and a little below the disc, disc 6 degrees wide and taller than it
is wide, arcades as logarithmic spirals around the fovea, artery to vein calibre 2:3, calibres at a branching after
Murray (the sum of cubes is conserved), no vessel within 2 degrees of the fovea. The same seed is the same eye under
every camera and at every size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.data.phantoms import VERSIONS, CameraValue, Phantom
from bench.data.phantoms.fundus import angiogram, light, paint, tree
from bench.data.phantoms.fundus.eye import Anatomy, Camera, Lesions, build_eye, scatter_lesions

VERSION = VERSIONS["fundus"]
FEW = 5  # microaneurysms of a mild retinopathy
SEVERE, WORST = 6, 10  # a load counted in haemorrhages
WOOL, EXUDATES = 1 / 3, 20  # cotton wool spots and hard exudates that weigh as much as one haemorrhage


def render(seed: int, size: int, camera: Mapping[str, CameraValue]) -> Phantom:
    """A fundus photograph of `size` x `size` pixels; masks: vessels, disc, cup, exudates, fov.

    The grade is a diabetic retinopathy grade, 0 to 4; the pair is a fluorescein angiogram of the same view.
    """
    lens = Camera.draw(camera, np.random.default_rng([seed, 1]))
    anatomy = build_eye(np.random.default_rng([seed, 2]), lens)
    vessels = tree.grow_vessels(np.random.default_rng([seed, 3]), anatomy, lens)
    disease = scatter_lesions(np.random.default_rng([seed, 4]), anatomy, lens)
    frame = paint.aim(np.random.default_rng([seed, 5]), anatomy, lens, size)

    field = paint.paint_field(frame, lens)
    head = paint.paint_disc(anatomy, frame)
    blood, reflex = paint.paint_vessels(vessels, frame)
    lesions = paint.paint_lesions(disease, np.random.default_rng([seed, 6]), frame)

    rng = np.random.default_rng([seed, 7])
    image = light.background(anatomy, vessels, frame, lens, rng)
    image = light.add_disc(image, head, size)
    image = light.add_lesions(image, lesions, size)
    image = light.add_vessels(image, blood, reflex, lens, size)
    image = light.photograph(image, field, lens, rng, size)
    seen = field >= 0.5
    masks = {
        "vessels": (blood[..., 0] >= 0.5) & seen,
        "disc": (head[..., 0] >= 0.5) & seen,
        "cup": (head[..., 1] >= 0.5) & seen,
        "exudates": (lesions[..., 0] >= 0.5) & seen,
        "fov": seen,
    }
    return Phantom(
        image=image,
        masks={name: mask.astype(np.uint8) for name, mask in masks.items()},
        facts=_facts(anatomy, frame, disease),
        grade=retinopathy(disease, frame),
        make_pair=lambda: angiogram.develop(seed, anatomy, disease, frame, lens, (field, head, blood)),
    )


def _facts(anatomy: Anatomy, frame: paint.Frame, disease: Lesions) -> dict[str, object]:
    """What a reader of the photograph would note."""
    fovea, disc = frame.shares(np.array([anatomy.fovea, 0.0])).tolist()
    return {
        "eye": "right" if anatomy.right else "left",
        "fovea": fovea,
        "disc": disc,
        "cup_to_disc": float(np.ptp(anatomy.cup.imag) / np.ptp(anatomy.disc.imag)),
        "exudates": len(disease.exudates.centre),
        "dark_lesions": len(disease.dark.centre),
        "grade": retinopathy(disease, frame),
    }


def retinopathy(disease: Lesions, frame: paint.Frame) -> int:
    """Diabetic retinopathy grade of what the view shows; more lesions never lower it.

    After the international scale (Wilkinson et al., Ophthalmology 110(9):1677-1682, 2003): 0 none, 1 few
    microaneurysms and nothing else, 2 more than that, 3 severe. A phantom grows no new vessels, so 4 is the worst load.
    """
    seen = {name: int(frame.shows(blobs.centre).sum()) for name, blobs in vars(disease).items()}
    burden = seen["haemorrhages"] + seen["cotton_wool"] / WOOL + seen["exudates"] / EXUDATES
    if burden >= SEVERE:
        return 4 if burden >= WORST else 3
    if burden > 0 or seen["microaneurysms"] > FEW:
        return 2
    return int(seen["microaneurysms"] > 0)
