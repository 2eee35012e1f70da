"""Choices to cells: which cells a request makes, what is refused, and how a plan reads the store."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import data
from bench.data.store import Store, write_bytes, write_json
from bench.registry import Registry, bare, scan
from bench.run.cell import end_badly, record_of, timing_of
from bench.run.grid import Grid, PlanRow, Request, expand, load_profile, parse_fractions, plan, totals
from bench.spec import SCHEMA, BenchError, PretrainCell, TransferCell

KEYS = Path(__file__).parent / "golden" / "keys.json"
PLUGINS = """
from dataclasses import dataclass
from bench.registry import corpus, method, task

@dataclass(frozen=True)
class HParams:
    clusters: int = 16  # how many
    rate: float = 0.1
    name: str = "x"
    sharp: bool = False

@method("plain", HParams, version=1, title="Plain", paper="-", groups=("baseline",), trains=False)
class Plain: ...

@method("alpha", HParams, version=1, title="Alpha", paper="-", groups=("pair",), paper_steps=1000, paper_batch=64)
@method("alpha_wide", HParams, version=1, title="Wide", paper="-", groups=("pair",), paper_steps=9, paper_batch=9,
        set={"clusters": 32})
class Alpha: ...

@method("beta", HParams, version=2, title="Beta", paper="-", groups=(), paper_steps=10, paper_batch=8, min_batch=4,
        batch_multiple=4)
class Beta: ...

@corpus("pool", version=1, title="Pool", channels=3, licence="-", citation="-", source="-", folders=("pool",),
        layout="-",
        phantom={"modality": "fundus", "images": 4, "cameras": [{}]})
def pool(root): ...

@corpus("ocean", version=1, title="Ocean", channels=3, licence="-", citation="-", source="-", folders=("ocean",),
        layout="-",
        phantom={"modality": "fundus", "images": 8, "cameras": [{}]})
def ocean(root): ...

@corpus("grey", version=1, title="Grey", channels=1, licence="-", citation="-", source="-", folders=("grey",),
        layout="-",
        phantom={"modality": "fundus", "images": 8, "cameras": [{}]})
def grey(root): ...

@task("veins", version=1, title="Veins", groups=("eyes",), section="Eye", corpus="pool",
      channels=3, licence="free", citation="-", source="the moon", revision="1", folders=("veins",),
      layout="-",
      train=4, test=2,
      phantom={"modality": "fundus", "target": "vessels", "camera": {}})
def veins(root, split): ...

@task("disc", version=1, title="Disc", groups=("eyes",), section="Eye", corpus="pool", channels=3,
      licence="free", citation="-", source="the moon", revision="1", folders=("disc",), layout="-",
      train=4, test=2,
      phantom={"modality": "fundus", "target": "disc", "camera": {}})
def disc(root, split): ...

@task("spot", version=1, title="Spot", groups=(), section="Eye", corpus="ocean", channels=3,
      licence="free", citation="-", source="the moon", revision="1", folders=("spot",), layout="-",
      train=4, test=2,
      phantom={"modality": "fundus", "target": "exudates", "camera": {}})
def spot(root, split): ...
"""


@pytest.fixture
def shelves(tmp_path: Path) -> Registry:
    registry = bare()
    path = tmp_path / "plugins.py"
    path.write_text(PLUGINS)
    registry.add_file(path)
    return registry


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request("alpha,beta", "eyes", runs=tmp_path / "runs", results=tmp_path / "results")


# -------------------------------------------------------------------------------------------------------------- expand


def test_three_methods_on_two_tasks_share_two_pretrainings(shelves: Registry, request_: Request) -> None:
    grid = expand(request_, shelves)
    assert grid.methods == ("plain", "alpha", "beta") and grid.tasks == ("veins", "disc")
    assert [cell.method for cell in grid.pretrainings] == ["alpha", "beta"]
    assert len(grid.transfers) == 6 and len({cell.key for cell in grid.transfers}) == 6
    assert {len(children) for children in grid.children.values()} == {2}
    assert all(cell.phantom for cell in grid.transfers)


def test_a_task_added_later_adds_no_pretraining(shelves: Registry, request_: Request) -> None:
    few, more = (expand(replace(request_, tasks=tasks), shelves) for tasks in ("veins", "veins,disc"))
    assert {cell.key for cell in few.pretrainings} == {cell.key for cell in more.pretrainings}
    assert {cell.key for cell in few.transfers} < {cell.key for cell in more.transfers}


def test_a_task_with_its_own_corpus_has_its_own_pretraining(shelves: Registry, request_: Request) -> None:
    grid = expand(replace(request_, methods="alpha", tasks="all"), shelves)
    assert [cell.corpus for cell in grid.pretrainings] == ["pool", "ocean"]
    shared = expand(replace(request_, methods="alpha", tasks="all", corpus="ocean"), shelves)
    assert [cell.corpus for cell in shared.pretrainings] == ["ocean"]


def test_seeds_and_fractions_multiply(shelves: Registry, request_: Request) -> None:
    grid = expand(replace(request_, seeds=3, label_fractions=(0.5, 1.0, 0.5)), shelves)
    assert len(grid.pretrainings) == 2 * 3 and len(grid.transfers) == 3 * 2 * 3 * 2
    assert {cell.seed for cell in grid.transfers} == {0, 1, 2}
    assert all(cell.seed == cell.pretrain.seed for cell in grid.transfers)


def test_baselines_come_first_unless_excluded_by_name(shelves: Registry, request_: Request) -> None:
    assert expand(replace(request_, methods="alpha"), shelves).methods == ("plain", "alpha")
    assert expand(replace(request_, methods="alpha,plain"), shelves).methods == ("alpha", "plain")
    assert expand(replace(request_, methods="alpha,!plain"), shelves).methods == ("alpha",)
    assert expand(replace(request_, methods="!beta"), shelves).methods == ("plain", "alpha", "alpha_wide")


def test_a_changed_field_enters_label_and_key_and_a_default_does_not(shelves: Registry, request_: Request) -> None:
    wanted = replace(request_, methods="alpha,!plain", tasks="veins")
    plain = expand(wanted, shelves).pretrainings[0]
    changed = expand(replace(wanted, set=("alpha.rate=0.5", "alpha.clusters=8")), shelves).pretrainings[0]
    same = expand(replace(wanted, set=("alpha.clusters=16",)), shelves).pretrainings[0]
    assert changed.label == "alpha[clusters=8,rate=0.5]" and changed.key != plain.key
    assert same.label == "alpha" and same.key == plain.key
    assert dict(changed.hparams) == {"clusters": 8, "rate": 0.5, "name": "x", "sharp": False}


def test_moving_and_sharing_work_changes_no_key(shelves: Registry, request_: Request, tmp_path: Path) -> None:
    here = expand(request_, shelves)
    there = expand(replace(request_, runs=tmp_path / "other", jobs=7, device="cuda"), shelves)
    assert [cell.key for cell in here.transfers] == [cell.key for cell in there.transfers]


def test_a_shorter_pretraining_leaves_the_untrained_row_as_it_was(shelves: Registry, request_: Request) -> None:
    usual, short = expand(request_, shelves), expand(replace(request_, steps=7, batch_size=16), shelves)
    untrained = [{cell for cell in grid.transfers if not cell.pretrain.trained} for grid in (usual, short)]
    assert untrained[0] == untrained[1]
    assert {cell.pretrain.budget for cell in short.transfers} == {"quick", "quick (steps=7, batch_size=16)"}
    assert {cell.budget for cell in short.transfers} == {"quick"}
    larger = expand(replace(request_, image_size=64), shelves)
    assert {cell.budget for cell in larger.transfers} == {"quick (image_size=64)"}


def test_the_paper_budget_takes_each_method_at_its_own_length(shelves: Registry, request_: Request) -> None:
    grid = expand(replace(request_, budget="paper"), shelves)
    assert [(cell.steps, cell.batch_size) for cell in grid.pretrainings] == [(1000, 64), (10, 8)]
    assert all(cell.phase_steps is None for cell in grid.transfers)


@pytest.mark.parametrize("row", json.loads(KEYS.read_text()), ids=lambda row: f"{row['method']}-{row['task']}")
def test_a_cell_that_means_what_it_meant_has_its_old_key(row: dict[str, Any], tmp_path: Path) -> None:
    asked = {"budget": row["budget"], "protocol": row["protocol"], "seeds": row["seed"] + 1}
    asked["label_fractions"] = (row.get("label_fraction", 1.0),)
    grid = expand(Request(row["method"], row["task"], runs=tmp_path, results=tmp_path, **asked), scan())
    keys = {cell.key for cell in grid.transfers if cell.pretrain.method == row["method"] and cell.seed == row["seed"]}
    assert keys == {row["key"]}


FOLDS = """
from bench.registry import protocol, task

@task("crossed", version=1, revision="1", title="Crossed", groups=(), section="Eye", corpus="pool", channels=3,
      licence="free", citation="-", source="the moon", folders=("crossed",), layout="-", train=5, test=0, folds=3,
      phantom={"modality": "fundus", "target": "disc", "camera": {}})
def crossed(root, split): ...

@task("named", version=1, revision="1", title="Named", groups=(), section="Eye", corpus="pool", channels=3,
      licence="free", citation="-", source="the moon", folders=("named",), layout="-", train=4, test=2,
      protocols=("pointing",), truth="points", structures=("disc",), metrics=("mre_px",),
      phantom={"modality": "fundus", "camera": {}})
def named(root, split): ...

@protocol("pointing", title="Pointing", truths=("points",), selection="nothing is selected")
def fit(encoder, cases, effort): ...

@protocol("flat", title="Flat", truths=("mask",), dims=(3,), selection="nothing is selected")
def fit_flat(encoder, cases, effort): ...
"""


@pytest.fixture
def folded(shelves: Registry, tmp_path: Path) -> Registry:
    (tmp_path / "folds.py").write_text(FOLDS)
    shelves.add_file(tmp_path / "folds.py")
    return shelves


def test_folds_are_cells_of_their_own(folded: Registry, request_: Request) -> None:
    grid = expand(replace(request_, methods="alpha", tasks="crossed", seeds=2), folded)
    assert len(grid.pretrainings) == 2  # folds share what was pretrained
    alpha = [cell for cell in grid.transfers if cell.pretrain.method == "alpha"]
    assert [(cell.seed, cell.fold, cell.folds) for cell in alpha] == [
        (seed, fold, 3) for seed in (0, 1) for fold in range(3)
    ]
    assert len({cell.key for cell in alpha}) == 6
    chosen = expand(replace(request_, methods="alpha", tasks="crossed,veins", folds=(2,)), folded)
    assert {(cell.task, cell.fold) for cell in chosen.transfers} == {("crossed", 2), ("veins", 0)}
    with pytest.raises(BenchError, match=r"--folds 3: crossed has the folds 0 to 2"):
        expand(replace(request_, methods="alpha", tasks="crossed", folds=(3,)), folded)


def test_a_protocol_that_does_not_fit_is_refused_with_those_that_do(folded: Registry, request_: Request) -> None:
    for chosen, task, message in (
        ("pointing", "veins", "--protocol pointing does not judge .*veins.*; choose from "),
        ("flat", "veins", "--protocol flat does not judge .*veins"),
        ("linear", "named", "--protocol linear does not judge .*named.*; choose from pointing$"),
    ):
        with pytest.raises(BenchError, match=message) as error:
            expand(replace(request_, methods="alpha", tasks=task, protocol=chosen), folded)
        assert "\n" not in str(error.value)
    grid = expand(replace(request_, methods="alpha", tasks="named"), folded)
    assert {cell.protocol for cell in grid.transfers} == {"pointing"}


def test_an_untrained_row_has_no_corpus(shelves: Registry, request_: Request) -> None:
    cell = expand(replace(request_, methods="plain"), shelves).transfers[0].pretrain
    assert not cell.trained and cell.corpus == "" and cell.batch_size == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "alhpa"}, "unknown method 'alhpa'; did you mean 'alpha'"),
        ({"tasks": "vein"}, "unknown task 'vein'; did you mean 'veins'"),
        ({"budget": "quik"}, "unknown budget 'quik'; did you mean 'quick'"),
        ({"protocol": "linaer"}, "unknown protocol 'linaer'; did you mean 'linear'"),
        ({"corpus": "pol"}, "unknown corpus 'pol'; did you mean 'pool'"),
        ({"corpus": "grey"}, "the corpus grey has 1 channel"),
        ({"set": ("alpha.clutsers=8",)}, "alpha has no field 'clutsers'; did you mean 'clusters'"),
        ({"set": ("alpah.clusters=8",)}, "unknown method 'alpah'; did you mean 'alpha'"),
        ({"set": ("alpha_wide.clusters=8",)}, "not among the methods asked for"),
        ({"set": ("alpha.clusters=8", "alpha.clusters=9")}, "gives alpha.clusters twice"),
        ({"set": ("alpha.clusters=many",)}, "alpha.clusters takes a value of type int, not 'many'"),
        ({"set": ("alpha.rate=nan",)}, "must be finite"),
        ({"set": ("alpha.clusters=-1",)}, "alpha.clusters must not be negative, but is -1"),
        ({"set": ("alpha.sharp=maybe",)}, "type bool"),
        ({"set": ("clusters=8",)}, "METHOD.FIELD=VALUE"),
        ({"set": ("alpha.clusters",)}, "METHOD.FIELD=VALUE"),
        ({"batch_size": 2}, "beta needs at least 4 and a multiple of 4 images per step, not 2"),
        ({"batch_size": 6}, "beta needs at least 4 and a multiple of 4 images per step, not 6"),
        ({"label_fractions": (0.3,)}, "leaves fewer than two of the 4 training images of [a-z]+; give at least 0.38"),
        ({"label_fractions": (0.0,)}, r"--label-fraction must be in \(0, 1\], not 0"),
        ({"label_fractions": (1.5,)}, "not 1.5"),
        ({"label_fractions": ()}, "--label-fraction is empty"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"jobs": 0}, "--jobs must be at least 1"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"transfer_steps": 0}, "--transfer-steps must be at least 1"),
        ({"transfer_steps": 2, "transfer_epochs": 2}, "exclude each other"),
        ({"precision": "16"}, "unknown precision '16': choose from 32, bf16"),
        ({"backbone": "tiny_vg16"}, "unknown backbone 'tiny_vg16'; did you mean 'tiny_vgg16'"),
        ({"corpus": "/"}, "for the images of a folder write --corpus folder:/"),
        ({"corpus": "???"}, "`bench list corpora`"),
        ({"image_size": 100}, "--image-size must be a multiple of 32, not 100"),
        ({"data": Path("/no/such/folder")}, "the data root /no/such/folder is no folder"),
    ],
)
def test_what_cannot_be_carried_out_is_one_sentence(
    shelves: Registry, request_: Request, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchError, match=message) as error:
        expand(replace(request_, **changes), shelves)
    assert "\n" not in str(error.value)


def test_missing_data_is_an_error_or_is_left_out(shelves: Registry, request_: Request, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    wanted = replace(request_, data=tmp_path / "data")
    with pytest.raises(data.MissingData, match="veins"):
        expand(wanted, shelves)
    with pytest.raises(BenchError, match="nothing is left to run: veins"):
        expand(replace(wanted, skip_missing=True), shelves)


def test_a_missing_corpus_leaves_the_untrained_row(
    shelves: Registry, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any) -> None:
        raise data.MissingData("pool is not here")

    monkeypatch.setattr(data, "corpus_ref", absent)
    grid = expand(replace(request_, skip_missing=True), shelves)
    assert {cell.pretrain.method for cell in grid.transfers} == {"plain"} and not grid.pretrainings
    assert grid.skipped == (("pretraining on pool", "pool is not here"),)


def test_ten_thousand_cells_are_planned_in_five_seconds_of_a_processor(shelves: Registry, request_: Request) -> None:
    wanted = replace(request_, methods="all", tasks="all", seeds=850)
    began = time.process_time()
    grid = expand(wanted, shelves)
    rows = plan(grid, wanted.store)
    elapsed = time.process_time() - began
    assert len(grid.transfers) == 4 * 3 * 850 and len({row.cell.key for row in rows}) == len(rows)
    assert elapsed < 5, f"{len(rows)} cells took {elapsed:.1f} s"


# ------------------------------------------------------------------------------------------------------------- profile


def test_precision_and_the_length_of_a_transfer_are_in_the_key(shelves: Registry, request_: Request) -> None:
    plain = expand(request_, shelves)
    for changes in ({"precision": "bf16"}, {"transfer_steps": 7}, {"transfer_epochs": 3}):
        other = expand(replace(request_, **changes), shelves)
        assert not {cell.key for cell in plain.transfers} & {cell.key for cell in other.transfers}
        shared = {cell.key for cell in plain.pretrainings} & {cell.key for cell in other.pretrainings}
        assert bool(shared) == ("precision" not in changes)  # an encoder does not depend on how it will be judged
    assert expand(replace(request_, precision="32"), shelves).transfers == plain.transfers


def test_a_profile_declares_budgets_of_its_own(shelves: Registry, request_: Request, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("""
budget = "mine"
[cluster]
""")
    with pytest.raises(BenchError, match="unknown budget 'mine'"):
        expand(replace(request_, **load_profile(path)), shelves)
    path.write_text("""
seeds = 1
[budget.mine]
based_on = "quick"
steps = 7
transfer-epochs = 3
checks = 2
precision = "bf16"
image_size = 64
""")
    made = replace(request_, **load_profile(path), budget="mine")
    cell = next(cell for cell in expand(made, shelves).transfers if cell.pretrain.method == "alpha")
    assert (cell.pretrain.steps, cell.phase_steps, cell.phase_epochs, cell.checks) == (7, None, 3, 2)
    assert (cell.precision, cell.pretrain.precision, cell.image_size) == ("bf16", "bf16", 64)
    label = "quick (image_size=64, checks=2, transfer_epochs=3, precision=bf16)"
    assert cell.budget == label and cell.pretrain.budget == label.replace("(", "(steps=7, ")
    shorter = expand(replace(made, steps=5), shelves).pretrainings[0]
    assert shorter.steps == 5 and "steps=5" in shorter.budget and "steps=7" not in shorter.budget


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[budget.quick]\nbased_on = 'smoke'", "has the name of a budget that there is already"),
        ("[budget.mine]\nsteps = 3", "says on which budget it is based"),
        ("[budget.mine]\nbased_on = 'quik'", "unknown budget 'quik'; did you mean 'quick'"),
        ("[budget.mine]\nbased_on = 'quick'\nstep = 3", "unknown key 'step'; did you mean 'steps'"),
        ("[budget.mine]\nbased_on = 'quick'\nsteps = 0", "sets steps to 0, but it takes a whole number from 1 on"),
        ("[budget.mine]\nbased_on = 'quick'\nprecision = 16", "takes '32' or 'bf16'"),
        ("[budget.mine]\nbased_on = 'quick'\ntransfer_steps = 1\ntransfer_epochs = 1", "exclude each other"),
        ("[budget]\nmine = 3", "says on which budget it is based"),
    ],
)
def test_a_wrong_budget_of_a_profile_is_refused(table: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(table)
    with pytest.raises(BenchError, match=message):
        load_profile(tmp_path / "mine.toml")


def test_a_profile_sets_fields_of_the_request(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        'methods = ["alpha", "beta"]\ntasks = "eyes"\nimage-size = 64\nlabel-fraction = [0.2, 1]\n'
        'set = ["alpha.rate=1"]\nskip_missing = true\nruns = "work"\n'
    )
    assert load_profile(path) == {
        "methods": "alpha,beta",
        "tasks": "eyes",
        "image_size": 64,
        "label_fractions": (0.2, 1.0),
        "set": ("alpha.rate=1",),
        "skip_missing": True,
        "runs": Path("work"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagesize = 64", "unknown key 'imagesize'; did you mean 'image_size'"),
        ("seeds = '3'", "sets seeds to '3', but it takes a whole number"),
        ("seeds = true", "takes a whole number"),
        ("skip-missing = 1", "takes true or false"),
        ("set = 'alpha.rate=1'", "takes a list of METHOD.FIELD=VALUE"),
        ("label-fraction = 'all'", "takes numbers"),
        ("label-fraction = 2", r"must be in \(0, 1\]"),
        ("budget = 3", "takes a text"),
        ("methods = [1]", "takes a text"),
        ("seeds = ", "is no TOML"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(BenchError, match=message):
        load_profile(path)


def test_a_profile_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no\.toml cannot be read"):
        load_profile(tmp_path / "no.toml")


def test_fractions_are_read_from_text() -> None:
    assert parse_fractions("0.2, 1,0.2") == (0.2, 1.0)
    for text in ("a", "0.5,b", "", "-1"):
        with pytest.raises(BenchError, match="--label-fraction"):
            parse_fractions(text)


# ---------------------------------------------------------------------------------------------------------------- plan


def finish_pretraining(store: Store, cell: PretrainCell, grid: Grid) -> None:
    write_bytes(store.encoder(cell), b"weights")
    encoder = {"encoder_bytes": 7, "encoder_sha256": "", "seconds_per_step": 1.0, "sources": grid.sources(cell)}
    state = {"key": cell.key, "status": "done", "reason": "", "finished": "", **encoder}
    write_json(store.folder(cell) / "state.json", state)


def finish_transfer(store: Store, cell: TransferCell, shelves: Registry, **changes: Any) -> None:
    store.write({**record_of(cell, shelves, "done", ""), "score": 0.5, **changes})


def states(rows: list[PlanRow]) -> dict[str, list[str]]:
    ordered = sorted(rows, key=lambda row: row.cell.kind)
    return {kind: [row.state for row in part] for kind, part in itertools.groupby(ordered, lambda row: row.cell.kind)}


def test_a_plan_tells_how_every_cell_stands(shelves: Registry, request_: Request) -> None:
    wanted = replace(request_, methods="alpha,!plain")
    store, grid = wanted.store, expand(wanted, shelves)
    assert states(plan(grid, store)) == {"pretrain": ["new"], "transfer": ["new", "new"]}

    held = store.begin(grid.pretrainings[0])
    assert held is not None
    rows = plan(grid, store)
    assert states(rows)["pretrain"] == ["running"] and "process" in rows[0].reason and not rows[0].open
    held.release()
    assert states(plan(grid, store))["pretrain"] == ["interrupted"]

    end_badly(store, shelves, grid.pretrainings[0], "failed", "the loss\nbecame nan")
    end_badly(store, shelves, grid.transfers[0], "blocked", "its pretraining failed")
    rows = plan(grid, store)
    assert states(rows) == {"pretrain": ["failed before"], "transfer": ["failed before", "new"]}
    assert rows[0].reason == "failed: the loss became nan"

    finish_pretraining(store, grid.pretrainings[0], grid)
    finish_transfer(store, grid.transfers[0], shelves)
    assert states(plan(grid, store)) == {"pretrain": ["cached"], "transfer": ["done", "new"]}
    assert totals(plan(grid, store))["to_run"] == 1


def test_a_pretraining_whose_transfers_are_done_is_not_needed(shelves: Registry, request_: Request) -> None:
    wanted = replace(request_, methods="alpha,!plain", tasks="veins")
    grid = expand(wanted, shelves)
    finish_transfer(wanted.store, grid.transfers[0], shelves)
    rows = plan(grid, wanted.store)
    assert states(rows) == {"pretrain": ["not needed"], "transfer": ["done"]} and not any(row.open for row in rows)


def test_results_of_an_older_source_are_kept_and_marked(shelves: Registry, request_: Request) -> None:
    wanted = replace(request_, methods="alpha,!plain", tasks="veins")
    grid = expand(wanted, shelves)
    finish_transfer(wanted.store, grid.transfers[0], shelves, sources={"method": "old", "task": "old"})
    rows = plan(grid, wanted.store)
    assert states(rows)["transfer"] == ["stale"] and "older source" in rows[-1].reason and not rows[-1].open


def test_a_record_of_another_schema_is_run_again(shelves: Registry, request_: Request) -> None:
    wanted = replace(request_, methods="alpha,!plain", tasks="veins")
    grid = expand(wanted, shelves)
    finish_transfer(wanted.store, grid.transfers[0], shelves, schema=SCHEMA + 1)
    assert states(plan(grid, wanted.store))["transfer"] == ["new"]


def test_estimates_are_medians_of_what_was_measured_here(shelves: Registry, request_: Request) -> None:
    wanted = replace(request_, methods="alpha,!plain", tasks="veins", steps=10)
    store, grid = wanted.store, expand(wanted, shelves)
    assert [row.seconds for row in plan(grid, store)] == [None, None]
    for seconds in (1.0, 9.0, 2.0):
        store.add_timing({"of": timing_of(grid.pretrainings[0]), "seconds": seconds, "bytes": 100})
        store.add_timing({"of": timing_of(grid.transfers[0]), "seconds": seconds, "bytes": 10})
    other = expand(replace(wanted, image_size=64), shelves)
    assert [row.seconds for row in plan(grid, store)] == [20.0, 2.0]
    assert [row.bytes for row in plan(grid, store)] == [100, 10]
    assert [row.seconds for row in plan(other, store)] == [None, None]
    assert totals(plan(grid, store)) == {
        "counts": {"pretrain": {"new": 1}, "transfer": {"new": 1}},
        "to_run": 2,
        "unmeasured": 0,
        "seconds": 22.0,
        "bytes": 110,
    }


def test_overview_names_every_cell_of_a_store(shelves: Registry, request_: Request) -> None:
    wanted = replace(request_, methods="alpha,!plain")
    store, grid = wanted.store, expand(wanted, shelves)
    held = store.begin(grid.pretrainings[0])
    assert held is not None
    end_badly(store, shelves, grid.transfers[0], "blocked", "no encoder")
    (running, blocked) = store.overview()
    assert (running.kind, running.state, running.key) == ("pretrain", "running", grid.pretrainings[0].key)
    assert (blocked.kind, blocked.state, blocked.reason) == ("transfer", "blocked", "no encoder")
    held.release()
    assert store.overview()[0].state == "interrupted"
