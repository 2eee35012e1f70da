"""`bench new`: writes a small working plug-in that its user then turns into her own."""

from __future__ import annotations

import keyword
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from bench.registry import Registry
from bench.spec import BenchError, MethodSpec, TaskSpec

FOLDERS = {"method": "methods", "task": "tasks"}
_TEMPLATES = Path(__file__).parent / "templates"


def checkout(start: Path) -> Path | None:
    """The checkout of this project that `start` lies in, if it lies in one."""
    for folder in (start, *start.parents):
        try:
            project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            continue
        if project.get("project", {}).get("name") == "medssl-bench":
            return folder
    return None


def check_name(kind: str, name: str, registry: Registry) -> None:
    """BenchError where `name` cannot become a file, a class and a registered name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        rule = "use small letters, digits and _, a letter first, and no word of Python's own"
        raise BenchError(f"{name!r} cannot name a {kind}: {rule}")
    taken: Mapping[str, MethodSpec | TaskSpec] = registry.methods if kind == "method" else registry.tasks
    if name in taken:
        raise BenchError(f"{kind} {name!r} is there already, in {taken[name].origin.file}: choose another name")
    if name == "all" or name in registry.groups(kind):
        raise BenchError(f"{name!r} is a group of {kind}s: choose another name")


def new(kind: str, name: str, folder: Path, registry: Registry) -> Path:
    """Writes the scaffold of `name` and returns its path: in the checkout around `folder`, else in `folder` itself.

    BenchError where the kind is unknown, the name cannot be used or the file exists.
    """
    if kind not in FOLDERS:
        raise BenchError(f"`bench new` makes a method or a task, not {kind!r}")
    check_name(kind, name, registry)
    home = checkout(folder)
    path = (home / FOLDERS[kind] if home else folder) / f"{name}.py"
    text = (_TEMPLATES / f"{kind}.py.txt").read_text(encoding="utf-8")
    title = " ".join(word.capitalize() for word in name.split("_") if word)
    corpora = [spec.name for spec in registry.corpora.values() if spec.channels == 3]
    values = {"NAME": name, "TITLE": title, "CLASS": title.replace(" ", ""), "CORPUS": corpora[0] if corpora else ""}
    for word, value in values.items():
        text = text.replace(f"@{word}@", value)
    if path.exists():
        raise BenchError(f"{path} exists already: choose another name or remove the file")
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path} cannot be written ({error.strerror}): choose a folder you may write to") from None
    return path
