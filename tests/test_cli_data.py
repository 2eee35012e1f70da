"""`bench data`: what is there, what is wrong with it, and getting it ready; on small trees in the official layout."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bench import cli, data, registry
from bench.run.grid import Request, expand
from tests.conftest import textured_images
from tests.test_cli import on_a_terminal, refused, said, visible

NAMES = [f"Image_{child:02d}{eye}" for child in range(1, 15) for eye in "LR"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts in an empty folder with no data configured."""
    monkeypatch.chdir(tmp_path)
    for name in ("BENCH_DATA", "BENCH_DEBUG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def _tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    (root / "CHASEDB1").mkdir()
    for name, image in zip(NAMES, textured_images(len(NAMES), 96, 3), strict=True):
        cv2.imwrite(str(root / "CHASEDB1" / f"{name}.jpg"), image)
        cv2.imwrite(str(root / "CHASEDB1" / f"{name}_1stHO.png"), (image[..., 0] > 140).astype(np.uint8) * 255)
    (root / "IDRiD_grading_unlabeled_512").mkdir()
    for number, image in enumerate(textured_images(6, 96, 3, seed=1)):
        cv2.imwrite(str(root / "IDRiD_grading_unlabeled_512" / f"eye_{number}.jpg"), image)
    return root


@pytest.fixture
def root(_tree: Path, empty_folder: Path) -> Path:
    """A data root with one whole dataset and one corpus, that a test may spoil."""
    shutil.copytree(_tree, empty_folder / "root")
    return Path("root")


def status(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    found = json.loads(said(capsys, "data", "status", "--data", "root", "--json", *words))
    return {item["name"]: item for item in found["datasets"]}


def verified(capsys: pytest.CaptureFixture[str], *words: str, code: int) -> list[str]:
    """The lines that `verify`, which ends with `code`, says about findings."""
    assert cli.main(["data", "verify", "--data", "root", *words]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return [line for line in out.splitlines() if line.startswith(("problem: ", "note: "))]


def problems(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("problem: ")]


# -------------------------------------------------------------------------------------------------------------- status


def test_status_counts_what_is_there_and_says_where_to_get_the_rest(
    root: Path, capsys: pytest.CaptureFixture[str], shelves: registry.Registry
) -> None:
    found = status(capsys)
    assert set(found) == {*shelves.tasks, *shelves.corpora}
    chase, hrf = found["chase"], found["hrf"]
    assert (chase["state"], chase["images"], chase["expected"], chase["masks"]) == ("found", 28, 28, 28)
    assert chase["citation"] == shelves.tasks["chase"].citation
    assert (hrf["state"], hrf["source"]) == ("missing", shelves.tasks["hrf"].source)
    assert (found["idrid_grading"]["state"], found["idrid_grading"]["images"]) == ("found", 6)
    (root / "CHASEDB1" / "Image_03L_1stHO.png").unlink()
    (root / "CHASEDB1" / "Image_14R.jpg").unlink()
    chase = status(capsys, "chase")["chase"]
    assert (chase["state"], chase["images"], chase["masks"]) == ("partial", 26, 26)
    assert chase["missing"] == ["Image_03L_1stHO.png", "Image_14R.jpg"]
    text = said(capsys, "data", "status", "--data", "root")
    assert re.search(r"chase +task +partial +26/28 +26 +CC BY 4.0", text)
    assert "2 files are missing (Image_03L_1stHO.png, Image_14R.jpg); --allow-partial runs on the rest" in text
    assert re.search(rf"^hrf +{re.escape(shelves.tasks['hrf'].source)}$", text, re.MULTILINE)


def test_status_opens_no_image(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert {status(capsys)[name]["state"] for name in ("chase", "idrid_grading")} == {"found"}


def test_without_a_data_root_status_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no data root configured" in said(capsys, "data", "status")
    assert "phantom" in said(capsys, "data", "status", "chase")


def _link_to_itself(root: Path) -> str:
    shutil.rmtree(root / "CHASEDB1")
    (root / "CHASEDB1").symlink_to("CHASEDB1")
    return r"root/CHASEDB1 is a link that leads to no folder"


def _file_for_a_folder(root: Path) -> str:
    shutil.rmtree(root / "CHASEDB1")
    (root / "CHASEDB1").write_text("")
    return r"root/CHASEDB1 is no folder"


def _folder_for_a_file(root: Path) -> str:
    (root / "CHASEDB1" / "Image_01L.jpg").unlink()
    (root / "CHASEDB1" / "Image_01L.jpg").mkdir()
    return r"root/CHASEDB1/Image_01L.jpg is no file"


def _broken_link(root: Path) -> str:
    (root / "CHASEDB1" / "Image_01L.jpg").unlink()
    (root / "CHASEDB1" / "Image_01L.jpg").symlink_to("nowhere.jpg")
    return r"root/CHASEDB1/Image_01L.jpg is a link that leads to no file"


def _empty_file(root: Path) -> str:
    (root / "CHASEDB1" / "Image_01L.jpg").write_bytes(b"")
    return r"root/CHASEDB1/Image_01L.jpg is empty"


@pytest.mark.parametrize(
    "spoil",
    [_link_to_itself, _file_for_a_folder, _folder_for_a_file, _broken_link, _empty_file],
    ids=lambda f: f.__name__,
)
def test_what_stands_in_the_place_of_data_is_damage(
    root: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], str]
) -> None:
    sentence = spoil(root)
    found = status(capsys, "chase")["chase"]
    assert found["state"] == "damaged"
    assert any(re.match(sentence, text) for text in found["damaged"])
    lines = problems(verified(capsys, "chase", code=1))
    assert any(sentence.removeprefix("root/") in line for line in lines)


def test_a_folder_that_may_not_be_read_is_one_sentence(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    line = refused(capsys, "data", "status", "--data", "root")
    assert "the data root root cannot be read (Permission denied)" in line


def test_a_dataset_that_may_not_be_read_is_damaged(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    iterdir, access = Path.iterdir, os.access

    def refuse(self: Path) -> Any:
        if self.name == "CHASEDB1":
            raise PermissionError(13, "Permission denied", str(self))
        return iterdir(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        found = status(capsys, "chase")["chase"]
    assert (found["state"], found["damaged"]) == (
        "damaged",
        ["root/CHASEDB1 cannot be read (Permission denied): check its permissions"],
    )
    (root / "CHASEDB1" / "Image_01L.jpg").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: "CHASEDB1" not in str(path) and access(path, mode))
    found = status(capsys, "chase")["chase"]
    assert (found["state"], found["damaged"]) == ("damaged", ["root/CHASEDB1 cannot be entered: check its permissions"])


@pytest.mark.parametrize("command", ["status", "verify", "checksums", "prepare chase", "sample chase a.png"])
def test_a_data_root_that_is_no_folder_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert "file is a file: give --data the folder" in refused(capsys, "data", *command.split(), "--data", "file")
    assert "the data root nowhere cannot be read" in refused(capsys, "data", *command.split(), "--data", "nowhere")


def test_unknown_folders_are_a_note_with_a_hint(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Task04_Hippocampus", "CHASE-DB-1"):
        (root / name).mkdir()
    lines = [line for line in said(capsys, "data", "status", "--data", "root").splitlines() if "note" in line]
    assert lines == [
        "note: CHASE-DB-1 is no dataset or corpus of this version: nothing reads this folder; "
        "if it is that of chase, call it CHASE_DB1",
        "note: Task04_Hippocampus is no dataset or corpus of this version: nothing reads this folder",
    ]
    text = said(capsys, "data", "status", "--data", "root/CHASEDB1")
    assert "root/CHASEDB1 has the name of a dataset: give --data the folder that it lies in" in text


BAD_WORDS = [
    (["status", "chse"], "no task or corpus is called 'chse'; did you mean 'chase'?"),
    (["verify", "kagle_dr"], "did you mean 'kaggle_dr'"),
    (["verify"], "no data root is configured: give the folder of the datasets with --data, or set BENCH_DATA"),
    (["checksums", "folder:nowhere"], "nowhere is no folder: folder:PATH takes a folder of images"),
    (["prepare"], "(?i)missing argument.*see `bench data --help`"),
    (["prepare", "chase", "--image-size", "33"], "--image-size must be a multiple of 32, not 33"),
    (["sample", "fundus_all", "a.png"], "fundus_all is 8 of them; name one: chase, "),
    (["sample", "chase", "a.jpg"], "a contact sheet is a PNG"),
    (["checksums", "--write", "a", "--compare", "b"], "give one of them"),
    (["verfy"], "no such command 'verfy'"),
]


@pytest.mark.parametrize(("words", "sentence"), BAD_WORDS, ids=[" ".join(words) for words, _ in BAD_WORDS])
def test_every_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    assert re.search(sentence, refused(capsys, "data", *words))


def test_alone_it_tells_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "data")
    for command in ("status", "verify", "prepare", "sample", "checksums"):
        assert re.search(rf"^ +{command} +[A-Z].*\.$", text, re.MULTILINE), command


# -------------------------------------------------------------------------------------------------------------- verify


def test_verify_of_sound_data_is_well(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "verify", "chase", "idrid_grading", "--data", "root"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"chase +task +found +28/28 +28 +96x96\n", out)
    assert re.search(r"idrid_grading +corpus +found +6 +96x96\n", out)
    assert out.endswith("all is well\n")


def test_what_is_not_there_at_all_is_a_note_unless_it_was_asked_for(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [note] = [line for line in verified(capsys, code=0) if "not under" in line]
    assert "hrf" in note
    [line] = verified(capsys, "hrf", code=1)
    assert re.match(r"problem: hrf: no folder .*HRF.* is under root: get it from https.*CC BY 4.0", line)
    for path in root.iterdir():
        shutil.rmtree(path)
    assert problems(verified(capsys, code=1)), "nothing at all"


def test_what_was_read_once_is_not_read_again(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = verified(capsys, code=0)

    def fail(*_: object) -> None:
        raise AssertionError("opened again")

    monkeypatch.setattr(data, "read_image", fail)
    monkeypatch.setattr(data, "read_mask", fail)
    assert verified(capsys, code=0) == first
    shutil.rmtree("runs")
    with pytest.raises(AssertionError, match="opened again"):
        monkeypatch.setenv("BENCH_DEBUG", "1")
        cli.main(["data", "verify", "--data", "root"])


def _truncated_image(folder: Path) -> None:
    path = folder / "Image_02L.jpg"
    path.write_bytes(path.read_bytes()[:800])


def _mask_of_another_size(folder: Path) -> None:
    cv2.imwrite(str(folder / "Image_02L_1stHO.png"), np.full((90, 96), 255, np.uint8))


def _mask_too_dark(folder: Path) -> None:
    cv2.imwrite(str(folder / "Image_02L_1stHO.png"), np.full((96, 96), 2, np.uint8))


def _mask_lost(folder: Path) -> None:
    (folder / "Image_02L_1stHO.png").unlink()


def _mask_that_is_none(folder: Path) -> None:
    (folder / "Image_02L_1stHO.png").write_text("text")


def _twin_in_the_test_part(folder: Path) -> None:
    shutil.copy(folder / "Image_02L.jpg", folder / "Image_14R.jpg")


def _smaller_twin_in_the_test_part(folder: Path) -> None:
    image = cv2.imread(str(folder / "Image_02L.jpg"))
    cv2.imwrite(str(folder / "Image_14R.jpg"), cv2.resize(image, (80, 80)), [cv2.IMWRITE_JPEG_QUALITY, 60])
    cv2.imwrite(str(folder / "Image_14R_1stHO.png"), np.full((80, 80), 255, np.uint8))


def _corpus_holds_a_test_image(folder: Path) -> None:
    shutil.copy(folder / "Image_14R.jpg", folder.parent / "IDRiD_grading_unlabeled_512" / "other name.jpg")


def _corpus_holds_a_smaller_copy(folder: Path) -> None:
    image = cv2.resize(cv2.imread(str(folder / "Image_02L.jpg")), (80, 60))
    cv2.imwrite(str(folder.parent / "IDRiD_grading_unlabeled_512" / "eye_9.jpg"), image)


FAULTS = [
    (_truncated_image, r"chase: CHASEDB1/Image_02L.jpg .*"),
    (
        _mask_of_another_size,
        r"chase: the mask of CHASEDB1/Image_02L.jpg is 96x90, its image 96x96: check that the two belong together",
    ),
    (
        _mask_too_dark,
        r"chase: CHASEDB1/Image_02L_1stHO.png marks with values up to 2 of 255, too dark to count: save it as a mask "
        r"of 0 and 255",
    ),
    (
        _mask_lost,
        r"chase: 1 file is missing \(Image_02L_1stHO.png\): get them from \S+; 27/28 images are whole: "
        r"--allow-partial runs on them",
    ),
    (_mask_that_is_none, r"chase: CHASEDB1/Image_02L_1stHO.png is no readable mask.*"),
    (
        _twin_in_the_test_part,
        r"chase: CHASEDB1/Image_02L.jpg \(train\) and Image_14R \(test\) are the same file: .*take one of them out",
    ),
    (
        _smaller_twin_in_the_test_part,
        r"chase: CHASEDB1/Image_02L.jpg \(train\) and Image_14R \(test\) are one photograph: .*",
    ),
    (
        _corpus_holds_a_test_image,
        r"idrid_grading, chase: IDRiD_grading_unlabeled_512/other name.jpg and Image_14R \(test part\) are the same "
        r"file: --drop-leaks leaves it out of the corpus",
    ),
    (
        _corpus_holds_a_smaller_copy,
        r"idrid_grading, chase: IDRiD_grading_unlabeled_512/eye_9.jpg and Image_02L \(train part\) are one "
        r"photograph: .*",
    ),
]


@pytest.mark.parametrize(("spoil", "sentence"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_verify_finds_what_is_wrong_and_nothing_else(
    root: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(root / "CHASEDB1")
    [line] = problems(verified(capsys, code=1))
    assert re.fullmatch(f"problem: {sentence}", line)
    report = json.loads(_json(capsys, "verify", "--data", "root", "--json", code=1))
    assert report["problems"] == 1
    [finding] = [item for item in report["findings"] if item["level"] == "problem"]
    assert f"problem: {', '.join(finding['names'])}: {finding['text']}" == line
    states = {item["name"]: item["state"] for item in report["datasets"]}
    expected = {"damaged": "damaged", "mask": "damaged", "missing": "partial", "leak": "found"}[finding["kind"]]
    assert states == {"chase": expected, "idrid_grading": "found"}


def _json(capsys: pytest.CaptureFixture[str], *words: str, code: int) -> str:
    assert cli.main(["data", *words]) == code
    return capsys.readouterr().out


def test_twins_and_empty_masks_are_told_and_do_no_harm(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = root / "IDRiD_grading_unlabeled_512"
    shutil.copy(corpus / "eye_1.jpg", corpus / "eye_1 copy.jpg")
    cv2.imwrite(str(root / "CHASEDB1" / "Image_05R_1stHO.png"), np.zeros((96, 96), np.uint8))
    lines = verified(capsys, "chase", "idrid_grading", code=0)
    assert any("eye_1 copy.jpg and eye_1.jpg are the same file: the image counts twice" in line for line in lines)
    assert any("nothing is marked in the mask of CHASEDB1/Image_05R.jpg" in line for line in lines)


def test_a_part_that_is_absent_is_named_with_the_rule_that_takes_its_place(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in [*root.glob("CHASEDB1/Image_1[1234]*"), *root.glob("CHASEDB1/Image_0[456789]*")]:
        path.unlink()
    [line] = problems(verified(capsys, code=1))
    assert re.search(
        r"8/28 images are whole, none of its test part: --allow-partial runs on them \(the last third", line
    )


def test_a_folder_is_a_corpus_too(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "IDRiD_grading_unlabeled_512").rename("mine")
    assert verified(capsys, "folder:mine", "chase", code=0) == []
    shutil.copy(root / "CHASEDB1" / "Image_01L.jpg", Path("mine"))
    [line] = verified(capsys, "folder:mine", "chase", code=1)
    assert re.match(r"problem: folder:mine, chase: \S*mine/Image_01L.jpg and Image_01L \(train part\)", line)
    assert cli.main(["data", "verify", "folder:mine"]) == 0, "a folder needs no data root"


MINE = """
from bench.data import Mask, RunLength, Sample
from bench.registry import task


@task(
    "mine", version=1, title="Mine", groups=(), section="-", corpus="kaggle_dr", channels=3,
    licence="mine", citation="me", source="here", revision="1", folders=("mine",), layout="0.png",
    train=3, test=1,
)
def load(root, split):
    runs = ["0 96", "9216 1", "1 2 3", "5 96"]
    sizes = [96, 96, 96, 48]
    return [
        Sample(f"film {n}", root / f"{n}.png", Mask(RunLength((runs[n],), sizes[n], sizes[n] + (n == 3))), "both")
        for n in {"train": (0, 1, 2), "test": (3,)}[split]
    ]
"""


def test_run_lengths_are_read_and_a_plug_in_file_is_looked_at(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(MINE)
    (root / "mine").mkdir()
    for number, image in enumerate(textured_images(4, 96, 3, seed=5)):
        cv2.imwrite(str(root / "mine" / f"{number}.png"), image)
    one, two, three, note = verified(capsys, "./mine.py", code=1)
    assert re.match(r"problem: mine: the mask of mine/1.png: the run lengths '9216 1' do not fit 96x96 pixels", one)
    assert re.match(r"problem: mine: the mask of mine/2.png: the run lengths '1 2 3' do not fit", two)
    assert three.startswith("problem: mine: the mask of mine/3.png is 49x48, its image 96x96")
    assert note == (
        "note: mine: patients both are in the train and in the test part of mine: say so beside its numbers"
    )


def test_a_task_of_a_toml_file_needs_no_data_root(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "CHASEDB1"
    (folder / "mine.toml").write_text('images = "*.jpg"\nmasks = "*_1stHO.png"\ntest_fraction = 0.25\n')
    assert cli.main(["data", "verify", str(folder / "mine.toml")]) == 0
    assert re.search(r"mine +task +found +28/28 +28 +96x96", capsys.readouterr().out)
    assert "sheet.png written" in said(capsys, "data", "sample", str(folder / "mine.toml"), "sheet.png")


def test_many_findings_of_a_kind_are_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        cv2.imwrite(str(root / "CHASEDB1" / f"{name}_1stHO.png"), np.full((90, 96), 255, np.uint8))
    lines = problems(verified(capsys, "chase", code=1))
    assert len(lines) == 21
    assert lines[-1] == "problem: chase: 8 more of this kind (mask); --json lists them"


# ------------------------------------------------------------------------------------------------------------- prepare


def test_a_run_opens_what_prepare_made(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = said(capsys, "data", "prepare", "chase", "idrid_grading", "--image-size", "32", "--data", "root")
    assert "chase: 28 images of 32 px ready" in text
    assert "idrid_grading: 6 images of 32 px ready" in text
    found = registry.scan()
    request = Request("simclr", "chase", corpus="idrid_grading", budget="smoke", image_size=32, data=root)
    grid, site = expand(request, found), request.site(found)
    before = sorted(Path("runs/cache").iterdir())

    def fail(*_: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr("bench.data.opened.prepare_image", fail)
    monkeypatch.setattr("bench.data.opened.prepare_sample", fail)
    cell = next(cell for cell in grid.transfers if cell.pretrain.trained)
    assert data.open_dataset(cell, found, site).images.shape == (28, 32, 32, 3)
    assert data.open_corpus(cell.pretrain, found, site).images.shape == (6, 32, 32, 3)
    assert sorted(Path("runs/cache").iterdir()) == before


def test_prepare_makes_phantoms_and_refuses_parts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "chase: 28 images of 32 px ready" in said(capsys, "data", "prepare", "chase", "--image-size", "32")
    (root / "CHASEDB1" / "Image_03L.jpg").unlink()
    words = ["data", "prepare", "chase", "--image-size", "32", "--data", "root"]
    assert "Image_03L.jpg" in refused(capsys, *words)
    assert "chase: 27 images" in said(capsys, *words, "--allow-partial")


# ----------------------------------------------------------------------------------------------------------- checksums


def test_checksums_tell_two_copies_apart(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "CHASEDB1" / "a\\b\nc.txt").write_text("odd")
    assert "sums.txt written: 63 files" in said(capsys, "data", "checksums", "--write", "sums.txt", "--data", "root")
    assert "63 files as in sums.txt" in said(capsys, "data", "checksums", "--compare", "sums.txt", "--data", "root")
    shutil.move(root / "CHASEDB1", root / "chase")
    assert "63 files as in sums.txt" in said(capsys, "data", "checksums", "--compare", "sums.txt", "--data", "root")
    shutil.move(root / "chase", root / "CHASEDB1")
    shutil.rmtree(root / "IDRiD_grading_unlabeled_512")
    changed = root / "CHASEDB1" / "Image_01L.jpg"
    state = changed.stat()
    changed.write_bytes(changed.read_bytes()[:-1] + b"\0")
    os.utime(changed, ns=(state.st_atime_ns, state.st_mtime_ns))
    (root / "CHASEDB1" / "Image_01R.jpg").unlink()
    (root / "CHASEDB1" / "new.jpg").write_text("new")
    words = ["checksums", "chase", "--compare", "sums.txt", "--data", "root"]
    lines = _json(capsys, *words, code=1).splitlines()
    assert lines == [
        "CHASEDB1/Image_01L.jpg differs",
        "CHASEDB1/Image_01R.jpg is missing",
        "CHASEDB1/new.jpg is not in the list",
        "3 differences from sums.txt",
    ]
    assert "9 differences" in _json(capsys, words[0], *words[2:], code=1), "without names all of the list counts"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_the_list_is_one_that_sha256sum_reads(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "CHASEDB1" / "a\\b\nc.txt").write_text("odd")
    text = said(capsys, "data", "checksums", "chase", "--data", "root")
    command = ["sha256sum", "--check", "--strict", "--quiet"]
    subprocess.run(command, input=text, cwd=root, text=True, check=True)


def test_lists_that_are_none_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list").write_text("hello\n")
    words = ["data", "checksums", "--data", "root", "--compare"]
    assert "line 1 of list is no checksum" in refused(capsys, *words, "list")
    assert "nowhere cannot be read" in refused(capsys, *words, "nowhere")
    assert "hrf" in refused(capsys, "data", "checksums", "hrf", "--data", "root").casefold()
    for place in ("a", "b"):
        shutil.copytree(root / "IDRiD_grading_unlabeled_512", Path(place, "mine"))
    two = refused(capsys, "data", "checksums", "folder:a/mine", "folder:b/mine")
    assert re.search(r"\S*a/mine and \S*b/mine have one name: make a list for each", two)
    (root / "CHASEDB1" / "loop").symlink_to(".")
    assert "56 files" in said(capsys, "data", "checksums", "chase", "--write", "sums.txt", "--data", "root")


# ------------------------------------------------------------------------------------------------------------ terminal


@pytest.mark.parametrize("words", [["status"], ["verify", "chase", "idrid_grading"], ["--help"]], ids=" ".join)
def test_on_a_terminal_nothing_is_wider_than_it(root: Path, words: list[str]) -> None:
    place = [] if words == ["--help"] else ["--data", "root"]
    text = on_a_terminal(Path.cwd(), "data", *words, *place)
    assert max(len(line) for line in re.split(r"[\r\n]+", visible(text))) <= 80
    assert ("━" in text) == (words[0] == "verify")


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.fixture
def real() -> Path:
    place = Path(os.environ.get("BENCH_TEST_DATA", "nowhere"))
    if not (place / "IDRiD_grading_unlabeled_512").is_dir():
        pytest.skip("needs BENCH_TEST_DATA")
    return place


def test_real_images_partial_sets_and_leaks_are_told_and_none_falsely(
    real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(said(capsys, "data", "status", "--data", str(real), "--json"))
    counts = {item["name"]: (item["state"], item["images"], item["expected"]) for item in found["datasets"]}
    wanted_counts = {
        "chase": ("found", 28, 28),
        "hrf": ("partial", 14, 45),
        "idrid_od": ("partial", 20, 81),
        "idrid_he": ("partial", 20, 81),
        "idrid_grading": ("found", 516, None),
        "stare": ("missing", 0, 20),
    }
    assert wanted_counts.items() <= counts.items()
    notes = {item["file"] for item in found["notes"]}
    assert {"OCTA_synthetic_vessels", "Task04_Hippocampus", "TotalSegmentator_sample"} <= notes
    words = ["verify", "chase", "idrid_od", "idrid_grading", "--data", str(real), "--json"]
    report = json.loads(_json(capsys, *words, code=1))
    with (real / "IDRiD_grading_unlabeled_512" / "index.csv").open() as file:
        wanted = {row["file"] for row in csv.DictReader(file) if row["same_eye_as_segmentation_image"]}
    assert len(wanted) == 17
    leaks = [item for item in report["findings"] if item["kind"] == "leak"]
    assert sorted(Path(item["file"]).name for item in leaks) == sorted(wanted)
    assert all(item["names"] == ["idrid_grading", "idrid_od"] for item in leaks)
    [missing] = [item for item in report["findings"] if item["kind"] == "missing"]
    assert "20/81 images are whole, none of its test part" in missing["text"]
    assert report["problems"] == 18


def test_a_dataset_in_the_folder_that_a_corpus_goes_by_is_not_that_corpus(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "IDRiD_grading_unlabeled_512")
    (root / "IDRiD" / "A. Segmentation").mkdir(parents=True)
    assert status(capsys, "idrid_grading")["idrid_grading"]["state"] == "missing"
    assert not any("idrid_grading" in line for line in problems(verified(capsys, code=1)))
    [line] = problems(verified(capsys, "idrid_grading", code=1))
    assert line.startswith("problem: idrid_grading: none of it is in IDRiD: get it from https://")
    line = refused(capsys, "plan", "--methods", "pd", "--tasks", "chase", "--data", "root", "--budget", "smoke")
    assert line.startswith("error: kaggle_dr: none of ")
    assert "or give another corpus with --corpus" in line
