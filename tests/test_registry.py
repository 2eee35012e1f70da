"""Names are read without running anything; two of a name collide, unknown ones meet their neighbours."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench import registry
from bench.registry import Registry, bare, hparams_of, load, scan
from bench.spec import BenchError

HOME = Path(__file__).resolve().parent.parent
HEAD = """
from dataclasses import dataclass
from bench.registry import method

@dataclass(frozen=True)
class HParams:
    clusters: int = 16  # regions per image
    rate: float = 1
"""
TASK = """
@task("x", version=1, title="T", groups=("g",), section="S", corpus="c", channels=3,
      licence="l", citation="c", source="s", revision="1", folders=("x",), layout="l", train=2, test=1)
def load(root, split): ...
"""


@pytest.fixture(autouse=True)
def nothing_imported_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_objects", {})


def write(folder: Path, name: str, body: str, head: str = HEAD) -> Path:
    path = folder / f"{name}.py"
    path.write_text(head + body)
    return path


def declare(name: str, more: str = "") -> str:
    call = f'@method("{name}", HParams, version=1, title="T", paper="P", groups=("g",){more})'
    return f"\n{call}\nclass C{name.title()}: ...\n"


# ------------------------------------------------------------------------------------------------- what the house ships


def test_every_shipped_file_is_read_and_can_be_imported() -> None:
    shelves = scan()
    assert shelves.broken == {}
    for kind in ("method", "task", "corpus"):
        for spec in shelves._shelf(kind).values():
            assert load(spec).__name__ == spec.origin.symbol
    for spec in shelves.methods.values():
        assert vars(hparams_of(spec, {})) == spec.defaults


def test_every_task_names_a_corpus_that_is_there() -> None:
    shelves = scan()
    assert {task.corpus for task in shelves.tasks.values()} <= set(shelves.corpora)


def test_names_are_listed_without_torch() -> None:
    code = "import sys; from bench.registry import scan; assert scan().methods; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HOME)


# --------------------------------------------------------------------------------------------------------- declarations


def test_a_declaration_is_read_with_its_fields_and_their_comments(tmp_path: Path) -> None:
    shelves = bare()
    path = write(tmp_path, "mine", declare("mine", ", set={'clusters': 8}"))
    assert shelves.add_file(path) == ["mine"]
    spec = shelves.methods["mine"]
    assert spec.defaults == {"clusters": 8, "rate": 1.0}
    assert spec.fields[0].doc == "regions per image" and isinstance(spec.fields[1].default, float)
    assert (spec.origin.file, spec.origin.symbol) == (str(path), "CMine")
    assert hparams_of(spec, {"rate": 2.0}).rate == 2.0 and hparams_of(spec, {}).clusters == 8


def test_a_literal_may_hold_the_entries_of_another(tmp_path: Path) -> None:
    camera = 'CAMERA = {"fov": 30, "cup": 0.5}\nMORE = {**CAMERA, "fov": 45, "noise": {**CAMERA}}\n'
    path = write(tmp_path, "mine", TASK.replace("train=2", 'phantom={"camera": MORE}, train=2'), HEAD + camera)
    shelves = bare()
    shelves.add_file(path)
    assert shelves.tasks["x"].phantom == {"camera": {"fov": 45, "cup": 0.5, "noise": {"fov": 30, "cup": 0.5}}}


def test_variants_share_literals_by_name(tmp_path: Path) -> None:
    shared = "\nBATCH = 12\nSHARED: dict[str, object] = {'paper_batch': BATCH, 'paper': 'Mine, 2026'}\n"
    body = (shared + declare("x", ", **SHARED") + declare("y", ", min_batch=4, **SHARED")).replace(', paper="P"', "")
    registry = bare()
    registry.add_file(write(tmp_path, "mine", body))
    assert [registry.methods[name].paper_batch for name in "xy"] == [12, 12]
    assert (registry.methods["x"].min_batch, registry.methods["y"].min_batch) == (1, 4)
    assert registry.methods["y"].paper == "Mine, 2026"


def test_a_declaration_may_build_on_constants_of_its_file(tmp_path: Path) -> None:
    """`**OTHER` inside a dict, later entries winning, as Python has it."""
    body = "\nBASE = {'a': 1, 'b': (2, 3)}\nMORE = {**BASE, 'b': 4, 'c': 5}\n"
    body += TASK.replace("channels=3", "channels=3, phantom={'modality': 'fundus', 'camera': MORE}")
    [found] = registry.read_file(write(tmp_path, "mine", body))
    assert found.values["phantom"] == {"modality": "fundus", "camera": {"a": 1, "b": 4, "c": 5}}
    body = TASK.replace("channels=3", "channels=3, phantom={**dict(a=1)}")
    with pytest.raises(BenchError, match="must be literal"):
        registry.read_file(write(tmp_path, "other", body))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (declare("x", ", papre='y'"), "unknown field 'papre'; did you mean 'paper'"),
        (declare("x", ", set={'colour': 1}"), "sets 'colour', which is no field"),
        ('\n@method("x", HParams, version=1)\nclass X: ...\n', "not fully declared: missing"),
        ('\n@method("x", version=1)\nclass X: ...\n', "must name its hyper-parameter class"),
        ('\n@method("x", Other, version=1)\nclass X: ...\n', "Other is not written in this file"),
        ("\nN = 'x'\n@method(N, HParams, version=1)\nclass X: ...\n", "must be literal"),
        ("\n@method('x', HParams, version=1 + len('a'))\nclass X: ...\n", "must be literal"),
        ("\nclass X(:\n", "cannot be read as Python"),
        (declare("x", ", paper_steps='9'"), "declares paper_steps='9', but it takes int"),
        (declare("x", ", paper_steps=True"), "declares paper_steps=True, but it takes int"),
        (declare("x", ", trains=1"), "declares trains=1, but it takes bool"),
        (declare("x", ", dims=(2,)"), "is made for 2-D images alone: say why with dims_reason"),
        (declare("x", ", dims=(4,)"), "but it takes .2,., .3,. or .2, 3."),
        (declare("x").replace('("g",)', '"g"'), "declares groups='g', but it takes a tuple of texts"),
        (declare("x", ", **SHARED"), "must be literal"),
        (declare("x", ", **dict(a=1)"), "must be literal"),
        ("\nSHARED = 3\n" + declare("x", ", **SHARED"), "must be literal"),
        ("\nSHARED = {**dict(a=1)}\n" + declare("x", ", **SHARED"), "must be literal"),
        ("\nSHARED = SHARED\n" + declare("x", ", min_batch=SHARED"), "must be literal"),
        ("\nSHARED = {'title': 'T'}\n" + declare("x", ", **SHARED"), "gives 'title' twice"),
        (TASK.replace("channels=3", "channels=3, metrics=('dice',)"), "unknown metric 'dice'; did you mean 'dsc'"),
    ],
)
def test_a_wrong_declaration_is_named_with_its_place(tmp_path: Path, body: str, message: str) -> None:
    path = write(tmp_path, "mine", body)
    with pytest.raises(BenchError, match=message) as error:
        bare().add_file(path)
    assert str(path) in str(error.value)


def test_a_field_without_a_scalar_type_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", declare("x"), HEAD.replace("clusters: int = 16", "clusters: list = []"))
    with pytest.raises(BenchError, match=r"HParams\.clusters must be a bool, int, float or str"):
        bare().add_file(path)


def test_a_broken_file_harms_only_itself(tmp_path: Path) -> None:
    shelves = bare()
    shelves.add_file(write(tmp_path, "hurt", "\nclass X(:\n"), tolerant=True)
    shelves.add_file(write(tmp_path, "whole", declare("whole")), tolerant=True)
    assert list(shelves.methods) == ["whole"]
    assert list(shelves.broken) == [str(tmp_path / "hurt.py")]
    with pytest.raises(BenchError, match=r"'hurt' cannot be used.*cannot be read as Python"):
        shelves.select("method", "hurt")


def test_a_name_registered_twice_raises_and_names_both_places(tmp_path: Path) -> None:
    shelves = bare()
    first, second = (write(tmp_path, name, declare("same")) for name in ("a", "b"))
    shelves.add_file(first)
    with pytest.raises(BenchError, match="registered twice") as error:
        shelves.add_file(second)
    assert str(first) in str(error.value) and str(second) in str(error.value)
    with pytest.raises(BenchError, match="registered twice"):
        bare().add_file(write(tmp_path, "c", declare("same") + declare("same").replace("CSame", "Other")))


def test_the_same_file_may_be_given_twice(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", declare("mine"))
    shelves = bare()
    assert shelves.add_plugin(str(path)) == shelves.add_plugin(str(path)) == ["mine"]
    assert shelves.plugins == [str(path)]


def test_importing_two_classes_of_one_name_raises(tmp_path: Path) -> None:
    shelves = bare()
    shelves.add_file(write(tmp_path, "a", declare("collides")))
    others = bare()
    others.add_file(write(tmp_path, "b", declare("collides")))
    load(shelves.methods["collides"])
    with pytest.raises(BenchError, match="registered twice"):
        load(others.methods["collides"])


def test_a_file_that_fails_on_import_is_named(tmp_path: Path) -> None:
    shelves = bare()
    path = write(tmp_path, "mine", declare("mine") + "\nraise RuntimeError('no')\n")
    shelves.add_file(path)
    with pytest.raises(BenchError, match=r"mine\.py cannot be imported: RuntimeError: no"):
        load(shelves.methods["mine"])


# ----------------------------------------------------------------------------------------------------------- selection


@pytest.fixture
def shelves(tmp_path: Path) -> Registry:
    found = bare()
    found.add_file(write(tmp_path, "all", "".join(declare(name) for name in ("alpha", "alpha_two", "beta"))))
    return found


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("beta,alpha", ["beta", "alpha"]),
        ("all", ["alpha", "alpha_two", "beta"]),
        ("g,!beta", ["alpha", "alpha_two"]),
        ("!beta", ["alpha", "alpha_two"]),
        ("al*", ["alpha", "alpha_two"]),
        ("beta, beta,all", ["beta", "alpha", "alpha_two"]),
    ],
)
def test_expressions_choose_in_order_and_once(shelves: Registry, expression: str, names: list[str]) -> None:
    assert shelves.select("method", expression) == names


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("bta", "unknown method 'bta'; did you mean 'beta'"),
        ("x*", "unknown method 'x\\*'; `bench list methods`"),
        ("", "no method was named"),
        ("beta,!all", "leaves nothing"),
        ("./no.py", r"there is no file \./no\.py"),
    ],
)
def test_expressions_that_choose_nothing(shelves: Registry, expression: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        shelves.select("method", expression)


def test_a_file_by_path_is_chosen_and_remembered(shelves: Registry, tmp_path: Path) -> None:
    path = write(tmp_path, "outside", declare("outside"))
    assert shelves.select("method", f"beta,{path}") == ["beta", "outside"]
    assert shelves.plugins == [str(path)]
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(BenchError, match="registers nothing"):
        shelves.select("method", str(tmp_path / "empty.py"))


def test_an_installed_package_brings_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "their_methods", declare("theirs"))
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        importlib.metadata.EntryPoint("theirs", module, "medssl_bench.methods") for module in ("their_methods", "gone")
    ]
    installed = importlib.metadata.EntryPoints(points)
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda: installed)
    found = scan()
    assert "theirs" in found.methods and "names no module" in found.broken["gone"]


def test_threads_share_the_import_of_a_file(tmp_path: Path) -> None:
    """None of them sees a module that another one is still executing."""
    body = "import time\n\nfrom bench.registry import task\n\ntime.sleep(0.3)\n" + TASK.replace('"x"', '"slow"')
    path = write(tmp_path, "slow", body + "\ndef late(): ...\n")
    shelves = bare()
    shelves.add_file(path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: registry.symbol(shelves.tasks["slow"], name), ["late"] * 4))
    assert None not in found and len(set(found)) == 1
