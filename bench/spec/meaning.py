"""What a plug-in's file does, as a digest that tidying leaves alone.

The digest is of the syntax tree without what changes no number: comments, blank space, docstrings, annotations, imports
that nothing uses and the order of all others, and without declarations: the registry's decorators, constants that only
they use, and the fields of the class of hyper-parameters. What is declared counts by the declared version, by the
hyper-parameters' values and by the fingerprint of the data, which are in the key.

The tree is written down by rules of this file, so that every Python from 3.11 on gives the same digest.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import TypeVar

Definition = TypeVar("Definition", ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

REGISTRY = "bench.registry"  # where the decorators are from that declare
_UNSEEN = frozenset({"ctx", "kind", "type_comment", "type_ignores", "type_params"})
_RECORDS = frozenset({"dataclass", "NamedTuple", "TypedDict"})  # make fields of a class's annotations
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@cache
def meaning(source: bytes) -> str:
    """SHA-256, in hex, of what a file of Python does; SyntaxError or ValueError where it is none."""
    tree = ast.parse(source)
    kinds = _kinds(tree)
    declarations = [call for node in tree.body for call in _declarations(node, kinds)]
    hparams = {item.id for call in declarations for item in call.args[1:] if isinstance(item, ast.Name)}
    imports, body = set(_imports(tree)), _Plain(kinds, hparams).visit(tree).body
    kept = _without_declared(body, {name for call in declarations for name in _names(call)})
    used = {name for node in kept for name in _names(node)}
    words = [word for node in kept for word in _words(node)]
    words += sorted(f"{bound} is {origin}" for bound, origin in imports if bound in used or bound == "*")
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _kinds(tree: ast.Module) -> set[str]:
    """The names of the decorators that only declare: those of the registry."""
    return {
        item.asname or item.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == REGISTRY
        for item in node.names
    }


def _declarations(node: ast.AST, kinds: Collection[str]) -> list[ast.Call]:
    """The decorators of a definition that declare it."""
    calls = (
        [item for item in node.decorator_list if isinstance(item, ast.Call)] if isinstance(node, _DEFINITIONS) else []
    )
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in kinds]


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What the file imports at its top: the name that it gives it, and where that is from."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for item in node.names:
                yield item.asname or item.name.partition(".")[0], f"{item.name}{' itself' * bool(item.asname)}"
        elif isinstance(node, ast.ImportFrom):
            for item in node.names:
                yield item.asname or item.name, f"{item.name} of {'.' * node.level}{node.module or ''}"


def _names(node: ast.AST) -> Iterator[str]:
    return (item.id for item in ast.walk(node) if isinstance(item, ast.Name))


def _constant(node: ast.stmt) -> str:
    """The one name that a statement gives a value to; empty where it does something else."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return ""


def _without_declared(body: Sequence[ast.stmt], declared: Collection[str]) -> list[ast.stmt]:
    """What is left without the constants that only declarations use, and those that only such constants use."""
    kept, declared = list(body), set(declared)
    while True:
        used = {name for node in kept for name in _names(node) if name != _constant(node)}
        gone = [node for node in kept if _constant(node) in declared - used]
        if not gone:
            return kept
        declared |= {name for node in gone for name in _names(node)}
        kept = [node for node in kept if node not in gone]


class _Plain(ast.NodeTransformer):
    """A tree without what changes no number."""

    def __init__(self, kinds: Collection[str], hparams: Collection[str]) -> None:
        self._kinds, self._hparams = kinds, hparams

    def visit_Module(self, node: ast.Module) -> ast.AST:
        node.body = [item for item in node.body if not isinstance(item, (ast.Import, ast.ImportFrom))]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(self._undeclared(node))

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(self._undeclared(node))

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        if node.name in self._hparams:
            node.body = [item for item in node.body if item not in fields]
        elif _RECORDS & {name for item in (*node.decorator_list, *node.bases) for name in _spelt(item)}:
            node.body = [_Field(item) if isinstance(item, ast.AnnAssign) else item for item in node.body]
        return self.generic_visit(self._undeclared(node))

    def _undeclared(self, node: Definition) -> Definition:
        said = _declarations(node, self._kinds)
        node.decorator_list = [item for item in node.decorator_list if item not in said]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.generic_visit(ast.Assign(targets=[node.target], value=node.value))

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if "TYPE_CHECKING" in _spelt(node.test) and not node.orelse:
            return None
        return self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """One constant between two values: how many a text is written in differs between Pythons."""
        values = list[ast.expr]()
        for item in node.values:
            text, last = getattr(item, "value", None), values[-1] if values else None
            if isinstance(item, ast.Constant) and isinstance(last, ast.Constant):
                values[-1] = ast.Constant(str(last.value) + str(text))
            elif not isinstance(item, ast.Constant) or text != "":
                values.append(item)
        node.values = values
        return self.generic_visit(node)


class _Field(ast.stmt):
    """A field of a record: its name and annotation, and its default where it has one."""

    _fields = ("target", "annotation", "value")

    def __init__(self, node: ast.AnnAssign) -> None:
        super().__init__()
        self.target, self.annotation, self.value = node.target, node.annotation, node.value


def _spelt(node: ast.AST) -> Iterator[str]:
    """Every name and attribute in an expression."""
    for item in ast.walk(node):
        if isinstance(item, (ast.Name, ast.Attribute)):
            yield item.id if isinstance(item, ast.Name) else item.attr


def _words(value: object) -> Iterator[str]:
    """A tree as words, one per node, field and value, that can be told apart."""
    if isinstance(value, ast.Constant):
        yield f"constant {type(value.value).__name__} {value.value!r}"
    elif isinstance(value, ast.AST):
        yield f"({type(value).__name__}"
        for name in value._fields:
            inner = getattr(value, name, None)
            if name not in _UNSEEN and inner is not None and inner != []:
                yield name
                yield from _words(inner)
        yield ")"
    elif isinstance(value, list):
        yield "["
        for item in value:
            yield from _words(item)
        yield "]"
    else:
        yield f"{type(value).__name__} {value!r}"
