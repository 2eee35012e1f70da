"""Whether a number is still of today's source: by the declared version, and by what the file does.

Records of schema 1 carry digests of whole files instead. A ledger beside this file says which plug-ins, in which
version, the files of release 0.2 declared; what it does not hold was made by a file that nobody knows any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from bench.spec import Origin

LEDGER = Path(__file__).with_name("sources_0_2.json")  # SHA-256 of a file -> {kind: {name: version}}


class Declared(Protocol):
    """What of a declaration says by which source a number is made."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def origin(self) -> Origin: ...


def source_of(spec: Declared) -> dict[str, Any]:
    """What a record says of the source that it is made by."""
    return {"version": spec.version, "does": spec.origin.does}


def is_current(kind: str, spec: Declared, made_by: object) -> bool:
    """Whether `made_by`, what a record says of its `kind` ("method" or "task"), is the present source of that plug-in.

    It is what `source_of` gave then; or a digest alone, of what the file did or, in schema 1, of the whole file.
    """
    if isinstance(made_by, Mapping):
        return made_by.get("version") == spec.version and made_by.get("does") == spec.origin.does
    return _ledger().get(str(made_by), {}).get(kind, {}).get(spec.name) == spec.version or made_by == spec.origin.does


@cache
def _ledger() -> dict[str, dict[str, dict[str, int]]]:
    found: dict[str, dict[str, dict[str, int]]] = json.loads(LEDGER.read_text(encoding="utf-8"))
    return found
