"""SHA-256 of every file of a dataset, as `sha256sum` writes them, to tell whether two copies are the same."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from bench.cli.checkup.kinds import Target, Tick
from bench.data import find_root, store
from bench.data.cache import in_threads
from bench.spec import BenchError, file_digest

LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")


def folders(chosen: Sequence[Target], data_root: Path | None) -> dict[str, Path | None]:
    """Name of a dataset's folder -> where it is, None where it is absent; tasks and corpora in one folder share it."""
    found: dict[str, Path | None] = {}
    for target in chosen:
        where = target.folder if target.spec is None else find_root(target.spec, data_root)
        usual = "" if target.spec is None else Path(target.spec.folders[0]).name
        if where is None:
            found.setdefault(usual, None)
        elif where not in found.values():
            other = found.get(where.name)
            if other is not None:
                raise BenchError(f"{other} and {where} have one name: make a list for each")
            found[where.name] = where
    return found


def renamed(wanted: Mapping[str, str], chosen: Sequence[Target], places: Collection[str]) -> dict[str, str]:
    """A list in which every dataset's folder has the name it has here: copies may go by any of the usual names."""
    here = {place.casefold(): place for place in places}
    names: dict[str, str] = {}
    for spec in (target.spec for target in chosen if target.spec is not None):
        own = next((here[name.casefold()] for name in spec.folders if name.casefold() in here), None)
        names |= {name.casefold(): own for name in spec.folders if own is not None}
    found = {}
    for name, value in wanted.items():
        folder, slash, rest = name.partition("/")
        found[f"{names.get(folder.casefold(), folder)}{slash}{rest}"] = value
    return found


def sums(places: Mapping[str, Path | None], tick: Tick) -> dict[str, str]:
    """`FOLDER/file` -> SHA-256, read anew, of every file in some folders; hidden ones are left alone."""
    files = {
        f"{name}/{path.relative_to(root).as_posix()}": path
        for name, root in places.items()
        if root is not None
        for path in _walk(root)
    }
    paths, values = list(files.values()), [""] * len(files)
    tick("reading files", 0, len(files))

    def work(index: int) -> None:
        values[index] = _digest(paths[index])

    for done in in_threads(work, len(paths)):
        tick("reading files", done, len(paths))
    return dict(sorted(zip(files, values, strict=True)))


def _walk(root: Path) -> Iterator[Path]:
    """Every file below a folder; links are followed, each folder once."""
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise BenchError(f"{error.filename} cannot be read ({error.strerror}): check its permissions")

    for folder, inner, names in os.walk(root, followlinks=True, onerror=refuse):
        state = Path(folder).stat()
        if (state.st_dev, state.st_ino) in seen:
            inner.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror}): repair it or take it out") from None


def write_list(path: Path, found: Mapping[str, str]) -> None:
    """Writes checksums to a file."""
    store.write_bytes(path, as_list(found).encode(errors="surrogateescape"))


def as_list(found: Mapping[str, str]) -> str:
    """Checksums as lines that `sha256sum --check` reads too."""
    lines = []
    for name, value in found.items():
        plain = name.replace("\\", "\\\\").replace("\n", "\\n")
        sign = "\\" if plain != name else ""  # sha256sum's mark of an escaped name
        lines.append(f"{sign}{value}  {plain}\n")
    return "".join(lines)


def read_list(path: Path) -> dict[str, str]:
    """Checksums by name; BenchError where the file is no list of them."""
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror}): give a file that --write made") from None
    found = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.rstrip("\r"))
        if match is None:
            raise BenchError(f"line {number} of {path} is no checksum: give a file that --write made")
        escaped, value, name = match.groups()
        found[re.sub(r"\\(.)", lambda sign: {"n": "\n"}.get(sign[1], sign[1]), name) if escaped else name] = value
    return found


def compare(
    found: Mapping[str, str], wanted: Mapping[str, str], only: Collection[str] | None = None
) -> list[tuple[str, str]]:
    """(file, `differs`, `is missing` or `is not in the list`) for every difference, by name.

    only: names of folders; None: those of the list.
    """
    folders = {name.partition("/")[0] for name in wanted} if only is None else set(only)
    return [
        (name, "is not in the list" if name not in wanted else "is missing" if name not in found else "differs")
        for name in sorted({*found, *wanted})
        if name.partition("/")[0] in folders and found.get(name) != wanted.get(name)
    ]
