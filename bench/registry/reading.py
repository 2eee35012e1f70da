"""Reads declarations from the decorators of a plug-in file, without importing it.

The arguments are literals, or names that the file gives to literals. A declaration that stands on a dataset is put
together when the dataset is known (`complete`).
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.spec import (
    FILE,
    LIBRARY,
    TRUTHS,
    BackboneSpec,
    BenchError,
    CorpusSpec,
    DatasetSpec,
    HParam,
    MethodSpec,
    MetricSpec,
    Origin,
    ProtocolSpec,
    SideMapSpec,
    TaskSpec,
    suggest,
)

Spec = MethodSpec | DatasetSpec | TaskSpec | CorpusSpec | ProtocolSpec | MetricSpec | BackboneSpec | SideMapSpec

SPECS: dict[str, type[Any]] = {
    "method": MethodSpec,
    "dataset": DatasetSpec,
    "task": TaskSpec,
    "corpus": CorpusSpec,
    "protocol": ProtocolSpec,
    "metric": MetricSpec,
    "backbone": BackboneSpec,
    "side_map": SideMapSpec,
}
_SCALARS = ("bool", "int", "float", "str")
_TYPES: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (float, int), "str": (str,)}
_TUPLES: dict[str, tuple[type, str]] = {
    "tuple[str, ...]": (str, 'a tuple of texts, as in ("a",)'),
    "tuple[int, ...]": (int, "a tuple of whole numbers, as in (2, 3)"),
}


@dataclass(frozen=True)
class Declared:
    """One decorator as it is written."""

    kind: str  # of SPECS
    name: str
    values: Mapping[str, Any]
    origin: Origin

    @property
    def dataset(self) -> str:
        """The dataset it stands on."""
        return str(self.values.get("dataset", ""))


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

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        """`{**ONE, "more": 2}` with the entries of ONE written out."""
        entries: list[tuple[ast.expr | None, ast.expr]] = []
        for key, value in zip(node.keys, map(self.visit, node.values), strict=True):
            inner = zip(value.keys, value.values, strict=True) if key is None and isinstance(value, ast.Dict) else None
            entries += inner or [(key and self.visit(key), value)]
        return ast.Dict([key for key, _ in entries], [value for _, value in entries])


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


def _declared(call: ast.Call, tree: ast.Module, spelt: _Spelt, lines: list[str], origin: Origin) -> Declared:
    assert isinstance(call.func, ast.Name)
    kind, name = call.func.id, ast.literal_eval(call.args[0])
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
    return Declared(kind, name, values, origin)


def complete(item: Declared, datasets: Mapping[str, DatasetSpec]) -> Spec:
    """The declaration with what its dataset says; BenchError, with its place, where it is incomplete or wrong."""
    try:
        return _complete(item, datasets)
    except BenchError as error:
        raise BenchError(f"{item.origin.file}:{item.origin.line}: {error}") from None


def _complete(item: Declared, datasets: Mapping[str, DatasetSpec]) -> Spec:
    values, what = dict(item.values), f"{item.kind} {item.name!r}"
    if item.dataset:
        if item.dataset not in datasets:
            near = suggest(item.dataset, datasets) or "; register it with @dataset(...)"
            raise BenchError(f"{what} stands on an unknown dataset {item.dataset!r}{near}")
        values = _taken(datasets[item.dataset], SPECS[item.kind]) | values
        values["phantom"] = {**datasets[item.dataset].phantom, **item.values.get("phantom", {})}
    try:
        spec: Spec = SPECS[item.kind](name=item.name, origin=item.origin, **values)
    except TypeError as error:
        raise BenchError(f"{what} is not fully declared: {str(error).partition('() ')[2]}") from None
    _check(what, spec)
    return spec


def _taken(dataset: DatasetSpec, kind: type[Any]) -> dict[str, Any]:
    """What a task or corpus takes from its dataset: every field that both have."""
    own = {item.name for item in dataclasses.fields(kind)} - {"name", "origin"}
    return {item.name: getattr(dataset, item.name) for item in dataclasses.fields(dataset) if item.name in own}


def _check(what: str, spec: Spec) -> None:
    """BenchError where a declared value has not its field's type, or is none of those allowed."""
    for item in dataclasses.fields(spec):
        value, wanted = getattr(spec, item.name), str(item.type)
        if wanted in _TUPLES:
            inner, wanted = _TUPLES[wanted]
            good = isinstance(value, tuple) and all(isinstance(part, inner) for part in value)
        else:
            good = isinstance(value, _TYPES.get(wanted, (object,))) and (isinstance(value, bool) <= (wanted == "bool"))
        if not good:
            raise BenchError(f"{what} declares {item.name}={value!r}, but it takes {wanted}")
    sorts = getattr(spec, "truths", (spec.truth,) if isinstance(spec, TaskSpec) else ())
    odd = next((sort for sort in sorts if sort not in TRUTHS), None)
    if odd is not None:
        raise BenchError(f"{what} declares the truth {odd!r}; it takes {', '.join(TRUTHS)}")
    if isinstance(spec, MethodSpec):
        _check_method(what, spec)
    if isinstance(spec, TaskSpec) and not spec.metrics:
        raise BenchError(f"{what} declares no metric")


def _check_method(what: str, spec: MethodSpec) -> None:
    if not spec.dims or not set(spec.dims) <= {2, 3}:
        raise BenchError(f"{what} declares dims={spec.dims!r}, but it takes (2,), (3,) or (2, 3)")
    if len(spec.dims) == 1 and not spec.dims_reason:
        raise BenchError(f"{what} is made for {spec.dims[0]}-D images alone: say why with dims_reason")
    if spec.parallel not in ("", "mean", "gather"):
        raise BenchError(f"{what} declares parallel={spec.parallel!r}, but it takes mean, gather or nothing")
    if spec.weights not in ("", LIBRARY, FILE)[: 1 if spec.trains else 3]:
        more = " beside trains=False" * spec.trains
        raise BenchError(f"{what} declares weights={spec.weights!r}; it takes library or file{more}")


def read_file(path: Path) -> list[Declared]:
    """Every declaration in a plug-in file, in the order written; BenchError where it cannot be read."""
    try:
        source = path.read_bytes()
        tree = ast.parse(source, filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise BenchError(f"{path} cannot be read as Python ({error})") from None
    lines = source.decode(errors="replace").splitlines()
    spelt, found = _Spelt(tree), list[Declared]()
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        for call in node.decorator_list:
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in SPECS):
                continue
            origin = Origin(str(path), node.lineno, node.name, source)
            try:
                found.append(_declared(call, tree, spelt, lines, origin))
            except (ValueError, TypeError, IndexError) as error:
                raise BenchError(f"{path}:{call.lineno}: the declaration must be literal ({error})") from None
            except BenchError as error:
                raise BenchError(f"{path}:{call.lineno}: {error}") from None
    return found
