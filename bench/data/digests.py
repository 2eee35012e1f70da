"""SHA-256 of files and of phantoms: what a fingerprint is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.data import phantoms, store
from bench.data.cache import in_threads
from bench.spec import BenchError, digest, file_digest
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


def phantom_fingerprint(declaration: Mapping[str, Any], *about: object) -> str:
    """What a phantom corpus or dataset is recognised by: its declaration and its generator's version."""
    modality = declaration.get("modality")
    if modality not in phantoms.VERSIONS:
        raise BenchError(f"there is no phantom of modality {modality!r}; there are: {', '.join(phantoms.VERSIONS)}")
    version = phantoms.VERSIONS[modality]
    return digest(["phantom", version, json.loads(json.dumps(dict(declaration))), *about])
