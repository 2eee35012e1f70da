"""What is there, fingerprints, partial datasets and splits."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bench import data, registry
from bench.spec import BenchError, PretrainCell, Site, TransferCell, file_digest
from tests.conftest import GOLDEN, pretrain_cell, textured_images, transfer_cell


def _write_images(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True)
    for index, image in enumerate(textured_images(count, 40, 3)):
        cv2.imwrite(str(folder / f"{index}.png"), image)


PLUGIN = """
from bench.data import CorpusImage, Mask, Sample, read_table
from bench.registry import corpus, task

TRAIN, TEST = range(12), range(12, 18)


@task(
    "made_up", version=1, title="Made up", groups=(), section="", corpus="made_up_corpus",
    channels=3, licence="ours", citation="nobody", source="nowhere", revision="1",
    folders=("made_up", "MadeUp"), layout="0.png with 0_mask.png", train=12, test=6,
)
def load(root, split):
    numbers = TRAIN if split == "train" else TEST
    return [Sample(f"{n:02}", root / f"{n}.png", Mask(root / f"{n}_mask.png"), f"p{n // 2}") for n in numbers]


@corpus(
    "made_up_corpus", version=1, title="Made up", channels=3, licence="ours", citation="nobody", source="nowhere",
    folders=("made_up_corpus",), layout="0.png, grades.csv", classes=("none", "mild", "severe"), paired=True,
)
def load_corpus(root):
    grades = {row["image"]: int(row["level"]) for row in read_table(root / "grades.csv", "image", "level")}
    found = []
    for path in sorted(root.glob("?.png")):
        pair = root / f"{path.stem}_pair.png"
        found.append(CorpusImage(path, grades.get(path.stem), pair if pair.is_file() else None))
    return found
"""


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> registry.Registry:
    """The registry with a task and a corpus of our own."""
    path = tmp_path_factory.mktemp("plugin") / "made_up.py"
    path.write_text(PLUGIN)
    return registry.scan([str(path)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with both: corpus image `n` is grey of level 10 n, of grade n % 3, its pair the negative."""
    _write_images(tmp_path / "data" / "made_up", 18)
    for number in range(18):
        mask = np.zeros((40, 40), np.uint8)
        mask[: 10 + number] = 255
        cv2.imwrite(str(tmp_path / "data" / "made_up" / f"{number}_mask.png"), mask)
    corpus = tmp_path / "data" / "made_up_corpus"
    corpus.mkdir()
    for number in range(6):
        cv2.imwrite(str(corpus / f"{number}.png"), np.full((40, 40, 3), 10 * number, np.uint8))
        cv2.imwrite(str(corpus / f"{number}_pair.png"), np.full((40, 40, 3), 255 - 10 * number, np.uint8))
    lines = [f"{number}, {number % 3}" for number in range(6)]
    (corpus / "grades.csv").write_text("image, level\n" + "\n".join(lines), encoding="utf-8-sig")
    return tmp_path / "data"


# ------------------------------------------------------------------------------------------------------------- corpora


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


def _corpus_cell(ref: data.CorpusRef, **changes: Any) -> PretrainCell:
    fields = {"corpus": ref.name, "corpus_fingerprint": ref.fingerprint, "phantom": False, "image_size": 40}
    return dataclasses.replace(pretrain_cell("simclr"), **(fields | changes))


def test_grades_and_pairs_stay_with_their_images(made_up: registry.Registry, root: Path, site: Site) -> None:
    ref = data.corpus_ref("made_up_corpus", made_up, root, site.cache)
    assert (ref.classes, ref.paired, ref.size, ref.channels) == (("none", "mild", "severe"), True, 6, 3)
    found = data.open_corpus(_corpus_cell(ref), made_up, dataclasses.replace(site, data=root))
    assert found.labels is not None
    assert found.pairs is not None
    numbers = found.images[:, 0, 0, 0] // 10
    assert sorted(numbers.tolist()) == list(range(6))
    assert found.labels.tolist() == (numbers % 3).tolist()
    assert found.pairs[:, 0, 0, 0].tolist() == (255 - 10 * numbers).tolist()
    assert (found.classes, len(found)) == (3, 6)


@pytest.mark.parametrize(("name", "graded", "paired"), [("kaggle_dr", True, True), ("chestxray8", False, False)])
def test_phantom_corpora_have_the_grades_and_pairs_that_they_declare(
    name: str, graded: bool, paired: bool, shelves: registry.Registry, site: Site
) -> None:
    spec = shelves.corpora[name]
    few = dataclasses.replace(shelves, corpora={name: dataclasses.replace(spec, phantom=spec.phantom | {"images": 12})})
    ref = data.corpus_ref(name, few, None, site.cache)
    assert (bool(ref.classes), ref.paired, ref.size) == (graded, paired, 12)
    cell = _corpus_cell(ref, phantom=True, channels=spec.channels, image_size=32)
    found = data.open_corpus(cell, few, site)
    assert (found.classes, found.labels is not None, found.pairs is not None) == (len(ref.classes), graded, paired)
    if found.labels is not None:
        assert found.labels.min() >= 0 and found.labels.max() < found.classes and len(set(found.labels.tolist())) > 1
    if found.pairs is not None:
        assert found.pairs.shape == found.images.shape
        assert all((pair != image).any() for pair, image in zip(found.pairs, found.images, strict=True))


def test_a_corpus_without_its_table_has_no_grades_and_a_changed_grade_changes_it(
    made_up: registry.Registry, root: Path, tmp_path: Path
) -> None:
    table = root / "made_up_corpus" / "grades.csv"
    before = data.corpus_ref("made_up_corpus", made_up, root, tmp_path / "cache")
    table.write_text(table.read_text().replace("5, 2", "5, 1"))
    changed = data.corpus_ref("made_up_corpus", made_up, root, tmp_path / "cache")
    table.write_text("image,level\n")
    bare = data.corpus_ref("made_up_corpus", made_up, root, tmp_path / "cache")
    assert len({before.fingerprint, changed.fingerprint, bare.fingerprint}) == 3
    assert bare.classes == ()


@pytest.mark.parametrize(("lost", "what"), [("grade", "no grade"), ("pair", "no second image")])
def test_a_corpus_that_is_graded_or_paired_in_part_is_refused(
    lost: str, what: str, made_up: registry.Registry, root: Path, tmp_path: Path
) -> None:
    if lost == "grade":
        table = root / "made_up_corpus" / "grades.csv"
        table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    else:
        (root / "made_up_corpus" / "5_pair.png").unlink()
    with pytest.raises(data.MissingData, match=rf"made_up_corpus: 1 of 6 images have {what} \(5\.png, \.\.\.\)"):
        data.corpus_ref("made_up_corpus", made_up, root, tmp_path / "cache")


def test_dropped_images_change_the_fingerprint_and_are_not_opened(
    made_up: registry.Registry, root: Path, site: Site
) -> None:
    drop = [file_digest(root / "made_up_corpus" / "3.png")]
    whole = data.corpus_ref("made_up_corpus", made_up, root, site.cache)
    ref = data.corpus_ref("made_up_corpus", made_up, root, site.cache, drop)
    assert ref.size == 5
    assert ref.fingerprint != whole.fingerprint
    cell = _corpus_cell(ref, dropped=tuple(drop))
    found = data.open_corpus(cell, made_up, dataclasses.replace(site, data=root))
    assert sorted((found.images[:, 0, 0, 0] // 10).tolist()) == [0, 1, 2, 4, 5]
    every = [file_digest(path) for path in (root / "made_up_corpus").glob("?.png")]
    with pytest.raises(data.MissingData, match="every image of made_up_corpus was dropped"):
        data.corpus_ref("made_up_corpus", made_up, root, site.cache, every)


def test_files_that_changed_since_the_plan_are_noticed(made_up: registry.Registry, root: Path, site: Site) -> None:
    site = dataclasses.replace(site, data=root)
    corpus = _corpus_cell(data.corpus_ref("made_up_corpus", made_up, root, site.cache))
    task = _task_cell(data.dataset_ref(made_up.tasks["made_up"], root, site.cache))
    cv2.imwrite(str(root / "made_up_corpus" / "3.png"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(BenchError, match="files of made_up_corpus changed"):
        data.open_corpus(corpus, made_up, site)
    cv2.imwrite(str(root / "made_up" / "3.png"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(BenchError, match="files of made_up changed"):
        data.open_dataset(task, made_up, site)


def test_what_is_prepared_needs_its_files_no_more(made_up: registry.Registry, root: Path, site: Site) -> None:
    site = dataclasses.replace(site, data=root)
    cell = _task_cell(data.dataset_ref(made_up.tasks["made_up"], root, site.cache))
    before = data.open_dataset(cell, made_up, site)
    shutil.rmtree(root)
    after = data.open_dataset(cell, made_up, site)
    assert (before.names, before.train, before.test) == (after.names, after.train, after.test)
    np.testing.assert_array_equal(before.images, after.images)


# ------------------------------------------------------------------------------------------------------------- folders


def test_an_empty_or_missing_folder_is_named(tmp_path: Path, shelves: registry.Registry) -> None:
    with pytest.raises(data.MissingData, match="no folder"):
        data.corpus_ref(f"folder:{tmp_path / 'none'}", shelves, None, tmp_path)
    with pytest.raises(data.MissingData, match="holds no image"):
        data.corpus_ref(f"folder:{tmp_path}", shelves, None, tmp_path / "cache")


def test_folders_are_searched_through_links_once_and_without_hidden_files(tmp_path: Path) -> None:
    _write_images(tmp_path / "images" / "größe 1")
    _write_images(tmp_path / "elsewhere", 1)
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    _write_images(tmp_path / "images" / ".thumbnails")
    for name in ("._1.png", ".DS_Store", "notes.txt"):
        (tmp_path / "images" / name).write_text("x")
    (tmp_path / "images" / "film.DCM").write_text("x")
    found = [str(path.relative_to(tmp_path / "images")) for path in data.list_images(tmp_path / "images")]
    assert found == ["film.DCM", "größe 1/0.png", "größe 1/1.png", "größe 1/2.png", "linked/0.png"]


def test_broken_links_and_unreadable_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_images(tmp_path / "images" / "inner")
    link = tmp_path / "images" / "gone.png"
    link.symlink_to(tmp_path / "nothing.png")
    with pytest.raises(data.MissingData, match=r"gone\.png is a broken link: repair it or take it out"):
        data.list_images(tmp_path / "images")
    link.unlink()
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(data.MissingData, match=r"inner cannot be read \(Permission denied\)"):
        data.list_images(tmp_path / "images")


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    "text",
    [
        "image,level\na b,1\nc,2\n",
        "\ufeff image , level \n a b , 1 \n\n c ,2",
        'image, level\r\n"a b", 1\r\n , \r\nc, 2\r\n',
    ],
)
def test_tables_are_read_through_blanks_and_marks(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text, encoding="utf-8", newline="")
    assert data.read_table(tmp_path / "x.csv", "image") == [
        {"image": "a b", "level": "1"},
        {"image": "c", "level": "2"},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image\na\n", r"x\.csv has no column 'level', only image: check the file"),
        (b"", r"x\.csv has no column 'image', only nothing"),
        (b"image,level\na,1\nb\n", r"x\.csv, line 3, has 1 values for 2 columns"),
        (b"image,level\n\xff\xfe,1\n", r"x\.csv is no UTF-8 text"),
        (None, r"x\.csv cannot be read .*put the file there"),
    ],
)
def test_broken_tables_are_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(data.MissingData, match=message):
        data.read_table(tmp_path / "x.csv", "image", "level")


# ------------------------------------------------------------------------------------------------------------ datasets


def _task_cell(ref: data.DatasetRef, **changes: Any) -> TransferCell:
    cell = transfer_cell(pretrain_cell(image_size=40), next(iter(registry.scan().tasks)))
    return dataclasses.replace(
        cell, task="made_up", dataset_fingerprint=ref.fingerprint, phantom=False, seed=0, **changes
    )


def _take_out(root: Path, numbers: range, end: str = ".png") -> None:
    for number in numbers:
        (root / "made_up" / f"{number}{end}").unlink()


def test_a_whole_dataset_is_found_under_any_of_its_names(made_up: registry.Registry, root: Path) -> None:
    spec = made_up.tasks["made_up"]
    for name in ("MadeUp", "MADE_UP"):
        root.joinpath("made_up").rename(root / name)
        found = data.inventory(spec, root)
        assert (found.state, found.present, found.expected, found.files) == ("found", 18, 18, 36)
        assert (found.missing, found.rule, found.root) == ((), "", root / name)
        root.joinpath(name).rename(root / "made_up")


def test_a_partial_dataset_is_refused_with_what_is_missing(made_up: registry.Registry, root: Path) -> None:
    spec = made_up.tasks["made_up"]
    _take_out(root, range(2, 7), "_mask.png")
    found = data.inventory(spec, root)
    assert (found.state, found.present, found.expected) == ("partial", 13, 18)
    assert found.missing == tuple(f"{number}_mask.png" for number in range(2, 7))
    with pytest.raises(
        data.MissingData, match=r"made_up: 5 of 36 files are missing \(2_mask\.png, .* and 2 more\)"
    ) as it:
        data.samples(spec, root)
    assert "--allow-partial runs on the 13 of 18 images that are complete" in str(it.value)
    parts = data.samples(spec, root, allow_partial=True)  # split as ever
    assert {split: [sample.name for sample in part] for split, part in parts.items()} == {
        "train": ["00", "01", "07", "08", "09", "10", "11"],
        "test": ["12", "13", "14", "15", "16", "17"],
    }
    assert found.rule == ""


@pytest.mark.parametrize("part", ["train", "test"])
def test_without_an_official_part_the_last_third_is_the_test(
    part: str, made_up: registry.Registry, root: Path, site: Site
) -> None:
    spec = made_up.tasks["made_up"]
    _take_out(root, range(12, 18) if part == "test" else range(12))
    found = data.inventory(spec, root)
    assert "whole patients" in found.rule
    parts = data.samples(spec, root, allow_partial=True)
    names = [sample.name for sample in [*parts["train"], *parts["test"]]]
    assert names == sorted(names)
    assert len(parts["test"]) == (4 if part == "test" else 2)
    assert not {sample.patient for sample in parts["train"]} & {sample.patient for sample in parts["test"]}
    ref = data.dataset_ref(spec, root, site.cache, allow_partial=True)
    assert (ref.present, ref.expected, ref.rule) == (len(names), 18, found.rule)
    cell = _task_cell(ref, allow_partial=True)
    dataset = data.open_dataset(cell, made_up, dataclasses.replace(site, data=root))
    assert [dataset.names[index] for index in dataset.test] == [sample.name for sample in parts["test"]]


def test_a_partial_dataset_has_a_fingerprint_of_its_own(made_up: registry.Registry, root: Path, tmp_path: Path) -> None:
    spec, cache = made_up.tasks["made_up"], tmp_path / "cache"
    whole = data.dataset_ref(spec, root, cache)
    assert data.dataset_ref(spec, root, cache, allow_partial=True) == whole
    assert (whole.present, whole.expected, whole.rule) == (18, 18, "")
    fingerprints = {whole.fingerprint}
    for number in (17, 11):
        _take_out(root, range(number, number + 1))
        fingerprints.add(data.dataset_ref(spec, root, cache, allow_partial=True).fingerprint)
    assert len(fingerprints) == 3


def test_one_patient_alone_cannot_be_split(made_up: registry.Registry, root: Path) -> None:
    _take_out(root, range(2, 18))
    with pytest.raises(data.MissingData, match="2 images of 1 patients cannot be split into training and test"):
        data.samples(made_up.tasks["made_up"], root, allow_partial=True)


def test_nothing_but_the_folder_is_no_partial_dataset(made_up: registry.Registry, root: Path) -> None:
    _take_out(root, range(18))
    assert data.inventory(made_up.tasks["made_up"], root).state == "missing"
    with pytest.raises(data.MissingData, match="18 of 36 files are missing") as caught:
        data.samples(made_up.tasks["made_up"], root, allow_partial=True)
    assert "--allow-partial" not in str(caught.value)


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


def test_a_folder_is_prepared_in_an_order_that_names_do_not_change(
    tmp_path: Path, shelves: registry.Registry, site: Site
) -> None:
    _write_images(tmp_path / "images", count=4)
    ref = data.corpus_ref(f"folder:{tmp_path / 'images'}", shelves, None, site.cache)
    cell = dataclasses.replace(
        pretrain_cell("simclr"), corpus=ref.name, corpus_fingerprint=ref.fingerprint, phantom=False, image_size=40
    )
    found = data.open_corpus(cell, shelves, site).images
    expected = {cv2.imread(str(path))[..., ::-1].tobytes() for path in (tmp_path / "images").iterdir()}
    assert {image.tobytes() for image in found} == expected
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_name(f"renamed {path.name[::-1]}.png"))
    again = dataclasses.replace(site, runs=tmp_path / "other")
    np.testing.assert_array_equal(found, data.open_corpus(cell, shelves, again).images)


# --------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("count", [10, 20, 50, 54])
def test_validation_is_the_first_fifth_and_fractions_are_nested(count: int, fraction: float) -> None:
    train, validation = data.split_train([""] * count, fraction)
    used = round(count * fraction)
    assert validation == list(range(max(1, int(0.2 * used))))
    assert train == list(range(len(validation), used))
    assert max(train + validation) < count


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_smaller_fractions_are_part_of_larger_ones_within_a_seed(seed: int) -> None:
    patients = [f"{index // 2}" for index in range(60)]
    used: list[set[int]] = []
    for fraction in (0.2, 0.4, 0.6, 0.8, 1.0):
        train, validation = data.split_train(patients, fraction, seed)
        assert not {patients[index] for index in train} & {patients[index] for index in validation}
        used.append({*train, *validation})
    assert all(smaller < larger for smaller, larger in itertools.pairwise(used))


def test_seeds_choose_other_labels_but_never_of_all_of_them() -> None:
    plain = [""] * 50
    chosen = [data.split_train(plain, 0.4, seed) for seed in range(3)]
    assert chosen[0] == (list(range(4, 20)), list(range(4)))
    assert len({frozenset(train) for train, _ in chosen}) == 3
    assert len({str(data.split_train(plain, 1.0, seed)) for seed in range(3)}) == 1


def test_validation_shares_no_patient_with_training() -> None:
    patients = [f"{index // 3}" for index in range(20)]
    train, validation = data.split_train(patients, 1.0)
    assert not {patients[index] for index in train} & {patients[index] for index in validation}
    assert validation
    assert train


def test_folds_test_every_case_once_and_split_no_patient(made_up: registry.Registry, root: Path, site: Site) -> None:
    """Eighteen images of nine patients in four folds; asked for more folds than patients, one sentence."""
    site = dataclasses.replace(site, data=root)
    cell = dataclasses.replace(_task_cell(data.dataset_ref(made_up.tasks["made_up"], root, site.cache)), folds=4)
    opened = [data.open_dataset(dataclasses.replace(cell, fold=fold), made_up, site) for fold in range(4)]
    tested = [index for part in opened for index in part.test]
    assert sorted(tested) == list(range(18))
    for part in opened:
        taught = {part.patients[index] for index in (*part.train, *part.validation)}
        assert taught.isdisjoint(part.patients[index] for index in part.test)
        assert len(taught) + len({part.patients[index] for index in part.test}) == 9
        assert not {part.patients[index] for index in part.train} & {part.patients[index] for index in part.validation}
    with pytest.raises(BenchError, match="9 patients of made_up cannot be dealt out to 10 folds"):
        data.open_dataset(dataclasses.replace(cell, folds=10), made_up, site)


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
    assert 0.04 < dataset.arrays["masks"].mean() < 0.2
    assert dataset.images[:, 32, 32].min(axis=0).max() > 20  # the field of view fills the middle
    with pytest.raises(data.MissingData, match=r"hrf: \d+ of 90 files are missing"):
        data.dataset_ref(shelves.tasks["hrf"], root, tmp_path / "cache")


@pytest.mark.skipif(REAL is None, reason="BENCH_TEST_DATA names no folder of real images")
@pytest.mark.parametrize(
    ("name", "present", "expected", "rule"), [("hrf", 14, 45, ""), ("idrid_he", 20, 81, "the last third of the sorted")]
)
def test_real_partial_datasets_are_told_as_they_are(
    name: str, present: int, expected: int, rule: str, tmp_path: Path, shelves: registry.Registry
) -> None:
    root, spec = Path(str(REAL)), shelves.tasks[name]
    found = data.inventory(spec, root)
    assert (found.state, found.present, found.expected) == ("partial", present, expected)
    assert len(found.missing) == 2 * (expected - present)
    assert found.rule.startswith(rule)
    parts = data.samples(spec, root, allow_partial=True)
    assert sum(map(len, parts.values())) == present
    mask = data.prepare_sample(parts["test"][0], spec, 96)["masks"]
    assert 0 < mask.mean() < 0.3


@pytest.mark.parametrize(("count", "fraction"), [(20, 0.05), (10, 0.1), (3, 0.3)])
def test_a_fraction_of_fewer_than_two_images_is_refused(count: int, fraction: float) -> None:
    """They would all be the same two images under several labels."""
    with pytest.raises(BenchError, match=r"fewer than two.* the least label fraction here is (0\.08|0\.15|0\.5)$"):
        data.split_train([""] * count, fraction)
