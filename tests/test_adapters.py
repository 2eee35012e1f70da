"""Every task reads real image files in its official layout, and says in one sentence which file is broken, and how."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.data import (
    Mask,
    MissingData,
    RunLength,
    Sample,
    corpus_images,
    inventory,
    prepare_image,
    prepare_sample,
    read_table,
    samples,
)
from bench.registry import load, scan
from bench.spec import BenchError, CorpusSpec, TaskSpec
from tests.trees import KAGGLE, SPLITS, corpus_tree, listed, task_files, touch

Pixels = NDArray[np.uint8]

REGISTRY = scan()
TASKS = list(REGISTRY.tasks)
CORPORA = list(REGISTRY.corpora)
SIZE = 128  # px, at which samples are looked at
FUNDUS = (240, 320)  # height and width of a photograph
AWKWARD = "Augen & Lungen № 7 über"  # blanks and letters beyond ASCII in a folder's name


# -------------------------------------------------------------------------------------------------------- small images


def scene(shape: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """A bright disc on black with a brighter patch, and the patch: (H, W) each; no flip or turn leaves it the same."""
    height, width = shape
    image, patch = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    cv2.circle(image, (width // 2, height // 2), round(0.47 * min(shape)), 110, -1)
    box = (slice(round(0.3 * height), round(0.4 * height)), slice(round(0.4 * width), round(0.7 * width)))
    image[box], patch[box] = 250, 255
    return image, patch


def packed(path: Path, pixels: Pixels) -> bytes:
    """`pixels` in the format that the name asks for."""
    name = path.name.removesuffix(".gz").lower()
    if name.endswith(".img"):
        content = (4095 - pixels.astype(np.uint16) * 16).astype(">u2").tobytes()
    elif name.endswith(".dcm"):
        content = dicom(pixels)
    elif name.endswith((".ppm", ".tif", ".gif")):
        stream, kind = io.BytesIO(), {"ppm": "PPM", "tif": "TIFF", "gif": "GIF"}[name[-3:]]
        Image.fromarray(pixels).convert("RGB" if kind == "PPM" else "L").save(stream, kind)
        content = stream.getvalue()
    else:
        content = cv2.imencode(Path(name).suffix, pixels)[1].tobytes()
    return gzip.compress(content) if path.suffix == ".gz" else content


def dicom(pixels: Pixels) -> bytes:
    """A film as SIIM-ACR stores it: 8 bits, JPEG inside."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage, generate_uid

    found = pydicom.Dataset()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = SecondaryCaptureImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = generate_uid()
    found.Rows, found.Columns = pixels.shape
    found.SamplesPerPixel, found.PixelRepresentation = 1, 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 8, 8, 7
    found.PhotometricInterpretation, found.Modality = "MONOCHROME2", "CR"
    found.PixelData = encapsulate([cv2.imencode(".jpg", pixels)[1].tobytes()])
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, found, enforce_file_format=True)
    return stream.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def runs(mask: Pixels) -> str:
    """A mask as relative run lengths, column by column."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel() > 0, [0]]).astype(np.int8)))
    lengths = np.diff(np.concatenate([[0], edges]))
    return " ".join(str(length) for length in lengths[: len(edges)])


def film_shapes(sample: Sample) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of a sample's image and masks; two formats allow but one."""
    if sample.image.suffix == ".IMG":
        return (2048, 2048), (1024, 1024)
    return ((1024, 1024),) * 2 if sample.image.suffix == ".dcm" else (FUNDUS,) * 2


def strips(patch: Pixels, count: int) -> list[Pixels]:
    """The patch cut into `count` upright strips, one for each mask that is united."""
    columns = np.array_split(np.flatnonzero(patch.any(axis=0)), count)
    return [np.where(np.isin(np.arange(patch.shape[1]), part), patch, 0).astype(np.uint8) for part in columns]


def drawn(spec: TaskSpec, root: Path, split: str = "train", place: int = 0) -> Sample:
    """One sample of a task with its image and masks written."""
    task_files(spec, root)
    sample = load(spec)(root, split)[place]
    of_image, of_mask = film_shapes(sample)
    write(sample.image, packed(sample.image, scene(of_image)[0]))
    masks = strips(scene(of_mask)[1], len(sample.masks))
    kept: list[Path | RunLength] = []
    for mask, strip in zip(sample.masks, masks, strict=True):
        if isinstance(mask, Path):
            kept.append(write(mask, packed(mask, strip)))
        else:
            kept.append(RunLength(tuple(runs(part) for part in strips(strip, 2)), mask.height, mask.width))
    return Sample(sample.name, sample.image, Mask(tuple(kept)), sample.patient)


def overlap(image: Pixels, mask: Pixels) -> float:
    """DSC of a mask and the bright patch of its image."""
    bright = image.mean(axis=2) > 180
    return float(2 * (bright & (mask > 0)).sum() / (bright.sum() + mask.sum()))


def refusal(spec: TaskSpec, sample: Sample) -> str:
    with pytest.raises(BenchError) as caught:
        prepare_sample(sample, spec, SIZE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------- whole


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_image_and_mask_come_out_together(name: str, split: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    made = prepare_sample(drawn(spec, tmp_path / AWKWARD, split), spec, SIZE)
    image, mask = made["images"], made["masks"]
    assert image.shape == (SIZE, SIZE, spec.channels)
    assert mask.shape == (SIZE, SIZE)
    assert set(np.unique(mask)) == {0, 1}
    assert overlap(image, mask) > 0.93


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_image_comes_out(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.corpora[name]
    path = corpus_tree(spec, tmp_path / AWKWARD)[0]
    write(path, packed(path, scene(FUNDUS)[0]))
    image = prepare_image(path, spec.channels, spec.crop, SIZE)
    assert image.shape == (SIZE, SIZE, spec.channels)
    assert image.max() > 230


def _palette(patch: Pixels) -> Image.Image:
    image = Image.fromarray((patch > 0).astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 756)
    return image


STYLES: dict[str, Callable[[Pixels], Image.Image]] = {
    "0 and 255": Image.fromarray,
    "0 and 1": lambda patch: Image.fromarray(patch // 255),
    "one bit": lambda patch: Image.fromarray(patch).convert("1"),
    "palette": _palette,
    "three channels": lambda patch: Image.fromarray(patch).convert("RGB"),
    "red": lambda patch: Image.fromarray(np.stack([patch, 0 * patch, 0 * patch], axis=2)),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["chase", "idrid_he", "scr_heart"])
def test_masks_in_every_usual_style(name: str, style: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    sample = drawn(spec, tmp_path)
    (mask,) = sample.masks
    assert isinstance(mask, Path)
    STYLES[style](scene(film_shapes(sample)[1])[1]).save(mask)
    made = prepare_sample(sample, spec, SIZE)
    image, target = made["images"], made["masks"]
    assert overlap(image, target) > 0.93


def test_an_empty_mask_is_an_empty_target(tmp_path: Path) -> None:
    spec = REGISTRY.tasks["idrid_he"]
    sample = drawn(spec, tmp_path)
    assert isinstance(sample.masks[0], Path)
    write(sample.masks[0], packed(sample.masks[0], np.zeros(FUNDUS, np.uint8)))
    assert not prepare_sample(sample, spec, SIZE)["masks"].any()


def test_a_soft_map_counts_where_two_of_four_agree(tmp_path: Path) -> None:
    spec = REGISTRY.tasks["drishti_cup"]
    sample = drawn(spec, tmp_path)
    soft = np.repeat(np.array([0, 64, 128, 191, 255], np.uint8), 64)[None].repeat(240, axis=0)  # 240 x 320
    Image.fromarray(soft).save(str(sample.masks[0]))
    Image.fromarray(np.full((240, 320), 100, np.uint8)).save(sample.image)
    target = prepare_sample(sample, spec, 160)["masks"]
    assert target[:, :62].max() == 0
    assert target[:, 66:].min() == 1


# -------------------------------------------------------------------------------------------------------------- broken


@pytest.mark.parametrize("left", [0.0, 0.6], ids=["empty", "cut off"])
@pytest.mark.parametrize("name", TASKS)
def test_a_damaged_image_is_named(name: str, left: float, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    sample = drawn(spec, tmp_path)
    content = sample.image.read_bytes()
    sample.image.write_bytes(content[: round(left * len(content))])
    assert refusal(spec, sample).startswith(str(sample.image))


@pytest.mark.parametrize("left", [0.0, 0.6], ids=["empty", "cut off"])
@pytest.mark.parametrize("name", [name for name in TASKS if name != "siim_pneumothorax"])
def test_a_damaged_mask_is_named(name: str, left: float, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    sample = drawn(spec, tmp_path)
    mask = sample.masks[-1]
    assert isinstance(mask, Path)
    content = mask.read_bytes()
    mask.write_bytes(content[: round(left * len(content))])
    assert refusal(spec, sample).startswith(str(mask))


@pytest.mark.parametrize("name", [name for name in TASKS if name != "siim_pneumothorax"])
def test_a_mask_of_another_size_is_refused(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    sample = drawn(spec, tmp_path)
    (height, width), mask = film_shapes(sample)[1], sample.masks[-1]
    assert isinstance(mask, Path)
    for shape in ((height - 2, width), (height // 2, width), (width, height + 8)):
        write(mask, packed(mask, scene(shape)[1]))
        message = refusal(spec, sample)
        assert message.startswith(f"{mask} is {shape[1]}x{shape[0]} but its image ")


def test_the_length_of_a_jsrt_film_is_checked(tmp_path: Path) -> None:
    spec = REGISTRY.tasks["scr_lung"]
    sample = drawn(spec, tmp_path)
    sample.image.write_bytes(sample.image.read_bytes() + b"\0\0")
    assert "8388610 bytes, not the 8388608" in refusal(spec, sample)


@pytest.mark.parametrize("row", ["5 3 7", "1048570 30", "5 x", "5 -3"], ids=["odd", "too long", "letters", "negative"])
def test_run_lengths_that_do_not_fit_name_the_film(row: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks["siim_pneumothorax"]
    sample = drawn(spec, tmp_path)
    broken = Sample(sample.name, sample.image, Mask(RunLength((row,), 1024, 1024)))
    assert refusal(spec, broken).startswith(sample.name)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


@pytest.mark.parametrize("spoil", [Path.unlink, _folder, _broken_link], ids=["absent", "folder", "broken link"])
@pytest.mark.parametrize("which", [0, -1], ids=["image", "mask"])
@pytest.mark.parametrize("name", ["chase", "hannover_lung"])
def test_an_image_without_its_mask_and_the_reverse(
    name: str, which: int, spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    spec = REGISTRY.tasks[name]
    root = tmp_path / spec.folders[0]
    touch(task_files(spec, root))
    lost = listed(spec, root)["train"][1].files[which]
    spoil(lost)
    found = inventory(spec, tmp_path)
    assert (found.state, found.missing) == ("partial", (str(lost.relative_to(root)),))
    assert found.present == found.expected - 1
    with pytest.raises(MissingData, match=r"1 of \d+ files are missing"):
        samples(spec, tmp_path)


@pytest.mark.parametrize("name", ["chase", "siim_pneumothorax"])
def test_a_loop_of_links_changes_nothing(name: str, tmp_path: Path) -> None:
    spec = REGISTRY.tasks[name]
    root = tmp_path / spec.folders[0]
    files = task_files(spec, root)
    touch(files)
    for folder in {root, files[0].parent, files[0].parent.parent}:
        (folder / "loop").symlink_to(root, target_is_directory=True)
    found = inventory(spec, tmp_path)
    assert (found.state, found.present) == ("found", spec.train + spec.test)


# -------------------------------------------------------------------------------------------------------------- tables


def _siim(root: Path, change: Callable[[str], str], name: str = "train-rle.csv") -> TaskSpec:
    spec = REGISTRY.tasks["siim_pneumothorax"]
    task_files(spec, root / "siim")
    table = root / "siim" / "train-rle.csv"
    text = change(table.read_text())
    table.unlink()
    (table.with_name(name)).write_text(text, encoding="utf-8")
    return spec


@pytest.mark.parametrize(
    ("change", "name"),
    [
        pytest.param(lambda text: "\ufeff" + text, "train-rle.csv", id="byte order mark"),
        pytest.param(lambda text: text.replace(", ", ","), "stage_2_train.csv", id="no blanks, other name"),
        pytest.param(lambda text: text.replace("\n", " \r\n"), "train-rle.csv", id="blanks at the end, DOS lines"),
        pytest.param(lambda text: text.replace(", ", ', "').replace("\n", '"\n'), "train-rle.csv", id="quoted"),
    ],
)
def test_spellings_of_the_run_length_table(change: Callable[[str], str], name: str, tmp_path: Path) -> None:
    read = load(_siim(tmp_path / "other", change, name))
    _siim(tmp_path / "plain", str)
    for split in SPLITS:
        found, wanted = (read(tmp_path / folder / "siim", split) for folder in ("other", "plain"))
        assert [(sample.name, sample.masks) for sample in found] == [(sample.name, sample.masks) for sample in wanted]


def _without_some(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if ".1641." not in line and ".2507." not in line)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_without_some, r"lacks 2 of the 2669 films .*numbers 1641, 2507", id="missing rows"),
        pytest.param(lambda text: text.replace("EncodedPixels", "Pixels"), r"no column 'EncodedPixels'", id="column"),
        pytest.param(lambda text: text + "1.2.3, 1 2, 3\n", r"line \d+, has 3 values for 2 columns", id="long row"),
        pytest.param(lambda text: "", r"no column 'ImageId'", id="empty"),
    ],
)
def test_a_broken_run_length_table(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    spec = _siim(tmp_path, change)
    with pytest.raises(MissingData, match=message) as caught:
        samples(spec, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_run_length_table(tmp_path: Path) -> None:
    spec = _siim(tmp_path, str, "somewhere-else.csv")
    with pytest.raises(MissingData, match=r"train-rle\.csv cannot be read"):
        samples(spec, tmp_path)


def _kaggle(root: Path, lines: Sequence[str]) -> CorpusSpec:
    spec = REGISTRY.corpora["kaggle_dr"]
    touch(corpus_tree(spec, root / "kaggle_dr"))
    (root / "kaggle_dr" / "trainLabels.csv").write_text("\n".join(lines), encoding="utf-8")
    return spec


def test_grades_are_read_whatever_the_spelling(tmp_path: Path) -> None:
    rows = ["\ufeffimage , level", *(f" {name} , {index % 5} " for index, name in enumerate(KAGGLE)), "1_left,4", ""]
    spec = _kaggle(tmp_path, rows)
    found = {item.path.stem: item.label for item in corpus_images("kaggle_dr", spec, tmp_path)}
    assert found == {name: index % 5 for index, name in enumerate(KAGGLE)}
    patients = {item.patient for item in corpus_images("kaggle_dr", spec, tmp_path)}
    assert patients == {name.split("_")[0] for name in KAGGLE}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["image,level", f"{KAGGLE[0]},1"], rf"5 of 6 images have no grade \({KAGGLE[1]}\.jpeg"),
        (["image,level", f"{KAGGLE[0]},5"], rf"gives {KAGGLE[0]} the grade '5', not 0 to 4"),
        (["image,level", f"{KAGGLE[0]},mild"], r"the grade 'mild'"),
        (["image,grade", f"{KAGGLE[0]},1"], r"no column 'level'"),
    ],
    ids=["missing rows", "beyond the scale", "a word", "column"],
)
def test_a_broken_table_of_grades(rows: list[str], message: str, tmp_path: Path) -> None:
    spec = _kaggle(tmp_path, rows)
    with pytest.raises(MissingData, match=message) as caught:
        corpus_images("kaggle_dr", spec, tmp_path)
    assert "trainLabels.csv" in str(caught.value) or "kaggle_dr: " in str(caught.value)


def test_both_tables_of_idrid_grade_their_part(tmp_path: Path) -> None:
    spec = REGISTRY.corpora["idrid_grading"]
    touch(corpus_tree(spec, tmp_path))
    found = load(spec)(tmp_path)
    assert len(found) == 516
    assert [item.label for item in found[411:415]] == [1, 2, 0, 1]


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.fixture
def real() -> Path:
    """The folder of real datasets, where there is one."""
    if "BENCH_TEST_DATA" not in os.environ:
        pytest.skip("BENCH_TEST_DATA names no folder of datasets")
    return Path(os.environ["BENCH_TEST_DATA"])


@pytest.mark.parametrize(
    ("name", "state", "present", "parts"),
    [
        ("chase", "found", 28, (20, 8)),
        ("hrf", "partial", 14, (9, 5)),
        ("idrid_od", "partial", 20, (20, 0)),
        ("idrid_he", "partial", 20, (20, 0)),
        ("hannover_lung", "found", 77, (53, 24)),
    ],
)
def test_real_data(name: str, state: str, present: int, parts: tuple[int, int], real: Path) -> None:
    spec = REGISTRY.tasks[name]
    found = inventory(spec, real)
    assert (found.state, found.present) == (state, present)
    assert tuple(len(found.parts[split]) for split in SPLITS) == parts
    made = prepare_sample(found.parts["train"][0], spec, SIZE)
    image, mask = made["images"], made["masks"]
    assert image.std() > 10
    assert 0.001 < mask.mean() < 0.7


def test_the_patients_of_hannover_are_those_of_its_table(real: Path) -> None:
    found = inventory(REGISTRY.tasks["hannover_lung"], real)
    assert found.root is not None
    patients = {row["image_id"]: row["patient_id"] for row in read_table(found.root / "data.csv")}
    for part in found.parts.values():
        assert all(sample.patient == patients[sample.name] for sample in part)
