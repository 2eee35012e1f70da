"""SHA-256 of files and of phantoms: what a fingerprint is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import registry
from bench.data import phantoms, store
from bench.data.cache import in_threads
from bench.data.phantoms import Phantom
from bench.spec import BenchError, CorpusSpec, TaskSpec, derive, digest, file_digest
from bench.spec.samples import MissingData


class Digests:
    """SHA-256 of files, remembered by path, size and modification time in one small JSON beside the cache."""

    def __init__(self, cache: Path) -> None:
        self._file = cache / "digests.json"
        found = store.read_json(self._file)
        self._known: dict[str, Any] = found if found is not None else {}
        self._new = False

    def of(self, path: Path) -> str:
        try:
            state = path.stat()
            known = self._known.get(str(path))
            if isinstance(known, list) and known[:2] == [state.st_size, state.st_mtime_ns]:
                return str(known[2])
            value = file_digest(path)
        except OSError as error:
            raise MissingData(f"{path} cannot be read ({error.strerror}): check the file or take it out") from None
        self._known[str(path)] = [state.st_size, state.st_mtime_ns, value]
        self._new = True
        return value

    def read(self, paths: Sequence[Path]) -> None:
        """Digests many files at once, on all cores."""
        for _ in in_threads(lambda index: self.of(paths[index]), len(paths)):
            pass

    def save(self) -> None:
        if self._new:
            store.write_json(self._file, self._known)


def phantom_fingerprint(spec: TaskSpec | CorpusSpec, *about: object) -> str:
    """What a phantom corpus or dataset is recognised by: its declaration and its generator's version."""
    version = phantoms.VERSIONS.get(spec.phantom.get("modality", ""))
    if version is None:
        _own_generator(spec)
    plain = json.loads(json.dumps(dict(spec.phantom)))
    return digest(["phantom", ["own", spec.version] if version is None else version, plain, *about])


def drawn(spec: TaskSpec | CorpusSpec, index: int, size: int, camera: Mapping[str, Any], *purpose: str) -> Phantom:
    """The phantom number `index` of a corpus or dataset: of one of our modalities, or by a function of its own file."""
    modality, seed = spec.phantom["modality"], derive(0, *purpose, index)
    if modality in phantoms.VERSIONS:
        return phantoms.render(modality, seed, size, camera)
    return _own_generator(spec)(seed, size, camera)


def _own_generator(spec: TaskSpec | CorpusSpec) -> Callable[[int, int, Mapping[str, Any]], Phantom]:
    modality = spec.phantom.get("modality", "")
    found: Callable[[int, int, Mapping[str, Any]], Phantom] | None = registry.symbol(spec, modality)
    if found is None:
        raise BenchError(
            f"{spec.name}: there is no phantom of modality {modality!r}; there are {', '.join(phantoms.VERSIONS)}, and "
            f"whatever function (seed, size, camera) -> Phantom of that name is in {spec.origin.file}"
        )
    return found
