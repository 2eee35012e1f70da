"""DSC against a set-based count, its empty cases, both libraries, and what the module may import."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.metrics import dsc, mean_score
from bench.registry import scan


def masks(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.3


def dsc_of_sets(prediction: np.ndarray, target: np.ndarray) -> list[float]:
    scores = []
    for p, y in zip(prediction, target, strict=True):
        found, wanted = ({tuple(index) for index in np.argwhere(mask)} for mask in (p, y))
        scores.append(2 * len(found & wanted) / (len(found) + len(wanted)))
    return scores


@pytest.mark.parametrize("shape", [(5, 7), (4, 1, 9, 8), (3, 2, 5, 6, 4)])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32"])
def test_dsc_of_each_image(shape: tuple[int, ...], dtype: str) -> None:
    prediction, target = masks(*shape, seed=1), masks(*shape, seed=2)
    expected = dsc_of_sets(prediction, target)
    prediction, target = prediction.astype(dtype), target.astype(dtype)
    of_numpy = dsc(prediction, target)
    of_torch = dsc(torch.from_numpy(prediction), torch.from_numpy(target))
    assert of_numpy.dtype == np.float64
    assert of_torch.dtype == torch.float64
    assert of_numpy.tolist() == pytest.approx(expected, rel=1e-15)
    assert of_torch.tolist() == of_numpy.tolist()


def test_dsc_is_symmetric_and_takes_mixed_types() -> None:
    prediction, target = masks(4, 6, 6, seed=3), masks(4, 6, 6, seed=4)
    assert dsc(prediction, target).tolist() == dsc(target.astype(np.int64), prediction.astype(np.float32)).tolist()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_dsc_ends(library: str, recwarn: pytest.WarningsRecorder) -> None:
    empty, full = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    prediction = np.concatenate([full, empty, full, empty])
    target = np.concatenate([full, full, empty, empty])
    if library == "torch":
        scores = dsc(torch.from_numpy(prediction), torch.from_numpy(target)).tolist()
    else:
        scores = dsc(prediction, target).tolist()
    assert scores[:3] == [1, 0, 0]
    assert math.isnan(scores[3])
    assert not recwarn.list


def test_dsc_counts_large_volumes_exactly() -> None:
    volume = torch.ones(1, 300, 300, 300, dtype=torch.bool)  # 2.7e7 voxels: a float32 sum of ones stops at 1.7e7
    target = volume.clone()
    target[0, 0, 0, 0] = False
    assert dsc(volume, target).item() == 2 * (27_000_000 - 1) / (2 * 27_000_000 - 1)


def test_dsc_refuses_what_is_no_mask() -> None:
    good = np.ones((2, 4, 4), bool)
    with pytest.raises(ValueError, match="one library and shape"):
        dsc(good, good[:, :3])
    with pytest.raises(ValueError, match="one library and shape"):
        dsc(good, torch.from_numpy(good))  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"\(N, \*S\)"):
        dsc(good[0, 0], good[0, 0])
    with pytest.raises(ValueError, match="prediction of 0 and 1 only"):
        dsc(good * 0.7, good)
    with pytest.raises(ValueError, match="target of 0 and 1 only"):
        dsc(good, good * np.uint8(255))
    with pytest.raises(ValueError, match="prediction of 0 and 1 only"):
        dsc(good * math.nan, good)


def test_mean_score_leaves_out_nan_and_order() -> None:
    scores = [0.1, math.nan, 0.7, 1e-17, 0.2]
    assert mean_score(scores) == pytest.approx((0.1 + 0.7 + 0.2) / 4)
    assert mean_score(scores) == mean_score(reversed(scores))
    assert mean_score(torch.tensor([0.25, math.nan, 0.75])) == 0.5
    assert math.isnan(mean_score([math.nan]))
    assert math.isnan(mean_score([]))


def test_registry_says_how_dsc_is_read() -> None:
    info = scan().metrics["dsc"]
    assert info.higher_is_better
    assert (info.scale, info.unit, info.title) == (100, "%", "DSC")


def test_module_imports_no_heavy_library() -> None:
    code = "import sys, bench.metrics; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
