"""Seconds, bytes and counts as people write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def seconds_text(seconds: float | None) -> str:
    """`2 h 05 min`, `3 min 20 s`, `12 s`, `0.8 s`; `?` where it was never measured."""
    if seconds is None:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def bytes_text(amount: float | None) -> str:
    """`12.3 MB` in powers of 1000; `?` where it is not known."""
    if amount is None:
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def tally(counts: Mapping[str, int]) -> str:
    """`3 done, 1 failed`, without the zeros."""
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "nothing"


def number_text(value: Any) -> str:
    """Four significant digits; what is no number as it stands."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
