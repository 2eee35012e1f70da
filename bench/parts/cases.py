"""The labelled cases that a protocol learns from, on the device: images and their truth, varied alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench import data, views
from bench.spec import TaskSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

AUGMENT: dict[str, tuple[views.Op, ...]] = {
    "fundus": (views.Flip(0.5, 0.5), views.Rotate(180)),
    "chest": (views.Rotate(30),),
    "none": (),
}


class Cases:
    """Training and validation cases of a task; the test part cannot be had from here.

    Images are (n, C, *S), normalised. Truth is, by its kind: of a mask (n, 1, *S), float, 0 where nothing is marked and
    else one more than the place of the structure; of points (n, P, D) in pixels of these images, in the order of the
    axes; of grades (n,), whole numbers.
    """

    def __init__(self, dataset: data.Dataset, spec: TaskSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self.train, self.validation = dataset.train, dataset.validation
        self._arrays = dataset.arrays

    @property
    def augmentation(self) -> tuple[views.Op, ...]:
        """How the task's training images are varied."""
        return AUGMENT[self.spec.augment]

    def take(self, indices: Sequence[int], ops: tuple[views.Op, ...] = (), seed: int = 0) -> tuple[Tensor, Tensor]:
        """Some images and their truth, transformed alike: masks are read by nearest neighbour."""
        rows = list(indices)
        pixels = torch.from_numpy(data.take(self._arrays["images"], rows)).to(self.device).movedim(-1, 1).float()
        pixels, truth = pixels.div_(255), TRUTHS[self.spec.truth](self._arrays, rows, self.device)
        if ops:
            generator = torch.Generator().manual_seed(seed)
            size = pixels.shape[-1]
            view = views.build(pixels, views.Views(each=(ops,)), size, generator)[0]
            pixels, truth = view.images, CARRIED[self.spec.truth](truth, view, size)
        return views.ready(pixels), truth


# ---------------------------------------------------------------------------------------------------------------- truth

Arrays = Mapping[str, "NDArray[Any]"]


def _masks(arrays: Arrays, rows: list[int], device: torch.device) -> Tensor:
    return torch.from_numpy(arrays["masks"][rows]).to(device)[:, None].float()


def _points(arrays: Arrays, rows: list[int], device: torch.device) -> Tensor:
    back = torch.from_numpy(arrays["frames"][rows])[:, None]  # (n, 1, D, 2)
    places = (torch.from_numpy(arrays["points"][rows]) - back[..., 1]) / back[..., 0]
    return places.float().to(device)


def _grades(arrays: Arrays, rows: list[int], device: torch.device) -> Tensor:
    return torch.from_numpy(arrays["grades"][rows]).to(device)


def _carried_masks(masks: Tensor, view: views.View, size: int) -> Tensor:
    return views.sample(masks, view.affine, (size,) * (masks.dim() - 2), mode="nearest")


def _carried_points(points: Tensor, view: views.View, size: int) -> Tensor:
    """Where places of the source (n, P, D) lie in the view; a view's map leads from it to the source."""
    affine = view.affine.to(points)  # (n, D, D + 1), of (x, y, ...) in [-1, 1]
    source = ((2 * points + 1) / size - 1).flip(-1) - affine[:, None, :, -1]
    found = torch.linalg.solve(affine[:, :, :-1], source.transpose(1, 2)).transpose(1, 2)
    return ((found.flip(-1) + 1) * size - 1) / 2


TRUTHS: dict[str, Callable[[Arrays, list[int], torch.device], Tensor]] = {
    "mask": _masks,
    "points": _points,
    "grade": _grades,
}
CARRIED: dict[str, Callable[[Tensor, views.View, int], Tensor]] = {
    "mask": _carried_masks,
    "points": _carried_points,
    "grade": lambda grades, view, size: grades,
}
