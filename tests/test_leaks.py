"""The leakage audit: copies are found whatever was done to them, look-alikes are not; leaks reach cells and keys."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bench.data import Sample, leaks
from bench.registry import Registry, bare
from bench.run.grid import Request, expand
from bench.spec import BenchError

Pixels = Any
REAL = Path(os.environ.get("BENCH_TEST_DATA", "/nowhere"))
real = pytest.mark.skipif(not REAL.is_dir(), reason="BENCH_TEST_DATA names no folder of datasets")


def photograph(seed: int, height: int = 300, width: int = 360) -> Pixels:
    """A round field of view with the same disc and shading everywhere and vessels of its own: (height, width, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    radius = np.hypot((rows - height / 2) / (0.45 * height), (columns - width / 2) / (0.45 * width))
    picture = np.stack([170 - 60 * radius, 90 - 30 * radius, 40 - 10 * radius], axis=-1)
    picture += 60 * np.exp(-((rows - height / 2) ** 2 + (columns - width / 3) ** 2) / 500)[..., None]
    canvas = np.zeros((height, width), np.float32)
    for _ in range(14):
        points = np.array([width / 2, height / 2]) + np.cumsum(rng.normal(0, 25, (9, 2)), axis=0)
        cv2.polylines(canvas, [points.astype(np.int32)], False, 1.0, int(rng.integers(2, 6)))
    picture -= 50 * cv2.GaussianBlur(canvas, (0, 0), 1.0)[..., None]
    picture[radius > 1] = 0
    return picture.clip(0, 255).astype(np.uint8)


def save(path: Path, picture: Pixels, quality: int = 95) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path


def samples(*paths: Path) -> list[Sample]:
    return [Sample(path.stem, path) for path in paths]


def found(corpus: list[Path], parts: dict[str, list[Sample]], cache: Path) -> list[tuple[str, str, str, str]]:
    return [(hit.corpus.name, hit.labelled, hit.part, hit.how) for hit in leaks.audit(corpus, parts, cache).hits]


# --------------------------------------------------------------------------------------------------------------- images


def _resized(width: int, height: int) -> Callable[[Pixels], Pixels]:
    return lambda picture: cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


CHANGES: dict[str, tuple[str, Callable[[Pixels], Pixels], int]] = {
    "smaller": ("png", _resized(128, 107), 0),
    "square": ("png", _resized(128, 128), 0),
    "wide": ("jpg", _resized(1280, 720), 90),
    "compressed": ("jpg", lambda picture: picture, 20),
    "smaller and compressed": ("jpg", _resized(200, 170), 40),
    "grey": ("png", lambda picture: cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), 0),
    "darker": ("png", lambda picture: (255 * (picture / 255.0) ** 1.4).astype(np.uint8), 0),
    "on black": ("png", lambda picture: cv2.copyMakeBorder(picture, 40, 40, 10, 70, cv2.BORDER_CONSTANT, value=0), 0),
    "cut to its field of view": ("png", lambda picture: picture[15:-15, 18:-18], 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_look_alikes_are_not(tmp_path: Path, change: str) -> None:
    suffix, make, quality = CHANGES[change]
    labelled = [save(tmp_path / "task" / f"{seed}.png", photograph(seed)) for seed in range(12)]
    corpus = [save(tmp_path / "corpus" / f"o{seed}.png", photograph(100 + seed)) for seed in range(12)]
    corpus.append(save(tmp_path / "corpus" / f"copy.{suffix}", make(photograph(3)), quality))
    parts = {"train": samples(*labelled[:2]), "test": samples(*labelled[2:])}
    assert found(corpus, parts, tmp_path) == [(f"copy.{suffix}", "3", "test", "perceptual")]


def test_the_same_file_and_the_same_pixels_are_exact(tmp_path: Path) -> None:
    labelled = [save(tmp_path / "task" / f"{seed}.png", photograph(seed)) for seed in range(3)]
    same = tmp_path / "corpus" / "a.png"
    same.parent.mkdir()
    same.write_bytes(labelled[0].read_bytes())
    other = save(tmp_path / "corpus" / "b.bmp", photograph(1))
    parts = {"train": samples(labelled[0]), "test": samples(*labelled[1:])}
    audit = leaks.audit([same, other], parts, tmp_path)
    assert [(hit.corpus, hit.labelled, hit.part, hit.how) for hit in audit.hits] == [
        (same, "0", "train", "exact"),
        (other, "1", "test", "exact"),
    ]
    assert audit.images("test") == [other] and audit.images("train", "test") == [same, other]


def test_one_photograph_in_both_parts_and_twice_in_the_corpus_is_named_each_time(tmp_path: Path) -> None:
    labelled = save(tmp_path / "task" / "0.png", photograph(0))
    corpus = [save(tmp_path / "corpus" / name, photograph(0), quality=60) for name in ("a.jpg", "b.jpg")]
    audit = leaks.audit(corpus, {"train": samples(labelled), "test": samples(labelled)}, tmp_path)
    assert len(audit.hits) == 4 and audit.images("train", "test") == corpus


def test_pictures_that_show_nothing_are_like_nothing(tmp_path: Path) -> None:
    plain = [save(tmp_path / f"{value}.png", np.full((90, 120), value, np.uint8)) for value in (0, 1, 120, 255)]
    assert found(plain[:2], {"test": samples(*plain[2:])}, tmp_path) == []
    assert found(plain[:1], {"test": samples(plain[0])}, tmp_path) == [("0.png", "0", "test", "exact")]


def test_an_empty_part_is_no_error(tmp_path: Path) -> None:
    corpus = [save(tmp_path / "a.png", photograph(0))]
    assert found(corpus, {"train": [], "test": []}, tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------- cache


def test_a_second_audit_decodes_nothing_and_a_new_image_alone_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = [save(tmp_path / "task" / f"{seed}.png", photograph(seed)) for seed in range(3)]
    corpus = [save(tmp_path / "corpus" / f"{seed}.jpg", photograph(seed), 50) for seed in range(2)]
    parts = {"test": samples(*labelled)}
    first = found(corpus, parts, tmp_path / "cache")
    read, plain = list[str](), leaks._read
    monkeypatch.setattr(leaks, "_read", lambda path: read.append(path.name) or plain(path))
    assert found(corpus, parts, tmp_path / "cache") == first and len(first) == 2 and not read
    corpus.append(save(tmp_path / "corpus" / "new.jpg", photograph(77), 50))
    assert found(corpus, parts, tmp_path / "cache") == first
    assert read.count("new.jpg") == 1 and "2.png" not in read


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_a_damaged_memory_is_made_again(tmp_path: Path, content: bytes | None) -> None:
    corpus = [save(tmp_path / "corpus" / "a.jpg", photograph(0), 50)]
    parts = {"test": samples(save(tmp_path / "task" / "0.png", photograph(0)))}
    cache = tmp_path / "cache"
    first, memory = found(corpus, parts, cache), cache / "signatures.npy"
    for remembered in (cache / "leaks").iterdir():
        remembered.unlink()
    memory.write_bytes(memory.read_bytes()[:-900] if content is None else content)
    assert found(corpus, parts, cache) == first and len(first) == 1


@pytest.mark.parametrize("name", ["bad.png", "bad.jpg"])
def test_an_unreadable_image_is_named(tmp_path: Path, name: str) -> None:
    bad = tmp_path / name
    bad.write_bytes(b"no picture")
    parts = {"test": samples(save(tmp_path / "0.png", photograph(0)))}
    with pytest.raises(BenchError, match=name):
        leaks.audit([bad], parts, tmp_path / "cache")


# ------------------------------------------------------------------------------------------------------------ real data


@real
def test_the_real_corpus_shares_seventeen_photographs(tmp_path: Path) -> None:
    folder = REAL / "IDRiD_grading_unlabeled_512"
    originals = REAL / "IDRiD" / "A. Segmentation" / "1. Original Images" / "a. Training Set"
    if not (folder.is_dir() and originals.is_dir()):
        pytest.skip("IDRiD is not there")
    with (folder / "index.csv").open(encoding="utf-8") as stream:
        flagged = {row["file"]: row["same_eye_as_segmentation_image"] for row in csv.DictReader(stream)}
    corpus, labelled = sorted(folder.glob("*.jpg")), sorted(originals.glob("*.jpg"))
    others = sorted((REAL / "CHASEDB1").glob("*.jpg")) + sorted((REAL / "HRF" / "images").glob("*"))
    hits = leaks.audit(corpus, {"train": samples(*labelled), "test": samples(*others)}, tmp_path).hits
    assert {(hit.corpus.name, f"{hit.labelled}.jpg") for hit in hits} == {pair for pair in flagged.items() if pair[1]}
    assert len(hits) == 17 and {hit.how for hit in hits} == {"perceptual"}


@real
def test_no_film_passes_for_that_of_another_patient(tmp_path: Path) -> None:
    films = sorted((REAL / "Hannover_COVID19_CXR" / "png").glob("*.png"))
    if not films:
        pytest.skip("Hannover is not there")
    hits = leaks.audit(films, {"test": samples(*films)}, tmp_path).hits
    assert {(hit.corpus.stem, hit.labelled) for hit in hits} == {(path.stem, path.stem) for path in films}


# ---------------------------------------------------------------------------------------------------------------- cells

PLUGINS = """
from dataclasses import dataclass
from pathlib import Path
from bench.data import CorpusImage, Mask, Sample
from bench.registry import corpus, method, task

@dataclass(frozen=True)
class HParams:
    rate: float = 0.1

@method("plain", HParams, version=1, title="Plain", paper="-", groups=("baseline",), trains=False)
class Plain: ...

@method("alpha", HParams, version=1, title="Alpha", paper="-", groups=(), paper_steps=10, paper_batch=4)
@method("graded", HParams, version=1, title="Graded", paper="-", groups=(), paper_steps=10, paper_batch=4,
        needs="labels")
@method("paired", HParams, version=1, title="Paired", paper="-", groups=(), paper_steps=10, paper_batch=4,
        needs="pairs")
@method("judge", HParams, version=1, title="Judge", paper="-", groups=("baseline",), paper_steps=10, paper_batch=4,
        needs="labels")
class Alpha: ...

@corpus("pool", version=1, title="Pool", channels=3, licence="-", citation="-", source="-", folders=("pool",),
        layout="-", known_leaks=("disc",), classes=("no", "yes"),
        phantom={"modality": "fundus", "images": 4, "cameras": [{}], "grades": True})
def pool(root):
    return [CorpusImage(path) for path in sorted(root.glob("*.*"))]

def _load(root, split):
    return [Sample(path.stem, path, Mask(path.with_suffix(".gif"))) for path in sorted((root / split).glob("*.png"))]

@task("veins", version=1, title="Veins", groups=("eyes",), section="Eye", corpus="pool",
      channels=3, licence="-", citation="-", source="-", revision="1", folders=("veins",), layout="-",
      train=2, test=2, phantom={"modality": "fundus", "target": "vessels", "camera": {}})
def veins(root, split):
    return _load(root, split)

@task("disc", version=1, title="Disc", groups=("eyes",), section="Eye", corpus="pool",
      channels=3, licence="-", citation="-", source="-", revision="1", folders=("disc",), layout="-",
      train=2, test=2, phantom={"modality": "fundus", "target": "disc", "camera": {}})
def disc(root, split):
    return _load(root, split)
"""


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry, path = bare(), tmp_path_factory.mktemp("plugins") / "plugins.py"
    path.write_text(PLUGINS)
    registry.add_file(path)
    return registry


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """Two tasks of four images; the corpus has one of each part of the first, and two more."""
    root = tmp_path / "data"
    for first, name in ((0, "veins"), (10, "disc")):
        for at, split in enumerate(("train", "train", "test", "test")):
            path = save(root / name / split / f"{first + at}.png", photograph(first + at))
            path.with_suffix(".gif").write_bytes(b"a mask")
    for seed, name in ((2, "copy_test"), (1, "copy_train"), (200, "own"), (201, "other")):
        save(root / "pool" / f"{name}.jpg", photograph(seed), quality=60)
    return Request("alpha", "veins", data=root, runs=tmp_path / "runs", results=tmp_path / "results", budget="smoke")


def leaks_of(request: Request, shelves: Registry) -> dict[tuple[str, str], tuple[tuple[str, str], ...]]:
    return {(cell.pretrain.method, cell.task): cell.leaks for cell in expand(request, shelves).transfers}


def test_cells_know_what_their_corpus_shares_with_their_task(shelves: Registry, request_: Request) -> None:
    found = leaks_of(replace(request_, tasks="veins,disc"), shelves)
    assert found["alpha", "veins"] == (
        ("test", "1 corpus image is in the test part: copy_test.jpg"),
        ("train", "1 corpus image is in the train part: copy_train.jpg"),
    )
    assert found["plain", "veins"] == found["plain", "disc"] == ()
    assert found["alpha", "disc"] == (
        ("known", "pool is known to share images with disc; the audit found none of them here"),
    )


def test_many_leaks_are_counted(shelves: Registry, request_: Request) -> None:
    assert request_.data is not None
    for number in range(4):
        save(request_.data / "pool" / f"more{number}.jpg", photograph(2), quality=50 + number)
    assert leaks_of(request_, shelves)["alpha", "veins"][0] == (
        "test",
        "5 corpus images are in the test part: copy_test.jpg, more0.jpg, more1.jpg and 2 more",
    )


def test_phantoms_share_nothing(shelves: Registry, request_: Request) -> None:
    found = leaks_of(replace(request_, data=None, tasks="veins,disc"), shelves)
    assert len(found) == 6 and set(found.values()) == {()}  # with the baseline that needs grades


def test_dropping_leaks_changes_the_key_and_not_with_the_tasks_asked_for(shelves: Registry, request_: Request) -> None:
    whole = expand(request_, shelves).pretrainings[0]
    cleaned = replace(request_, drop_leaks=True)
    keys = set()
    for tasks in ("veins", "disc", "veins,disc"):
        grid = expand(replace(cleaned, tasks=tasks), shelves)
        assert len(grid.pretrainings[0].dropped) == 2
        keys.add(grid.pretrainings[0].key)
        assert all(cell.leaks == () for cell in grid.transfers if cell.task == "veins")
    assert len(keys) == 1 and whole.key not in keys and whole.dropped == ()


def test_a_dataset_that_leaks_nothing_changes_no_key(shelves: Registry, request_: Request) -> None:
    assert request_.data is not None
    cleaned = replace(request_, drop_leaks=True)
    before = expand(cleaned, shelves).pretrainings[0].key
    aside = request_.data / "disc"
    aside.rename(request_.data / "elsewhere")
    assert expand(cleaned, shelves).pretrainings[0].key == before


def test_nothing_to_drop_is_the_same_pretraining(shelves: Registry, request_: Request) -> None:
    assert request_.data is not None
    for name in ("copy_test", "copy_train"):
        (request_.data / "pool" / f"{name}.jpg").unlink()
    keys = {expand(replace(request_, drop_leaks=drop), shelves).pretrainings[0].key for drop in (False, True)}
    assert len(keys) == 1


# ------------------------------------------------------------------------------------------------- what a corpus lacks


def test_a_method_whose_need_the_corpus_does_not_meet_is_not_available(shelves: Registry, request_: Request) -> None:
    grid = expand(replace(request_, methods="alpha,graded,paired"), shelves)
    assert {cell.pretrain.method for cell in grid.transfers} == {"plain", "alpha"}
    assert grid.unavailable == {
        ("graded", "veins"): "graded needs image-level grades, which the corpus pool does not have",
        ("paired", "veins"): "paired needs images of a second modality, which the corpus pool does not have",
    }
    assert grid.methods == ("plain", "alpha", "graded", "paired")  # not the baseline that nobody asked for
    phantoms = expand(replace(request_, methods="graded", data=None), shelves)
    assert {cell.pretrain.method for cell in phantoms.transfers} == {"plain", "judge", "graded"}


def test_nothing_but_what_is_not_available_is_an_error_that_says_why(shelves: Registry, request_: Request) -> None:
    with pytest.raises(BenchError, match="paired needs images of a second modality"):
        expand(replace(request_, methods="paired,!plain,!judge"), shelves)
