"""Contact sheets: images with a line around what is marked, and the word *phantom* where they are generated."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bench import registry
from bench.cli import sheet
from bench.spec import BenchError
from tests.conftest import textured_images


def drawn(path: Path) -> NDArray[np.uint8]:
    """A PNG as (H, W, 3) in RGB order."""
    return np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), np.uint8)


def outlined(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the colour of the outlines stands."""
    return (np.abs(picture.astype(int) - sheet.OUTLINE) < 60).all(axis=2)


@pytest.fixture
def grey_tree(tmp_path: Path) -> Path:
    """A whole CHASE_DB1 of grey images, each with one square marked."""
    folder = tmp_path / "CHASEDB1"
    folder.mkdir()
    mask = np.zeros((96, 96), np.uint8)
    mask[24:72, 24:72] = 255
    for child in range(1, 15):
        for eye in "LR":
            cv2.imwrite(str(folder / f"Image_{child:02d}{eye}.jpg"), np.full((96, 96, 3), 90, np.uint8))
            cv2.imwrite(str(folder / f"Image_{child:02d}{eye}_1stHO.png"), mask)
    return tmp_path


def test_masks_are_drawn_around_what_they_mark_beside_the_plain_image(
    grey_tree: Path, tmp_path: Path, shelves: registry.Registry
) -> None:
    sheet.write("chase", shelves.tasks["chase"], grey_tree, tmp_path / "a.png")
    picture = drawn(tmp_path / "a.png")
    assert picture.shape == (sheet.CAPTION + sheet.ROWS * (sheet.TILE + sheet.LABEL), sheet.ACROSS * sheet.TILE, 3)
    tiles = picture[sheet.CAPTION :, :, :]
    plain, marked = tiles[: sheet.TILE, : sheet.TILE], tiles[: sheet.TILE, sheet.TILE : 2 * sheet.TILE]
    assert not outlined(plain).any()
    line = outlined(marked)
    assert line.any()
    rows, columns = np.nonzero(line)
    quarter, edge = sheet.TILE // 4, 4
    for places in (rows, columns):
        assert abs(places.min() - quarter) <= edge
        assert abs(places.max() - 3 * quarter) <= edge
    inside = marked[quarter + edge : -quarter - edge, quarter + edge : -quarter - edge]
    assert np.abs(inside.astype(int) - 90).max() <= 3, "what is marked stays visible"
    assert len(np.unique(tiles[:, -sheet.TILE :].reshape(-1, 3), axis=0)) > 2, "the last column is drawn too"


def test_fine_structures_get_finer_lines() -> None:
    side = sheet.TILE * sheet.FINE
    fine, big = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    fine[:, ::40] = 1
    big[100:400, 100:400] = 1
    panels = [[sheet.Panel([mask], mask, "")] for mask in (fine, big)]
    assert [sheet._reach(panel) for panel in panels] == [1, 2]
    assert sheet._reach([*panels[0], *panels[1]]) == 2, "one width on a sheet"
    around = np.flatnonzero(sheet._ring(fine, 1)[250])
    assert set(around % 40) == {1, 39}, "one pixel on each side, what is marked left free"


def test_a_part_is_drawn_and_says_so(grey_tree: Path, tmp_path: Path, shelves: registry.Registry) -> None:
    for path in (grey_tree / "CHASEDB1").glob("Image_0[1-9]*"):
        path.unlink()
    sheet.write("chase", shelves.tasks["chase"], grey_tree, tmp_path / "a.png")
    part = drawn(tmp_path / "a.png")
    assert part.shape[0] == sheet.CAPTION + 3 * (sheet.TILE + sheet.LABEL), "10 images in rows of 4"
    assert sheet._task_panels(shelves.tasks["chase"], grey_tree)[1] == "10 images; incomplete: the dataset has 28"


def test_a_folder_of_images_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for index, image in enumerate(textured_images(3, 40, 3)):
        cv2.imwrite(str(tmp_path / "mine" / f"bild ä {index}.png"), image)
    sheet.write(f"folder:{tmp_path / 'mine'}", None, None, tmp_path / "a.png")
    assert drawn(tmp_path / "a.png").shape[1] == 3 * sheet.TILE


def test_phantoms_are_called_so_on_the_picture(
    grey_tree: Path, tmp_path: Path, shelves: registry.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "ROWS", 1)
    spec, texts = shelves.tasks["chase"], list[str]()
    text = sheet._text
    monkeypatch.setattr(sheet, "_text", lambda words, *rest: texts.append(words) or text(words, *rest))
    sheet.write("chase", spec, None, tmp_path / "a.png")
    assert texts[-1] == "chase: 4 of 28 images - PHANTOM: generated images, not data"
    assert texts[0] == "phantom 0"
    texts.clear()
    sheet.write("chase", spec, grey_tree, tmp_path / "a.png")
    assert not any("phantom" in words.casefold() for words in texts)


def test_a_phantom_corpus_shows_grades_and_second_modality(
    tmp_path: Path, shelves: registry.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "ROWS", 1)
    spec = next(spec for spec in shelves.corpora.values() if spec.phantom.get("pairs") and spec.phantom.get("grades"))
    panels, _ = sheet._corpus_panels(spec.name, spec, None)
    assert len(panels) == sheet.ACROSS // 2
    assert all(len(panel.images) == 2 for panel in panels)
    assert all(any(grade in panel.label for grade in spec.classes) for panel in panels)


def test_only_a_png_is_written(tmp_path: Path, shelves: registry.Registry) -> None:
    with pytest.raises(BenchError, match=r"a name that ends in \.png, not a\.jpg"):
        sheet.write("chase", shelves.tasks["chase"], None, tmp_path / "a.jpg")
