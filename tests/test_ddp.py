"""Pretrainings on two processes (gloo) against one process with the same batch."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import registry, views
from bench.data.store import Store, load_tensors, read_events, read_progress
from bench.parts import parallel
from bench.run import grid, pretrain
from bench.run.cell import INTERRUPTED, child_main, run_cell
from bench.run.executor import LocalExecutor
from bench.run.ranks import Team
from bench.spec import BenchError, CellError, CellInterrupted, PretrainCell, Site, cell_to_dict, site_to_dict
from tests.conftest import pretrain_cell, textured_corpus, transfer_cell, write_images
from tests.test_launch import eventually

SHELVES = registry.scan()
SHARED = [name for name, spec in SHELVES.methods.items() if spec.parallel]
NOT_SHARED = [name for name, spec in SHELVES.methods.items() if spec.trains and not spec.parallel]
STEPS = 5
BATCH = 4
Learnt = tuple[list[dict[str, float]], dict[str, Tensor]]  # losses of each step, and the method's state at the end
SMALL = {  # hyper-parameters that only cost time here
    **{"queue_size": 12, "negatives": 12, "projection": 16, "local_projection": 16, "hidden": 16, "bottleneck": 8},
    **{"outputs": 16, "expansion": 1, "small_crops": 2, "grid": 4},
}


@pytest.fixture
def pair(site: Site) -> Site:
    """Two ranks on the CPU."""
    return replace(site, ranks=2)


def together(work: Any, arguments: Any, pair: Site) -> Any:
    """What rank 0 gets of `work(fabric, arguments)`, done by both ranks."""
    pair.runs.mkdir(parents=True, exist_ok=True)
    with Team(pair, work, arguments, pair.runs / "log.txt") as fabric:
        return work(fabric, arguments)


# ------------------------------------------------------------------------------------------------------------- methods


def steps_in_double(fabric: Any, arguments: tuple[str, Site]) -> Learnt:
    """The losses of the first steps of a method and its state, all in double precision.

    In single precision rounding alone parts two runs: Adam turns the sign of a gradient that is all rounding (that of a
    bias before a batch normalisation) into a whole step. In double precision what is left is what is wrong.
    """
    method, _ = arguments
    spec = SHELVES.get("method", method)
    sizes = {name: size for name, size in SMALL.items() if name in spec.defaults}
    cell = pretrain_cell(method, steps=STEPS, image_size=32, batch_size=BATCH, **sizes)
    single, ready, build = Tensor.float, views.ready, pretrain.build_method
    with pytest.MonkeyPatch.context() as patch:
        torch.set_default_dtype(torch.float64)
        patch.setattr(Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self))
        patch.setattr(views, "ready", lambda images: ready(images).double())
        patch.setattr(pretrain, "build_method", lambda *given: build(*given).double())
        try:
            run = pretrain._Run(cell, spec, textured_corpus(14, 32, 3), fabric)
            run.method.train()
            losses = []
            for step in range(STEPS):
                run.enter(step)
                losses.append(run.train_step())
        finally:
            torch.set_default_dtype(torch.float32)
    return losses, run.method.state_dict()


def steps_of_each(fabric: Any, arguments: tuple[list[str], Site]) -> dict[str, Learnt]:
    methods, site = arguments
    found = {}
    for method in methods:
        try:
            found[method] = steps_in_double(fabric, (method, site))
        except Exception as error:
            error.add_note(f"this was {method}")
            raise
    return found


@pytest.fixture(scope="module")
def learnt_by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Learnt]:
    """What two processes, which are started once, learn with every method."""
    folder = tmp_path_factory.mktemp("pair")
    pair = Site(folder / "runs", folder / "results", data=None, ranks=2)
    learnt: dict[str, Learnt] = together(steps_of_each, (SHARED, pair), pair)
    return learnt


@pytest.mark.slow
@pytest.mark.parametrize("method", SHARED)
def test_two_processes_learn_what_one_learns(method: str, site: Site, learnt_by_two: dict[str, Learnt]) -> None:
    alone, state = steps_in_double(pretrain.set_up(site), (method, site))
    shared, other = learnt_by_two[method]
    for one, two in zip(alone, shared, strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-7)
    assert list(state) == list(other)
    for name, value in state.items():
        if value.dim() > 1:  # the gradient of a bias before a batch normalisation is rounding alone
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_local_discrimination_and_momentum_families_are_shared() -> None:
    assert {"moco", "mocov2", "simclr", "pd", "pd_mix", "rd", "rd_v1"} <= set(SHARED)
    assert {SHELVES.methods[name].parallel for name in SHARED} == {"mean", "gather"}


# --------------------------------------------------------------------------------------------------------------- parts


def normalised(fabric: Any, arguments: tuple[nn.Module, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Output, gradients and statistics of a batch normalisation on the batch of all ranks."""
    norm, values, weights = arguments
    holder = nn.Sequential(copy.deepcopy(norm)).train()  # tensors that are sent to a process share their memory
    if parallel.ranks() > 1:
        parallel.synchronise(holder)
    own = parallel.part(values).clone().requires_grad_()
    out = holder(own)
    (out * parallel.part(weights)).sum().backward()
    affine = [parallel.average(item.grad) * parallel.ranks() for item in holder.parameters() if item.grad is not None]
    assert own.grad is not None
    statistics = [item.double() for item in holder.buffers()]
    return parallel.gather(out.detach()), parallel.gather(own.grad), *affine, *statistics


def each_normalised(fabric: Any, arguments: list[tuple[nn.Module, Tensor, Tensor]]) -> list[tuple[Tensor, ...]]:
    return [normalised(fabric, given) for given in arguments]


def test_batch_statistics_are_those_of_the_whole_batch(pair: Site) -> None:
    def asked(shape: tuple[int, ...], momentum: float | None) -> tuple[nn.Module, Tensor, Tensor]:
        norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5, momentum=momentum).double()
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, 5))
        return norm, torch.randn(shape, dtype=torch.float64) + 100, torch.randn(shape, dtype=torch.float64)

    torch.manual_seed(3)
    arguments = [asked(shape, momentum) for shape in ((6, 5), (4, 5, 3, 2)) for momentum in (0.1, None)]
    alone, shared = each_normalised(None, arguments), together(each_normalised, arguments, pair)
    assert [len(item) for item in shared] == [7] * 4
    for one, two in zip(itertools.chain(*alone), itertools.chain(*shared), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


def test_a_normalisation_of_another_kind_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(BenchError, match=r"normalises with Own.*--gpus-per-cell"):
        parallel.synchronise(nn.Sequential(Own(3)))


def gathered(fabric: Any, rows: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    own = parallel.part(rows).clone().requires_grad_()
    whole = parallel.gather(own)
    ((parallel.rank() + 1) * whole.square().sum()).backward()  # another loss in every rank
    assert own.grad is not None
    places = torch.tensor(parallel.own_rows(8, 2))
    return whole.detach(), parallel.gather(own.grad), parallel.gather(places).tolist()


def test_gathered_rows_get_the_gradients_of_all_ranks(site: Site, pair: Site) -> None:
    rows = torch.arange(12.0).view(6, 2)
    whole, gradient, places = together(gathered, rows, pair)
    torch.testing.assert_close(whole, rows)
    torch.testing.assert_close(gradient, (1 + 2) * 2 * rows)
    assert places == [0, 1, 4, 5, 2, 3, 6, 7]
    assert parallel.ranks() == 1
    assert parallel.gather(rows) is rows
    assert parallel.own_rows(8, 2) == list(range(8))


# --------------------------------------------------------------------------------------------------------------- cells


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> PretrainCell:
    """A cell that `run_cell` can run, on a folder of few images."""
    folder = tmp_path_factory.mktemp("home") / "images"
    write_images(folder, 6, 64)
    asked = {"methods": "mocov2", "tasks": "chase", "budget": "smoke", "steps": 4, "batch_size": 4}
    return grid.expand(grid.Request(**asked, corpus=f"folder:{folder}"), SHELVES).pretrainings[0]


def stop_at_two(facts: Mapping[str, Any]) -> None:
    if facts["phase"].startswith("stage") and facts["step"] == 2:
        raise CellInterrupted("asked to stop")


def stopped(cell: PretrainCell, site: Site) -> None:
    """Leaves a pretraining after its second step."""
    folder = Store(site.runs, site.results).folder(cell)
    folder.mkdir(parents=True)
    with pytest.raises(CellInterrupted):
        pretrain.pretrain(cell, SHELVES.get("method", cell.method), SHELVES, site, folder, stop_at_two)
    assert (folder / pretrain.CHECKPOINT).exists()


def test_a_cell_on_two_devices_resumes_and_only_one_rank_writes(cell: PretrainCell, pair: Site, tmp_path: Path) -> None:
    sites = [replace(pair, runs=tmp_path / name) for name in ("whole", "stopped")]
    stopped(cell, sites[1])
    outcomes = [run_cell(cell_to_dict(cell), site_to_dict(site)) for site in sites]
    assert [outcome.status for outcome in outcomes] == ["done", "done"], outcomes
    stores = [Store(site.runs, site.results) for site in sites]
    encoders = [load_tensors(store.encoder(cell))[0] for store in stores]
    for name, value in encoders[0].items():
        assert torch.equal(value, encoders[1][name]), name
    states = [store.pretrained(cell) for store in stores]
    assert [(state["ranks"], state["steps_run"]) for state in states if state] == [(2, 4), (2, 2)]
    folder = stores[0].folder(cell)
    assert [event["event"] for event in read_events(folder)] == ["started", "finished"]
    kinds = {path.name.split(".")[0] for path in folder.iterdir()}
    assert kinds == {"cell", "claim", "encoder", "events", "log", "progress", "state"}


def test_one_process_goes_on_from_a_checkpoint_of_two(cell: PretrainCell, site: Site, pair: Site) -> None:
    stopped(cell, pair)
    assert run_cell(cell_to_dict(cell), site_to_dict(site)).status == "done"
    state = Store(site.runs, site.results).pretrained(cell)
    assert state is not None
    assert (state["ranks"], state["steps_run"]) == (1, 2)


class Words:
    """What a cell's process says in the end, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def send(self, outcome: Any) -> None:
        self.path.write_text(outcome.status)

    def close(self) -> None: ...


def live(cell: str, site: str, words: str) -> None:
    """The process of one cell, as the queue starts it."""
    connection: Any = Words(Path(words))
    child_main(cell, site, math.inf, connection)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_to_every_process_of_a_shared_cell_leaves_a_checkpoint(
    cell: PretrainCell, pair: Site, tmp_path: Path, number: int
) -> None:
    """As a cluster sends it before a limit: also to the ranks, and to the server that they were forked from."""
    long, words = replace(cell, steps=100_000), tmp_path / "words"
    arguments = (json.dumps(cell_to_dict(long)), json.dumps(site_to_dict(pair)), str(words))
    code = f"import sys; sys.path = {sys.path!r}; from {__name__} import live; live(*{arguments!r})"
    folder = Store(pair.runs, pair.results).folder(long)
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        try:
            eventually(lambda: "stage" in (read_progress(folder) or {"phase": ""})["phase"], 120)
            os.killpg(process.pid, number)
            assert process.wait(60) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert words.read_text() == INTERRUPTED, (folder / "log.txt").read_text()[-2000:]
    assert (folder / pretrain.CHECKPOINT).exists()


def lost(fabric: Any, kind: str) -> None:
    if parallel.rank() == 1:
        raise MemoryError("no more of it") if kind == "memory" else ValueError("a word of its own")
    parallel.average(torch.zeros(1))


@pytest.mark.parametrize(("kind", "status", "words"), [("memory", "out of memory", "no more"), ("", "failed", "own")])
def test_what_a_lost_rank_died_of_is_told(kind: str, status: str, words: str, pair: Site) -> None:
    with pytest.raises(CellError, match=f"on device 2 of 2: .*{words}") as caught:
        together(lost, kind, pair)
    assert caught.value.status == status
    assert parallel.ranks() == 1


# ------------------------------------------------------------------------------------------------------------ requests


def expand(method: str, **changes: Any) -> Any:
    asked = {"methods": method, "tasks": "chase", "budget": "smoke", "gpus_per_cell": 2} | changes
    return grid.expand(grid.Request(**asked), SHELVES)


def test_the_number_of_devices_is_no_part_of_the_key() -> None:
    keys = [{cell.key for cell in expand("moco", gpus_per_cell=number).pretrainings} for number in (1, 2)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("method", NOT_SHARED)
def test_a_method_that_declares_nothing_is_refused(method: str) -> None:
    with pytest.raises(BenchError, match=f"{method} is not made for several devices"):
        expand(method)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus_per_cell": 0}, "--gpus-per-cell must be at least 1"),
        ({"gpus_per_cell": 3}, "4 images per step, which 3 devices cannot share"),
        ({"methods": "pd", "batch_size": 6}, "a multiple of 4"),
        ({"cells_per_gpu": 2}, "exclude each other"),
        ({"device": "cuda:1"}, "is one GPU"),
    ],
)
def test_what_cannot_be_shared_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError, match=words):
        expand("moco", **changes)


def test_an_unknown_way_of_sharing_is_refused(tmp_path: Path) -> None:
    source = (
        Path(SHELVES.get("method", "simclr").origin.file).read_text().replace('parallel="gather"', 'parallel="some"')
    )
    plugin = tmp_path / "shared.py"
    plugin.write_text(source)
    with pytest.raises(BenchError, match="declares parallel='some', but it takes mean, gather or nothing"):
        registry.bare().add_file(plugin)


def report_site(cell: str, site: str, since: float, connection: Any) -> None:
    """A child that only says where it would run, and waits to be ended."""
    place = json.loads(site)
    (Path(place["runs"]) / f"{place['device']}-{place['ranks']}").touch()
    connection.recv()


def test_a_pretraining_keeps_its_devices_to_itself(tmp_path: Path) -> None:
    site = Site(tmp_path, tmp_path, None, device="cuda", ranks=2)
    executor = LocalExecutor(site, 4, 0.0, [f"cuda:{index}" for index in range(4)], main=report_site)
    first, second = pretrain_cell("moco"), pretrain_cell("moco", seed=1)
    transfer = transfer_cell(first, "chase")
    try:
        executor.submit(first)
        assert executor.takes(transfer)
        executor.submit(transfer)
        assert not executor.takes(second), "cuda:2 is the transfer's"
        executor.submit(transfer_cell(first, "chase", seed=1))
        used = [child.devices for child in executor._children]
        assert used == [("cuda:0", "cuda:1"), ("cuda:2",), ("cuda:3",)]
        assert not executor.takes(transfer_cell(first, "chase", seed=2)) or executor.free()
    finally:
        executor.stop(0.0)
