"""Finds methods, tasks and corpora by reading their decorators, without importing them.

Declarations are literals in the decorator's call, or names that the file gives to literals, read with `ast`: listing
is instant, needs no torch, and a file that cannot be read harms only itself. The code is imported when a cell asks for
it (`load`).
"""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from bench.metrics import METRICS
from bench.registry import own
from bench.spec import FILE, LIBRARY, BenchError, CorpusSpec, HParam, MethodSpec, Origin, TaskSpec, suggest

T = TypeVar("T")
Spec = MethodSpec | TaskSpec | CorpusSpec

SPECS: dict[str, type[Any]] = {"method": MethodSpec, "task": TaskSpec, "corpus": CorpusSpec}
_SCALARS = ("bool", "int", "float", "str")
_PLURALS = {"method": "methods", "task": "tasks", "corpus": "corpora"}
_TYPES: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (float, int), "str": (str,)}
TOML = ".toml"  # ends the name of a task for a user's own images
HOME = Path(__file__).resolve().parents[2]  # the folder that holds the packages

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


def corpus(name: str, /, **declaration: Any) -> Callable[[T], T]:
    """Registers `load(root) -> list[Path]` as the corpus `name`; the rest are fields of `CorpusSpec`, as literals."""
    return _register("corpus", name)


# ------------------------------------------------------------------------------------------------------------- reading


def _hparams_class(tree: ast.Module, name: str) -> ast.ClassDef:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise BenchError(f"the hyper-parameter class {name} is not written in this file")


def _fields(tree: ast.Module, class_name: str, lines: list[str]) -> tuple[HParam, ...]:
    found = []
    for node in _hparams_class(tree, class_name).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        kind = ast.unparse(node.annotation)
        if kind not in _SCALARS or node.value is None:
            raise BenchError(f"{class_name}.{node.target.id} must be a bool, int, float or str with a literal default")
        default = ast.literal_eval(node.value)
        comment = lines[node.lineno - 1].partition("#")[2].strip()
        found.append(HParam(node.target.id, kind, float(default) if kind == "float" else default, comment))
    return tuple(found)


def _variant(fields: tuple[HParam, ...], changes: Mapping[str, Any], name: str) -> tuple[HParam, ...]:
    unknown = sorted(set(changes) - {item.name for item in fields})
    if unknown:
        raise BenchError(f"{name} sets {unknown[0]!r}, which is no field of its hyper-parameters")
    return tuple(
        dataclasses.replace(item, default=changes[item.name]) if item.name in changes else item for item in fields
    )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


class _Spelt(ast.NodeTransformer):
    """Puts what a name stands for in its place, where the file says so with a literal."""

    def __init__(self, tree: ast.Module) -> None:
        self.constants: dict[str, ast.expr] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.constants[node.targets[0].id] = self.visit(node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.constants[node.target.id] = self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.constants.get(node.id, node)


def _keywords(call: ast.Call, spelt: _Spelt) -> dict[str, Any]:
    """The values of a declaration, those of its `**SHARED` included."""
    values: dict[str, Any] = {}
    for item in call.keywords:
        value = ast.literal_eval(spelt.visit(item.value))
        given = {item.arg: value} if item.arg else dict(value)
        twice = sorted(given.keys() & values.keys())
        if twice:
            raise BenchError(f"the declaration gives {twice[0]!r} twice")
        values |= given
    return {key: _frozen(value) for key, value in values.items()}


def _declaration(kind: str, call: ast.Call, tree: ast.Module, spelt: _Spelt, lines: list[str], origin: Origin) -> Spec:
    name = ast.literal_eval(call.args[0])
    values = _keywords(call, spelt)
    if kind == "method":
        if len(call.args) < 2 or not isinstance(call.args[1], ast.Name):
            raise BenchError(f"@method({name!r}, ...) must name its hyper-parameter class as second argument")
        values["fields"] = _variant(_fields(tree, call.args[1].id, lines), values.pop("set", {}), name)
    known = {item.name for item in dataclasses.fields(SPECS[kind])}
    unknown = sorted(set(values) - known)
    if unknown:
        near = suggest(unknown[0], known)
        raise BenchError(f"{kind} {name!r} declares an unknown field {unknown[0]!r}{near}")
    try:
        spec: Spec = SPECS[kind](name=name, origin=origin, **values)
    except TypeError as error:
        raise BenchError(f"{kind} {name!r} is not fully declared: {str(error).partition('() ')[2]}") from None
    _check(kind, spec)
    return spec


def _check(kind: str, spec: Spec) -> None:
    """BenchError where a declared value has not its field's type, or names a metric that does not exist."""
    for item in dataclasses.fields(spec):
        value = getattr(spec, item.name)
        wanted = str(item.type)
        if wanted == "tuple[str, ...]":
            good = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
            wanted = 'a tuple of texts, as in ("a",)'
        else:
            good = isinstance(value, _TYPES.get(wanted, (object,))) and (isinstance(value, bool) <= (wanted == "bool"))
        if not good:
            raise BenchError(f"{kind} {spec.name!r} declares {item.name}={value!r}, but it takes {wanted}")
    if isinstance(spec, MethodSpec) and spec.parallel not in ("", "mean", "gather"):
        raise BenchError(
            f"{kind} {spec.name!r} declares parallel={spec.parallel!r}, but it takes mean, gather or nothing"
        )
    if isinstance(spec, TaskSpec) and spec.metric not in METRICS:
        known = ", ".join(METRICS)
        raise BenchError(f"{kind} {spec.name!r} declares an unknown metric {spec.metric!r}; choose from {known}")
    if isinstance(spec, MethodSpec) and spec.weights not in ("", LIBRARY, FILE)[: 1 if spec.trains else 3]:
        more = " beside trains=False" * spec.trains
        raise BenchError(f"{kind} {spec.name!r} declares weights={spec.weights!r}; it takes library or file{more}")


def read_file(path: Path) -> list[tuple[str, Spec]]:
    """Every (kind, declaration) in a plug-in file, in the order written; BenchError where it cannot be read."""
    try:
        source = path.read_bytes()
        tree = ast.parse(source, filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise BenchError(f"{path} cannot be read as Python ({error})") from None
    lines = source.decode(errors="replace").splitlines()
    sha256 = hashlib.sha256(source).hexdigest()
    spelt, found = _Spelt(tree), list[tuple[str, Spec]]()
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        for call in node.decorator_list:
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in SPECS):
                continue
            origin = Origin(str(path), node.lineno, node.name, sha256)
            try:
                found.append((call.func.id, _declaration(call.func.id, call, tree, spelt, lines, origin)))
            except (ValueError, TypeError, IndexError) as error:
                raise BenchError(f"{path}:{call.lineno}: the declaration must be literal ({error})") from None
            except BenchError as error:
                raise BenchError(f"{path}:{call.lineno}: {error}") from None
    return found


# ------------------------------------------------------------------------------------------------------------ registry


@dataclass
class Registry:
    """What is on offer: declarations by name, and the files that could not be read."""

    methods: dict[str, MethodSpec] = field(default_factory=dict)
    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    corpora: dict[str, CorpusSpec] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # file -> why
    plugins: list[str] = field(default_factory=list)  # files added by path
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)  # layout -> its methods; () where rows change more

    def _shelf(self, kind: str) -> dict[str, Any]:
        shelves: dict[str, dict[str, Any]] = {"method": self.methods, "task": self.tasks, "corpus": self.corpora}
        return shelves[kind]

    def add_file(self, path: Path, *, tolerant: bool = False) -> list[str]:
        """Registers what a file declares and returns the names; `tolerant` notes a broken file instead of raising."""
        try:
            found = [("task", own.read_task(path))] if path.suffix == TOML else read_file(path)
        except BenchError as error:
            if not tolerant:
                raise
            self.broken[str(path)] = str(error)
            return []
        names = []
        for kind, spec in found:
            shelf = self._shelf(kind)
            known = shelf.get(spec.name)
            if known is not None and known.origin == spec.origin:
                names.append(spec.name)
                continue
            if known is not None:
                raise BenchError(
                    f"{kind} {spec.name!r} is registered twice, in {known.origin.file}:{known.origin.line} and in "
                    f"{spec.origin.file}:{spec.origin.line}: rename one of them"
                )
            shelf[spec.name] = spec
            names.append(spec.name)
        return names

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


def _entry_point_files(kind: str) -> Iterable[tuple[str, Path | None]]:
    for point in importlib.metadata.entry_points(group=f"medssl_bench.{kind}s"):
        try:
            spec = importlib.util.find_spec(point.module)
        except (ImportError, ValueError):
            spec = None
        yield point.value, Path(spec.origin) if spec is not None and spec.origin else None


def scan(plugins: Iterable[str] = ()) -> Registry:
    """Reads the two plug-in packages, installed entry points and the given files."""
    registry = Registry()
    for folder in ("methods", "tasks"):
        for path in sorted((HOME / folder).glob("*.py")):
            if path.name != "__init__.py":
                registry.add_file(path, tolerant=True)
    for kind in ("method", "task"):
        for value, file in _entry_point_files(kind):
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
    if path.parent.parent == HOME and path.parent.name in ("methods", "tasks"):
        return f"{path.parent.name}.{path.stem}"
    return f"bench_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"


def _import_file(path: Path) -> ModuleType:
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
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
