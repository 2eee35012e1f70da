"""Looking after a store: cells to run again, work to stop, files that nobody needs, what all of it has cost."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import data, registry
from bench.data.store import LOG, CellState, Store, ask_to_stop, live_owner, previous_of, read_events, read_json
from bench.registry import Registry
from bench.run.cluster import notes, slurm
from bench.run.cluster.standing import Standing, look
from bench.run.costs import Costs, cost_of_events, waits
from bench.spec import BLOCKED, DONE, BenchError, Cell, PretrainCell, Site, TransferCell, cell_from_dict, cell_to_dict

QUEUE_SECONDS = 15.0  # between two questions to a cluster
INTERRUPTED, RUNNING, QUEUED = "interrupted", "running", "queued"  # states beside those of records
CHECKPOINT = "checkpoint.safetensors"
YOUNG_SECONDS = 3600.0  # a temporary or unfinished file younger than this may still be written
_PREPARED = re.compile(r".+-[0-9a-f]{12}")  # a folder of prepared images
_DAMAGED = re.compile(r".+\.damaged-\d+")


def cell_of(state: CellState) -> Cell | None:
    """The cell of a state, where its folder still says which it is and it means what it meant then."""
    choices = {name: value for name, value in state.choices.items() if name not in ("key", "where")}
    if "kind" not in choices:
        return None
    try:
        cell = cell_from_dict(choices)
    except (TypeError, KeyError):
        return None
    return cell if cell.key == state.key else None


# --------------------------------------------------------------------------------------------------------------- retry


@dataclass(frozen=True)
class Retry:
    """Cells to run again, and where."""

    cells: tuple[Cell, ...]  # pretrainings that they need first
    site: Site
    left_out: tuple[tuple[str, str], ...]  # name of a cell, why it cannot be run again from here


def retry(store: Store, states: Sequence[CellState], site: Site) -> Retry:
    """What has to run so that cells without a result get one; BenchError where their data lies in several places.

    site: gets the data root of the cells, where it has none, and their plug-ins.
    """
    wheres = [state.choices.get("where") or {} for state in states]
    roots = {where["data"] for where in wheres if where.get("data")}
    plugins = sorted({file for where in wheres for file in where.get("plugins", ())} | set(site.plugins))
    if site.data is None and len(roots) > 1:
        raise BenchError(f"these cells ran on several data roots ({', '.join(sorted(roots))}); say which with --data")
    root = site.data or next((Path(path) for path in roots), None)
    shelves = registry.scan(plugins)
    wanted, left_out = dict[str, Cell](), list[tuple[str, str]]()
    for state in states:
        cell, why = cell_of(state), "its folder does not say what it was, or an older bench made it"
        if cell is not None:
            why = _obsolete(cell, shelves)
        if cell is None or why:
            left_out.append((state.name, f"{why}; name it again with `bench run`"))
            continue
        if isinstance(cell, TransferCell) and cell.pretrain.trained and not store.finished(cell.pretrain):
            wanted.setdefault(cell.pretrain.key, cell.pretrain)
        wanted[cell.key] = cell
    cells = sorted(wanted.values(), key=lambda cell: cell.kind)  # pretrain, transfer
    where = Site(**{**vars(site), "data": root, "plugins": tuple(plugins)})
    return Retry(tuple(cells), where, tuple(left_out))


def _obsolete(cell: Cell, shelves: Registry) -> str:
    """Why a cell is no longer what its method or task makes now; empty where it is."""
    pretrain = cell if isinstance(cell, PretrainCell) else cell.pretrain
    wanted = [("method", pretrain.method, pretrain.version)]
    if isinstance(cell, TransferCell):
        wanted.append(("task", cell.task, cell.task_version))
    for kind, name, version in wanted:
        try:
            now = shelves.get(kind, name).version
        except BenchError:
            return f"there is no {kind} {name} any more"
        if now != version:
            return f"it is of version {version} of the {kind} {name}, which is now at {now}"
    return ""


def unfinished(states: Iterable[CellState], failed: bool, blocked: bool) -> list[CellState]:
    """The cells without a result that nobody works on; with a switch only those that failed, or are blocked."""
    every = not failed and not blocked
    found = []
    for state in states:
        if state.state in (DONE, RUNNING) or (not every and state.state == INTERRUPTED):
            continue
        if every or (blocked if state.state == BLOCKED else failed):
            found.append(state)
    return found


# -------------------------------------------------------------------------------------------------------------- cancel


def queued(store: Store) -> tuple[list[CellState], Standing]:
    """The cells that wait in a cluster's queue or in a job that runs others, and what it holds of the store.

    BenchError where Slurm does not answer.
    """
    if not notes.open_notes(store):
        return [], Standing()
    try:
        standing = look(store)
    except slurm.NoAnswer as error:
        raise BenchError(f"jobs were submitted from here, but Slurm does not answer ({error})") from error
    found = []
    for note in notes.open_notes(store):
        order = read_json(note.folder / notes.ORDER)
        for task in order["tasks"] if order else ():
            for choices in task:
                cell = cell_from_dict(choices)
                if cell.key in standing.labels and not store.finished(cell) and live_owner(store.folder(cell)) is None:
                    reason, folder = f"job {standing.labels[cell.key]}", store.folder(cell)
                    facts = cell_to_dict(cell) | {"key": cell.key}
                    found.append(CellState(cell.kind, folder.name, cell.key, QUEUED, reason, folder, facts, None))
    return found, standing


class Overview:
    """Every cell that a store knows or a cluster's queue holds; the cluster is asked now and then only."""

    def __init__(self, store: Store) -> None:
        self._store, self._asked = store, -math.inf
        self._waiting: list[CellState] = []

    def __call__(self) -> list[CellState]:
        """The cells as they stand; a warning where the cluster does not answer."""
        if time.monotonic() - self._asked > QUEUE_SECONDS:
            try:
                self._waiting, _ = queued(self._store)
            except BenchError as error:
                LOG.warning("%s; what waits in its queue is not shown", error)
            self._asked = time.monotonic()
        return with_waiting(self._store.overview(), self._waiting)


def with_waiting(known: Sequence[CellState], waiting: Sequence[CellState]) -> list[CellState]:
    """The cells of a store, with those of a queue in the place of what became of them before."""
    settled = {state.key for state in known if state.state in (DONE, RUNNING)}
    waiting = [state for state in waiting if state.key not in settled]
    keys = {state.key for state in waiting}
    return [*(state for state in known if state.key not in keys), *waiting]


def cancel(states: Sequence[CellState], standing: Standing) -> list[str]:
    """Asks cells to stop after their present step, and takes jobs of which no other cell is left out of the queue.

    Returns the jobs (as Slurm calls them) that were taken out; BenchError where Slurm refuses.
    """
    for state in states:
        ask_to_stop(state.folder)
    chosen = {state.key for state in states}
    labels = {label for key, label in standing.labels.items() if key in chosen and key not in standing.running}
    kept = {label for key, label in standing.labels.items() if key not in chosen}
    gone = sorted(labels - kept)
    if gone:
        try:
            slurm.ask(["scancel", *gone])
        except slurm.NoAnswer as error:
            raise BenchError(f"Slurm did not take jobs {', '.join(gone)} out of the queue ({error})") from error
    return gone


# ------------------------------------------------------------------------------------------------------------------ gc


@dataclass(frozen=True)
class Litter:
    """Files of one kind in one place that nobody needs."""

    what: str
    place: Path
    paths: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(_size(path) for path in self.paths)

    def remove(self) -> None:
        """Deletes them; what is gone already is no error."""
        for path in self.paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    try:
        if path.is_dir():
            return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > YOUNG_SECONDS
    except OSError:
        return False


def litter(store: Store, shelves: Registry) -> list[Litter]:
    """What can go: checkpoints of cells that are done, damaged and half-written files, images prepared for no cell."""
    states = store.overview()
    found = [*_checkpoints(store, states), *_spoilt(store, states), *_caches(store, states, shelves)]
    return [item for item in found if item.paths]


def _checkpoints(store: Store, states: Iterable[CellState]) -> list[Litter]:
    found = []
    for state in states:
        files = [path for path in (state.folder / CHECKPOINT, previous_of(state.folder / CHECKPOINT)) if path.exists()]
        cell = cell_of(state) if files and state.state == DONE else None
        if cell is not None and store.finished(cell):
            found.append(Litter("checkpoint of a cell that is done", state.folder, tuple(files)))
    return found


def _spoilt(store: Store, states: Iterable[CellState]) -> list[Litter]:
    quarantine = store.results / "quarantine"
    kept = sorted(quarantine.iterdir()) if quarantine.is_dir() else []
    found = [Litter("record that was damaged or of another schema", quarantine, tuple(kept))]
    for state in states:
        if not state.folder.is_dir() or live_owner(state.folder) is not None:
            continue
        files = sorted(state.folder.iterdir())
        damaged = [path for path in files if _DAMAGED.fullmatch(path.name)]
        torn = [path for path in files if path.name.startswith(".") and path.suffix == ".tmp" and _old(path)]
        found.append(Litter("damaged file", state.folder, tuple(damaged)))
        found.append(Litter("half-written file", state.folder, tuple(torn)))
    return found


def _caches(store: Store, states: Iterable[CellState], shelves: Registry) -> list[Litter]:
    site, states = Site(store.runs, store.results, None), list(states)
    cells = [cell for state in states if (cell := cell_of(state))]
    strange = {cell.task for cell in cells if isinstance(cell, TransferCell) and cell.task not in shelves.tasks}
    foreign = any(_pretrain_of(cell).method not in shelves.methods for cell in cells)  # their side maps are not known
    used = {folder for cell in cells for folder in _prepared_for(cell, shelves, site)}
    if not site.cache.is_dir():
        return []
    stale = [path for path in sorted(site.cache.iterdir()) if _PREPARED.fullmatch(path.name) and path.is_dir()]
    return [
        Litter("images prepared for no cell of this store", path, (path,))
        for path in stale
        if path not in used
        and not any(path.name.startswith(f"{task[-40:]}-") for task in strange)  # a plug-in's or a TOML file's
        and not (foreign and path.name.startswith(data.MARK))
        and _old(path)
        and live_owner(site.cache / "claims" / path.name) is None
    ]


def _pretrain_of(cell: Cell) -> PretrainCell:
    return cell if isinstance(cell, PretrainCell) else cell.pretrain


def _prepared_for(cell: Cell, shelves: Registry, site: Site) -> list[Path]:
    """Where the images of a cell, and of the pretraining it needs, are prepared."""
    found = []
    pretrain = _pretrain_of(cell)
    if pretrain.trained:
        found.append(data.corpus_folder(pretrain, site))
        found += data.map_folders(pretrain, shelves, site).values()
    if isinstance(cell, TransferCell) and cell.task in shelves.tasks:
        found.append(data.dataset_folder(cell, shelves, site))
    return found


# --------------------------------------------------------------------------------------------------------------- costs


def costs(states: Iterable[CellState]) -> tuple[dict[str, Costs], Costs]:
    """What every cell (by key) took in all its attempts, and all of them with the wait of every job once."""
    own, jobs = dict[str, Costs](), dict[str, float]()
    for state in states:
        events = read_events(state.folder)
        own[state.key] = cost_of_events(events)
        jobs |= waits(events)
    waited = Costs(queue_seconds=sum(jobs.values())) if jobs else Costs()
    return own, sum(own.values(), waited)
