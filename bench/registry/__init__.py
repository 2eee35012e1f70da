"""Finds plug-ins by reading their decorators, without importing them; names no plug-in itself.

Declarations are literals in the decorator's call, or names that the file gives to literals, read with `ast`: listing
is instant, needs no torch, and a file that cannot be read harms only itself. The code is imported when a cell asks for
it (`load`). What a declaration may hold is `bench.spec`'s.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import sys
import threading
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from bench.registry import own
from bench.registry.reading import SPECS, Declared, Spec, complete, read_file
from bench.spec import (
    FILE,
    BackboneSpec,
    BenchError,
    CorpusSpec,
    DatasetSpec,
    MethodSpec,
    MetricSpec,
    ProtocolSpec,
    SideMapSpec,
    TaskSpec,
    suggest,
)

__all__ = [
    "HOME",
    "TOML",
    "Registry",
    "Spec",
    "backbone",
    "bare",
    "corpus",
    "dataset",
    "hparams_of",
    "layout_files",
    "load",
    "method",
    "metric",
    "protocol",
    "read_file",
    "scan",
    "side_map",
    "symbol",
    "task",
]

T = TypeVar("T")

_PLURALS = {kind: f"{kind}s" for kind in SPECS} | {"corpus": "corpora"}
TOML = ".toml"  # ends the name of a task for a user's own images
HOME = Path(__file__).resolve().parents[2]  # the folder that holds the packages
OWN, PLUGINS = ("bench/metrics", "bench/protocols"), ("methods", "tasks")  # folders of what comes along

_objects: dict[tuple[str, str], tuple[str, Any]] = {}  # (kind, name) -> file, decorated object


# ---------------------------------------------------------------------------------------------------------- decorators


def _register(kind: str, name: str) -> Callable[[T], T]:
    def decorate(plugin: T) -> T:
        file = sys.modules[plugin.__module__].__file__ or "?"
        known = _objects.get((kind, name))
        if known is not None and Path(known[0]) != Path(file):
            raise BenchError(f"{kind} {name!r} is registered twice, in {known[0]} and in {file}: rename one of them")
        if known is not None and known[1] is not plugin and known[1].__module__ == plugin.__module__:
            raise BenchError(f"{kind} {name!r} is registered twice in {file}: rename one of them")
        _objects[kind, name] = (file, plugin)
        return plugin

    return decorate


def method(name: str, hparams: type, /, **declaration: Any) -> Callable[[T], T]:
    """Registers a class as the pretraining method `name`.

    `hparams` is the frozen dataclass of its hyper-parameters, written in the same file with literal defaults;
    `set={...}` gives a variant's own defaults. Everything else is a field of `MethodSpec`, as a literal or the name of
    one in the file; what variants share is handed on as `**SHARED`, a dict.
    """
    return _register("method", name)


def task(name: str, /, **declaration: Any) -> Callable[[T], T]:
    """Registers `load(root, split) -> list[Sample]` as the task `name`; the rest: fields of `TaskSpec`, as literals."""
    return _register("task", name)


def dataset(name: str, /, **declaration: Any) -> Callable[[T], T]:
    """Registers what lists the images of `name`; the rest are fields of `DatasetSpec`, as literals.

    It is a task's `load(root, split)`, which may take more to say what is true of them, or a corpus's `load(root)`.
    """
    return _register("dataset", name)


def corpus(name: str, /, **declaration: Any) -> Callable[[T], T]:
    """Registers `load(root) -> list[Path]` as the corpus `name`; the rest are fields of `CorpusSpec`, as literals."""
    return _register("corpus", name)


def protocol(name: str, /, **declaration: Any) -> Callable[[T], T]:
    """Registers `fit(encoder, cases, effort) -> judge` as the protocol `name`; the rest: fields of `ProtocolSpec`."""
    return _register("protocol", name)


def metric(name: str, /, **declaration: Any) -> Callable[[T], T]:
    """Registers `f(prediction, truth, spacing)` as the metric `name`; the rest: fields of `MetricSpec`, as literals."""
    return _register("metric", name)


def backbone(name: str, /, **declaration: Any) -> Callable[[T], T]:
    """Registers a class `(in_channels) -> nn.Module` as an encoder; the rest are fields of `BackboneSpec`."""
    return _register("backbone", name)


def side_map(name: str, /, **declaration: Any) -> Callable[[T], T]:
    """Registers `f(image) -> map` as the side map `name`; the rest are fields of `SideMapSpec`, as literals.

    image: (*S, C) of uint8, as prepared. map: (*S) or (*S, K) of finite numbers. A method that declares `maps=(name,)`
    finds it, cut and turned with every view, in `batch.maps[name]`.
    """
    return _register("side_map", name)


# ------------------------------------------------------------------------------------------------------------ registry


@dataclass
class Registry:
    """What is on offer: declarations by name, and the files that could not be read."""

    methods: dict[str, MethodSpec] = field(default_factory=dict)
    datasets: dict[str, DatasetSpec] = field(default_factory=dict)
    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    corpora: dict[str, CorpusSpec] = field(default_factory=dict)
    protocols: dict[str, ProtocolSpec] = field(default_factory=dict)
    metrics: dict[str, MetricSpec] = field(default_factory=dict)
    backbones: dict[str, BackboneSpec] = field(default_factory=dict)
    side_maps: dict[str, SideMapSpec] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # file -> why
    plugins: list[str] = field(default_factory=list)  # files added by path
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)  # layout -> its methods; () where rows change more

    def _shelf(self, kind: str) -> dict[str, Any]:
        shelf: dict[str, Any] = getattr(self, _PLURALS[kind])
        return shelf

    def add_file(self, path: Path, *, tolerant: bool = False) -> list[str]:
        """Registers what a file declares and returns the names; `tolerant` notes a broken file instead of raising."""
        return self.add_files([path], tolerant=tolerant)

    def add_files(self, paths: Iterable[Path], *, tolerant: bool = False) -> list[str]:
        """Registers what several files declare, in their order; one may stand on the dataset of another."""
        names, found = list[str](), dict[Path, list[Declared]]()
        for path in paths:
            try:
                if path.suffix == TOML:
                    names.append(self._shelve("task", own.read_task(path)))
                else:
                    found[path] = read_file(path)
            except BenchError as error:
                self._broken(path, error, tolerant)
        for first in (True, False):  # datasets, then what stands on them
            for path, items in found.items():
                try:
                    wanted = [item for item in items if (item.kind == "dataset") == first]
                    names += self._settle(wanted) if str(path) not in self.broken else []
                except BenchError as error:
                    self._broken(path, error, tolerant)
        return names

    def _broken(self, path: Path, error: BenchError, tolerant: bool) -> None:
        if not tolerant:
            raise error
        self.broken[str(path)] = str(error)

    def _settle(self, items: Sequence[Declared]) -> list[str]:
        specs = [(item.kind, complete(item, self.datasets)) for item in items]
        specs.sort(key=lambda pair: pair[0] == "task")  # a task may name a metric or protocol of its own file
        names = []
        for kind, spec in specs:
            if isinstance(spec, TaskSpec):
                self._check_task(spec)
            names.append(self._shelve(kind, spec))
        return names

    def _check_task(self, task: TaskSpec) -> None:
        """BenchError, with its place, where a task names a metric or protocol that there is not."""
        try:
            self.metrics_of(task)
            for name in task.protocols:
                self.get("protocol", name)
        except BenchError as error:
            raise BenchError(f"{task.origin.file}:{task.origin.line}: task {task.name!r}: {error}") from None

    def _shelve(self, kind: str, spec: Spec) -> str:
        shelf = self._shelf(kind)
        known = shelf.get(spec.name)
        if known is not None and known.origin != spec.origin:
            raise BenchError(
                f"{kind} {spec.name!r} is registered twice, in {known.origin.file}:{known.origin.line} and in "
                f"{spec.origin.file}:{spec.origin.line}: rename one of them"
            )
        shelf.setdefault(spec.name, spec)
        return spec.name

    def add_plugin(self, text: str) -> list[str]:
        """Registers the file `text`, given by path; BenchError where it is missing or declares nothing."""
        path = Path(text).expanduser().resolve()
        if not path.is_file():
            raise BenchError(f"there is no file {text}; give a .py file with a registry decorator or a .toml of a task")
        names = self.add_file(path)
        if not names:
            raise BenchError(
                f"{text} registers nothing; decorate its class with @method(...) or its loader with @task(...)"
            )
        if str(path) not in self.plugins:
            self.plugins.append(str(path))
        return names

    def groups(self, kind: str) -> dict[str, list[str]]:
        """Group name -> member names, for methods or tasks; a table is a group of the methods in its rows."""
        groups: dict[str, list[str]] = {}
        shelf = self._shelf(kind)
        for name, spec in shelf.items():
            for group in getattr(spec, "groups", ()):
                groups.setdefault(group, []).append(name)
        for table, rows in self.tables.items() if kind == "method" else ():
            members = [name for name in rows if name in shelf]
            if members:
                groups.setdefault(table, members)
        return groups

    def select(self, kind: str, expression: str) -> list[str]:
        """Names chosen by `a,group,gl*b,all,!b,./a.py,./b.toml,a:file`, as asked, once each; BenchError if unknown.

        A method that takes a file comes as `name:/path/of/the/file`.
        """
        shelf, chosen = self._shelf(kind), list[str]()
        tokens = [token.strip() for token in expression.split(",") if token.strip()]
        if not tokens:
            raise BenchError(f"no {kind} was named; `bench list {_PLURALS[kind]}` shows them")
        if tokens[0].startswith("!"):
            chosen = list(shelf)
        for at, token in enumerate(tokens):
            try:
                names = self._resolve(kind, token.removeprefix("!"))
            except BenchError as error:
                if at and ":" in tokens[at - 1]:
                    raise BenchError(f"{error}; the path of a file cannot hold a comma, it parts names") from None
                raise
            if token.startswith("!"):
                chosen = [item for item in chosen if item not in names]
            else:
                chosen += [item for item in names if item not in chosen]
        if not chosen:
            raise BenchError(
                f"--{kind}s {expression} leaves nothing; `bench list {_PLURALS[kind]}` shows what there is"
            )
        return chosen

    def _resolve(self, kind: str, name: str) -> list[str]:
        shelf, groups = self._shelf(kind), self.groups(kind)
        method, colon, place = name.partition(":")
        if kind == "method" and colon and method in shelf:
            if shelf[method].weights != FILE or not place:
                raise BenchError(f"{method} {'is written with a file: NAME:PATH' if not place else 'takes no file'}")
            return [f"{method}:{Path(place).expanduser().absolute()}"]
        if name == "all":
            return list(shelf)
        if name in shelf:
            return [name]
        if name in groups:
            return groups[name]
        if name.endswith((".py", TOML)) or "/" in name:
            return [item for item in self.add_plugin(name) if item in self._shelf(kind)]
        if any(sign in name for sign in "*?["):
            names = fnmatch.filter(shelf, name)
            if names:
                return names
        if kind == "method" and name in self.tables:
            raise BenchError(f"rows of the table {name} are more than methods: write --layout {name} instead")
        hurt = [f"{file}: {why}" for file, why in self.broken.items() if Path(file).stem == name]
        if hurt:
            raise BenchError(f"{kind} {name!r} cannot be used: {hurt[0]}")
        near = suggest(name, [*shelf, *groups, "all"])
        raise BenchError(f"unknown {kind} {name!r}{near or f'; `bench list {_PLURALS[kind]}` shows what there is'}")

    def get(self, kind: str, name: str) -> Any:
        """The declaration of `name`; BenchError with its nearest neighbours where there is none."""
        shelf = self._shelf(kind)
        if name not in shelf:
            self._resolve(kind, name)
            raise BenchError(f"{name!r} is a group, not one {kind}")
        return shelf[name]

    def one(self, kind: str, text: str) -> str:
        """The name that `text`, a name or the path of a plug-in file that declares one, stands for."""
        if not text.endswith(".py"):
            return str(self.get(kind, text).name)
        names = [name for name in self.add_plugin(text) if name in self._shelf(kind)]
        if len(names) != 1:
            raise BenchError(f"{text} declares {len(names)} {_PLURALS[kind]}; write the name of the one that is meant")
        return names[0]

    def encoder(self, backbone: str) -> Callable[[int], Any] | None:
        """What makes the encoder of a plug-in's backbone from a number of channels; None for one that comes along."""
        return load(self.backbones[backbone]) if backbone in self.backbones else None

    def protocols_of(self, task: TaskSpec) -> list[str]:
        """The protocols that judge an encoder on a task, its default first; BenchError where one is unknown."""
        if task.protocols:
            return [self.get("protocol", name).name for name in task.protocols]
        serving = [spec for spec in self.protocols.values() if task.truth in spec.truths and task.dims in spec.dims]
        return [spec.name for spec in sorted(serving, key=lambda spec: spec.order)]

    def metrics_of(self, task: TaskSpec) -> list[MetricSpec]:
        """The metrics of a task, its headline first; BenchError where one is unknown or compares another truth."""
        found: list[MetricSpec] = [self.get("metric", name) for name in task.metrics]
        odd = next((spec for spec in found if task.truth not in spec.truths), None)
        if odd is not None:
            raise BenchError(f"the metric {odd.name} of the task {task.name} does not compare a {task.truth}")
        return found


def _entry_point_files() -> Iterable[tuple[str, Path | None]]:
    """Files of installed plug-ins, kind by kind; every installed package is looked at once."""
    points = importlib.metadata.entry_points()
    for kind in SPECS:
        for point in points.select(group=f"medssl_bench.{_PLURALS[kind]}"):
            try:
                spec = importlib.util.find_spec(point.module)
            except (ImportError, ValueError):
                spec = None
            yield point.value, Path(spec.origin) if spec is not None and spec.origin else None


def _files(folders: Iterable[str]) -> list[Path]:
    paths = [path for folder in folders for path in sorted((HOME / folder).glob("*.py"))]
    return [path for path in paths if path.name != "__init__.py"]


def bare() -> Registry:
    """The metrics and protocols of the harness alone: what a plug-in may stand on without any other."""
    registry = Registry()
    registry.add_files(_files(OWN), tolerant=True)
    return registry


def scan(plugins: Iterable[str] = ()) -> Registry:
    """Reads the two plug-in packages, installed entry points and the given files."""
    registry = bare()
    registry.add_files(_files(PLUGINS), tolerant=True)
    for value, file in _entry_point_files():
        if file is None:
            registry.broken[value] = f"the entry point {value} names no module that can be found"
        else:
            registry.add_file(file, tolerant=True)
    for name, path in layout_files().items():
        try:
            registry.tables[name] = _row_methods(path)
        except (OSError, ValueError) as error:
            registry.broken[str(path)] = f"{path} cannot be read as TOML ({error})"
    for text in plugins:
        registry.add_plugin(text)
    return registry


def layout_files() -> dict[str, Path]:
    """Every table layout by name: the TOML files beside the published numbers of the checkout or installed package."""
    for folder in (HOME / "results" / "published", HOME / "bench" / "_published"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def _row_methods(path: Path) -> tuple[str, ...]:
    """The methods of a layout's rows in their order; none where a row sets hyper-parameters or a backbone."""
    rows = tomllib.loads(path.read_text(encoding="utf-8")).get("rows", [])
    if any({"set", "backbone"} & row.keys() for row in rows):
        return ()
    return tuple(dict.fromkeys(row["method"] for row in rows if row.get("method")))


# ------------------------------------------------------------------------------------------------------------- loading


def _module_name(path: Path) -> str:
    folder = path.parent.relative_to(HOME).as_posix() if path.is_relative_to(HOME) else ""
    if folder in (*OWN, *PLUGINS):
        return f"{folder.replace('/', '.')}.{path.stem}"
    return f"bench_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"


_IMPORTING = threading.RLock()  # phantoms are drawn in threads: none may see a module that another is still reading


def _import_file(path: Path) -> ModuleType:
    with _IMPORTING:
        return sys.modules.get(_module_name(path)) or _imported(path)


def _imported(path: Path) -> ModuleType:
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, BenchError) or not isinstance(error, Exception):
            raise
        raise BenchError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def load(spec: Spec) -> Any:
    """The class or function a declaration stands on, imported now; BenchError naming the file where that fails."""
    if spec.origin.file.endswith(TOML):
        return own.loader(Path(spec.origin.file))
    return getattr(_import_file(Path(spec.origin.file)), spec.origin.symbol)


def symbol(spec: Spec, name: str) -> Any:
    """What the file of a declaration calls `name`; None where it has nothing of that name."""
    return getattr(_import_file(Path(spec.origin.file)), name, None) if name.isidentifier() else None


def hparams_of(spec: MethodSpec, values: Mapping[str, Any]) -> Any:
    """The method's frozen hyper-parameters with `values` on top of its registered defaults."""
    module = _import_file(Path(spec.origin.file))
    tree = ast.parse(Path(spec.origin.file).read_bytes())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == spec.origin.symbol:
            for call in node.decorator_list:
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.args[0], ast.Constant)
                    and call.args[0].value == spec.name
                ):
                    assert isinstance(call.args[1], ast.Name)
                    return getattr(module, call.args[1].id)(**(spec.defaults | dict(values)))
    raise BenchError(f"{spec.origin.file} no longer registers {spec.name!r}; start the command again")
