"""The generated blocks of the README and the guides: each is what the command in the comment above it prints.

`python -m tests.guides` names the files that are out of date, `python -m tests.guides --write` makes them true, and
`python -m tests.guides list methods` and the like print one block.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench import spec
from bench.cli import guide, main
from bench.cli.show.offers import offered
from bench.data.phantoms import VERSIONS, render
from bench.registry import own, scan
from tests.test_layers import FLOORS, imports, place, room_of

HOME = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(?P<head><!-- made by: (?P<command>[^>]+?) -->\n).*?(?P<foot><!-- end -->)", re.DOTALL)
OWN = "python -m tests.guides "

STOPS = (  # of a cell: the function it passes, and the number of the stop that calls it
    ("bench.cli.runs.run", 0),
    ("bench.run.grid.expand", 1),
    ("bench.run.launch.run", 1),
    ("bench.run.cell.run_cell", 3),
    ("bench.run.pretrain.pretrain", 4),
    ("bench.run.transfer.transfer", 4),
    ("bench.data.store.Store.write", 4),
    ("bench.table.build.build", 1),
)


def pages() -> list[Path]:
    return [HOME / "README.md", *(guide.HOME / f"{topic}.md" for topic in guide.topics())]


# ------------------------------------------------------------------------------------------------------------- tables


def markdown(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns in which nothing stands are left out."""
    texts = [[_cell(value) for value in row] for row in rows]
    filled = [at for at in range(len(headers)) if any(row[at] for row in texts)]
    lines = [[headers[at] for at in filled], ["---"] * len(filled), *([row[at] for at in filled] for row in texts)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    text = f"{value:,}" if isinstance(value, int) else str("" if value is None else value)
    return text.replace("|", "\\|")


def listed(kind: str) -> str:
    """The rows of `bench list KIND`."""
    rows = offered(kind, scan())
    if not rows:
        return f"There are no {kind}.\n"
    return markdown([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])


def budgets() -> str:
    """Every budget, as people say it."""
    rows = []
    for budget in spec.BUDGETS.values():
        steps = f"{budget.steps} steps" if budget.steps else "the method's own"
        batch = f"at most {budget.batch_cap}" if budget.batch_cap else "the method's own"
        phase = f"{budget.phase_steps} steps" if budget.phase_steps else f"{budget.phase_epochs} epochs"
        rows.append((f"`{budget.name}`", steps, f"{budget.image_size} px", batch, phase))
    return markdown(("budget", "pretraining", "images", "images per step", "transfer, each phase"), rows)


def fields(name: str) -> str:
    """The fields of a declaration in `bench.spec`, with their types, defaults and comments."""
    known = {
        item.name: item for item in dataclasses.fields(getattr(spec, name)) if item.name not in ("origin", "fields")
    }
    source = Path(spec.__file__).read_text(encoding="utf-8")
    lines, classes = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            classes[node.name] = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    said: dict[str, str] = {}  # what is said of a field of this name: here, or else where a declaration has it first
    for item in (*classes["MethodSpec"], *classes["CorpusSpec"], *classes["TaskSpec"], *classes[name]):
        comment = lines[item.lineno - 1].partition("  # ")[2]
        if comment:
            said[ast.unparse(item.target)] = comment
    rows = []
    for item in classes[name]:
        field = ast.unparse(item.target)
        if field in known:
            value = ast.unparse(item.value) if item.value is not None else "needed"
            rows.append((f"`{field}`", ast.unparse(item.annotation), _default(value), said.get(field, "")))
    return markdown(("field", "type", "default", "what it is"), rows)


def _default(text: str) -> str:
    return "{}" if text == "field(default_factory=dict)" else text.replace("'", '"')


def own_keys() -> str:
    """The keys of a task's TOML file that have a default."""
    source = Path(own.__file__).read_text(encoding="utf-8")
    said = dict(re.findall(r'^    "(\w+)": .+?,  # (.+)$', source, re.MULTILINE))
    values = {key: '""' if value == "" else str(value) for key, value in own.DEFAULTS.items()}
    rows = [(f"`{key}`", value, said.get(key, "")) for key, value in values.items()]
    return markdown(("key", "default", "what it is"), rows)


def phantoms() -> str:
    """What is known of a phantom of each modality."""
    rows = []
    for modality in VERSIONS:
        drawn = render(modality, 0, 64, {})
        points = [
            name for name, value in drawn.facts.items() if isinstance(value, list) and isinstance(value[0], float)
        ]
        image = f"{drawn.image.ndim - 1}-D, {drawn.image.shape[-1]} channel{'s' * (drawn.image.shape[-1] > 1)}"
        rows.append((f"`{modality}`", image, sorted(drawn.masks), sorted(points), drawn.grade is not None))
    return markdown(("modality", "images", "masks", "points", "a grade"), rows)


# --------------------------------------------------------------------------------------------------------------- house


def first_sentence(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def rooms() -> str:
    """What lies directly under `bench/`, with the first sentence that each says of itself."""
    found = {path.stem: path for path in (HOME / "bench").glob("*.py") if not path.stem.startswith("__")}
    found |= {path.parent.name: path for path in (HOME / "bench").glob("*/__init__.py")}
    rows = [(f"`bench.{name}`", first_sentence(found[name])) for name in sorted(found)]
    return markdown(("room", "what lives there"), rows)


def floors() -> str:
    """The floors of `tests/test_layers.py`, the highest first."""
    rows = [(floor, ", ".join(f"`{name}`" for name in names.split())) for floor, names in sorted(FLOORS.items())]
    return markdown(("floor", "what stands on it"), rows[::-1])


def module_of(dotted: str) -> Path:
    """The file of the module that a function's dotted name begins with."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        base = HOME.joinpath(*parts[:length])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    raise LookupError(dotted)


def floor_of(dotted: str) -> int:
    parts = place(module_of(dotted))
    room = room_of(parts[:-1] if parts[-1] == "__init__" else parts)
    assert room is not None
    return next(floor for floor, names in FLOORS.items() if ".".join(room) in names.split())


def imported(path: Path) -> set[tuple[str, ...]]:
    """Every module that a file imports, a name that it takes of a package counted as one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set(imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {(*node.module.split("."), alias.name) for alias in node.names}
    return found


def calls(caller: str, called: str) -> bool:
    """Whether the module of one stop imports that of another, or the package that hands it on."""
    there = module_of(called)
    parts = place(there)
    wanted = parts[:-1] if parts[-1] == "__init__" else parts
    found = imported(module_of(caller))
    handed_on = there.parent / "__init__.py"
    return wanted in found or (wanted[:-1] in found and wanted in imported(handed_on))


def stops() -> str:
    """The eight stops of a cell, each with its floor and who calls it."""
    rows = []
    for number, (name, caller) in enumerate(STOPS, 1):
        rows.append((number, f"`{name}`", floor_of(name), f"stop {caller}" if caller else "you"))
    return markdown(("stop", "function", "floor", "called by"), rows)


# -------------------------------------------------------------------------------------------------------------- blocks


def example(name: str) -> str:
    """A file of `tests/examples/`."""
    return f"```python\n{(HOME / 'tests' / 'examples' / f'{name}.py').read_text(encoding='utf-8')}```\n"


def saved(name: str) -> str:
    """A table of `results/tables/`."""
    return (HOME / "results" / "tables" / f"{name}.md").read_text(encoding="utf-8")


MAKERS: dict[str, Callable[..., str]] = {
    "list": listed,
    "budgets": budgets,
    "fields": fields,
    "own-keys": own_keys,
    "phantoms": phantoms,
    "rooms": rooms,
    "floors": floors,
    "stops": stops,
    "example": example,
    "saved": saved,
}


def made(command: str) -> str:
    """What a command prints, run from the top of the checkout."""
    if command.startswith(OWN):
        name, *words = shlex.split(command.removeprefix(OWN))
        return MAKERS[name](*words)
    program, *words = shlex.split(command)
    assert program == "bench", command
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.chdir(HOME):
        assert main(words) == 0, command
    return said.getvalue()


def remade(text: str) -> str:
    """A page with every block as its command prints it."""
    return BLOCK.sub(lambda found: f"{found['head']}{made(found['command'])}{found['foot']}", text)


def _run(words: list[str]) -> int:
    if words and words != ["--write"]:
        print(MAKERS[words[0]](*words[1:]), end="")
        return 0
    old = {path: path.read_text(encoding="utf-8") for path in pages()}
    new = {path: remade(text) for path, text in old.items()}
    changed = [path for path in old if old[path] != new[path]]
    for path in changed:
        print(path.relative_to(HOME))
        if words:
            path.write_text(new[path], encoding="utf-8")
    return 1 if changed and not words else 0


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
