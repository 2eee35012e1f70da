"""Side maps of a corpus: what a registered function computes once of every image, cached beside the images.

A method declares the names of those it wants; a map has a cache of its own, so that images are not prepared again for
another map, nor maps for another method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data.cache import Plan, Progress, folder_name, prepared
from bench.registry import Registry, load
from bench.spec import BenchError, PretrainCell, SideMapSpec, Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MARK = "map."  # begins the name of every such folder


def map_folders(cell: PretrainCell, registry: Registry, site: Site) -> dict[str, Path]:
    """Where each side map of a cell is prepared, by its name; those that are not registered are left out.

    A changed version and a changed source have other folders: the values are then made again.
    """
    method, found = registry.methods.get(cell.method), {}
    for name in method.maps if method is not None else ():
        spec = registry.side_maps.get(name)
        if spec is not None:
            images = (cell.corpus_fingerprint, cell.image_size, cell.channels)
            found[name] = folder_name(site, MARK + name, *images, name, spec.version, spec.origin.does)
    return found


def side_maps(
    images: NDArray[np.uint8], cell: PretrainCell, registry: Registry, site: Site, progress: Progress | None
) -> Mapping[str, NDArray[np.float32]]:
    """The side maps of a cell's method, each (N, *S) or (N, *S, K), of images (N, *S, C).

    BenchError where one is not registered.
    """
    method, folders = registry.methods.get(cell.method), map_folders(cell, registry, site)
    specs: list[SideMapSpec] = [registry.get("side_map", name) for name in (method.maps if method is not None else ())]
    return {
        spec.name: prepared(folders[spec.name], functools.partial(_plan, images, spec), progress).arrays["map"]
        for spec in specs
    }


def computed_map(images: NDArray[np.uint8], spec: SideMapSpec) -> NDArray[np.float32]:
    """A side map (N, *S) or (N, *S, K) of images (N, *S, C), computed now."""
    import numpy as np

    compute = load(spec)
    return np.stack([_computed(compute, image, spec.name) for image in images])


def _plan(images: NDArray[np.uint8], spec: SideMapSpec) -> Plan:
    compute: Callable[[Any], Any] = load(spec)

    def make(index: int) -> dict[str, Any]:
        return {"map": _computed(compute, images[index], spec.name)}

    return Plan(len(images), {"map": ("float32", make(0)["map"].shape)}, make)


def _computed(compute: Callable[[Any], Any], image: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """The map (*S) or (*S, K) of one image (*S, C); BenchError where the function returns something else."""
    import numpy as np

    made = np.asarray(compute(np.array(image)), np.float32)
    dims = image.ndim - 1
    if made.shape[:dims] != image.shape[:-1] or made.ndim > image.ndim:
        raise BenchError(f"the side map {name} made {made.shape} of an image {image.shape}, not a value for each place")
    if not np.isfinite(made).all():
        raise BenchError(f"the side map {name} made a value that is not finite")
    return made
