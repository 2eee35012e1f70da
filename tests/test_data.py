"""Fingerprints, decoding, the cache and the splits."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from bench import data, registry
from bench.spec import BenchError, Site
from tests.conftest import GOLDEN, pretrain_cell, textured_images, transfer_cell


def _write_images(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True)
    for index, image in enumerate(textured_images(count, 40, 3)):
        cv2.imwrite(str(folder / f"{index}.png"), image)


def test_moving_a_corpus_keeps_its_fingerprint_and_altering_it_changes_it(
    tmp_path: Path, shelves: registry.Registry
) -> None:
    _write_images(tmp_path / "a")
    before = data.corpus_ref(f"folder:{tmp_path / 'a'}", shelves, None, tmp_path / "cache")
    shutil.move(tmp_path / "a", tmp_path / "b c")
    moved = data.corpus_ref(f"folder:{tmp_path / 'b c'}", shelves, None, tmp_path / "cache")
    assert moved.fingerprint == before.fingerprint
    assert not moved.phantom
    cv2.imwrite(str(tmp_path / "b c" / "1.png"), np.zeros((40, 40, 3), np.uint8))
    altered = data.corpus_ref(f"folder:{tmp_path / 'b c'}", shelves, None, tmp_path / "cache")
    assert altered.fingerprint != before.fingerprint


def test_an_empty_or_missing_folder_is_named(tmp_path: Path, shelves: registry.Registry) -> None:
    with pytest.raises(data.MissingData, match="no folder"):
        data.corpus_ref(f"folder:{tmp_path / 'none'}", shelves, None, tmp_path)
    with pytest.raises(data.MissingData, match="holds no image"):
        data.corpus_ref(f"folder:{tmp_path}", shelves, None, tmp_path / "cache")


@pytest.mark.parametrize("name", list(registry.scan().tasks))
def test_a_missing_dataset_says_what_where_and_under_which_licence(
    name: str, tmp_path: Path, shelves: registry.Registry
) -> None:
    spec = shelves.tasks[name]
    with pytest.raises(data.MissingData) as caught:
        data.dataset_ref(spec, tmp_path, tmp_path / "cache")
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in (spec.name, spec.source, spec.licence, spec.folders[0]))


def test_field_of_view_and_resizing_are_the_released_codes() -> None:
    golden = np.load(GOLDEN / "ld_fundus_roi.npz")
    box = data.fov_box(golden["image"])
    assert box == tuple(golden["roi_rc"])
    np.testing.assert_array_equal(data.fit(golden["image"], box, 64), golden["crop64"])
    label = (data.fit(golden["label"], box, 64) > 0.3 * 255) * 255
    np.testing.assert_array_equal(label, golden["label_crop64"])


def test_a_dark_image_has_no_field_of_view() -> None:
    assert data.fov_box(np.zeros((50, 60, 3), np.uint8)) is None
    speck = np.zeros((50, 60, 3), np.uint8)
    speck[10:20, 10:20] = 200
    assert data.fov_box(speck) is None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".ppm"])
def test_reads_images_and_names_broken_ones(tmp_path: Path, suffix: str) -> None:
    image = textured_images(1, 40, 3)[0]
    path = tmp_path / f"bild ä{suffix}"
    path.write_bytes(cv2.imencode(suffix, image[..., ::-1])[1].tobytes())
    error = np.abs(data.read_image(path, 3).astype(int) - image)
    assert error.mean() < (6 if suffix == ".jpg" else 1e-9)
    assert data.read_image(path, 1).shape == (40, 40, 1)
    for content in (b"", path.read_bytes()[:20], b"no image at all"):
        path.write_bytes(content)
        with pytest.raises(BenchError, match=r"bild ä.*take it out"):
            data.read_image(path, 3)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08 no gzip", b"\x1f\x8b"])
def test_broken_packed_masks_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "im0001.ah.ppm.gz"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"im0001\.ah\.ppm\.gz .*take it out"):
        data.read_mask(path)


def test_a_red_mask_is_not_lost(tmp_path: Path) -> None:
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[:4, :, 2] = 255  # OpenCV writes blue, green, red
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    assert data.read_mask(tmp_path / "mask.png").tolist() == (mask[..., 2]).tolist()


def test_masks_of_another_size_are_refused(tmp_path: Path, shelves: registry.Registry) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), textured_images(1, 40, 3)[0])
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((20, 40), np.uint8))
    sample = data.Sample("x", tmp_path / "image.png", (tmp_path / "mask.png",))
    spec = dataclasses.replace(next(iter(shelves.tasks.values())), crop="none")
    with pytest.raises(BenchError, match=r"mask\.png is 40x20 but its image 40x40"):
        data.prepare_sample(sample, spec, 32)


@pytest.mark.parametrize(("values", "share"), [((0, 1), 0.25), ((0, 255), 0.25), ((0, 100), 0.25), ((0, 60), 0.0)])
def test_label_values_and_threshold(
    tmp_path: Path, shelves: registry.Registry, values: tuple[int, int], share: float
) -> None:
    mask = np.full((40, 40), values[0], np.uint8)
    mask[:20, :20] = values[1]
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    cv2.imwrite(str(tmp_path / "image.png"), textured_images(1, 40, 3)[0])
    spec = dataclasses.replace(next(iter(shelves.tasks.values())), crop="none", label_threshold=0.3)
    _, target = data.prepare_sample(data.Sample("x", tmp_path / "image.png", (tmp_path / "mask.png",)), spec, 40)
    assert target.mean() == share


def test_a_folder_is_prepared_in_an_order_that_names_do_not_change(
    tmp_path: Path, shelves: registry.Registry, site: Site
) -> None:
    _write_images(tmp_path / "images", count=4)
    ref = data.corpus_ref(f"folder:{tmp_path / 'images'}", shelves, None, site.cache)
    cell = dataclasses.replace(
        pretrain_cell("simclr"), corpus=ref.name, corpus_fingerprint=ref.fingerprint, phantom=False, image_size=40
    )
    found = data.open_corpus(cell, shelves, site)
    expected = {cv2.imread(str(path))[..., ::-1].tobytes() for path in (tmp_path / "images").iterdir()}
    assert {image.tobytes() for image in found} == expected
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_name(f"renamed {path.name[::-1]}.png"))
    again = dataclasses.replace(site, runs=tmp_path / "other")
    np.testing.assert_array_equal(found, data.open_corpus(cell, shelves, again))


def _open(arguments: tuple[Path, int]) -> float:
    runs, size = arguments
    shelves = registry.scan()
    cell = transfer_cell(pretrain_cell(image_size=size), next(iter(shelves.tasks)))
    return float(data.open_dataset(cell, shelves, Site(runs, runs, None)).images.mean())


def test_two_processes_prepare_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        one, other = pool.map(_open, [(tmp_path, 32)] * 2)
    assert one == other
    assert not list((tmp_path / "cache").glob("*making*"))


def test_a_damaged_cache_is_set_aside_named_and_made_again(
    tmp_path: Path, site: Site, shelves: registry.Registry, caplog: pytest.LogCaptureFixture
) -> None:
    cell = transfer_cell(pretrain_cell(), next(iter(shelves.tasks)))
    before = np.array(data.open_dataset(cell, shelves, site).images)
    array = next(site.cache.rglob("images.npy"))
    content = bytearray(array.read_bytes())
    content[-100] ^= 0xFF
    array.unlink()
    array.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING, logger="bench"):
        again = np.array(data.open_dataset(cell, shelves, site).images)
    np.testing.assert_array_equal(before, again)
    assert "was damaged" in caplog.text
    assert len(list(site.cache.glob("*.damaged-*"))) == 1


def test_an_unwritable_cache_is_one_sentence(tmp_path: Path, shelves: registry.Registry) -> None:
    (tmp_path / "runs").write_text("a file where a folder is expected")
    cell = transfer_cell(pretrain_cell(), next(iter(shelves.tasks)))
    with pytest.raises(BenchError, match="cannot be written"):
        data.open_dataset(cell, shelves, Site(tmp_path / "runs", tmp_path, None))


@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("count", [10, 20, 50, 54])
def test_validation_is_the_first_fifth_and_fractions_are_nested(count: int, fraction: float) -> None:
    train, validation = data.split_train([""] * count, fraction)
    used = round(count * fraction)
    assert validation == list(range(max(1, int(0.2 * used))))
    assert train == list(range(len(validation), used))
    assert max(train + validation) < count


def test_validation_shares_no_patient_with_training() -> None:
    patients = [f"{index // 3}" for index in range(20)]
    train, validation = data.split_train(patients, 1.0)
    assert not {patients[index] for index in train} & {patients[index] for index in validation}
    assert validation
    assert train


def test_every_epoch_shows_every_image_once() -> None:
    drawn = [index for step in range(6) for index in data.draw(8, 4, step, seed=3)]
    assert [sorted(drawn[at : at + 8]) for at in (0, 8, 16)] == [list(range(8))] * 3
    assert drawn[:8] != drawn[8:16]
    assert data.draw(8, 4, 5, seed=3) == drawn[20:24]


REAL = os.environ.get("BENCH_TEST_DATA")


@pytest.mark.skipif(REAL is None, reason="BENCH_TEST_DATA names no folder of real images")
def test_real_photographs_are_read_cropped_and_split(tmp_path: Path, shelves: registry.Registry) -> None:
    root = Path(str(REAL))
    spec = shelves.tasks["chase"]
    ref = data.dataset_ref(spec, root, tmp_path / "cache")
    cell = transfer_cell(pretrain_cell(image_size=64), "chase", dataset_fingerprint=ref.fingerprint, phantom=False)
    dataset = data.open_dataset(cell, shelves, Site(tmp_path, tmp_path, root))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (16, 4, 8)
    assert 0.04 < dataset.masks.mean() < 0.2
    assert dataset.images[:, 32, 32].min(axis=0).max() > 20  # the field of view fills the middle
    with pytest.raises(data.MissingData, match=r"hrf: \d+ of 90 files are missing"):
        data.dataset_ref(shelves.tasks["hrf"], root, tmp_path / "cache")
