"""What the shell offers behind `bench ...` and a tab: names of plug-ins, budgets and guides. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench import registry
from bench.spec import BACKBONES, BUDGETS

Offer = Callable[[str], list[str]]
"""From what is typed so far of a word to the words that it may become."""


def _beginning(typed: str, known: Iterable[str]) -> list[str]:
    return [name for name in known if name.startswith(typed)]


def several(kind: str) -> Offer:
    """Names, groups and `all` of a kind, each once, behind what is typed up to the last comma."""

    def offer(incomplete: str) -> list[str]:
        found = registry.scan()
        before, comma, typed = incomplete.rpartition(",")
        sign = "!" if typed.startswith("!") else ""
        known = ["all", *getattr(found, f"{kind}s"), *found.groups(kind)]
        new = [name for name in known if name not in before.replace("!", "").split(",")]
        return [f"{before}{comma}{sign}{name}" for name in _beginning(typed.removeprefix("!"), new)]

    return offer


def one(*shelves: str) -> Offer:
    """Names on some shelves of the registry."""

    def offer(incomplete: str) -> list[str]:
        found = registry.scan()
        return _beginning(incomplete, [name for shelf in shelves for name in getattr(found, shelf)])

    return offer


def backbones(incomplete: str) -> list[str]:
    """The backbones that come along, and those of plug-ins; any of timm may be named besides."""
    return _beginning(incomplete, [*BACKBONES, *registry.scan().backbones])


def budgets(incomplete: str) -> list[str]:
    return _beginning(incomplete, BUDGETS)


def of(known: Iterable[str]) -> Offer:
    """Some fixed words."""
    words = tuple(known)
    return lambda incomplete: _beginning(incomplete, words)


BEHIND: dict[str, Offer] = {
    "--methods": several("method"),
    "--tasks": several("task"),
    "--layout": one("tables"),
    "--backbone": backbones,
    "--protocol": one("protocols"),
    "--corpus": one("corpora"),
    "--budget": budgets,
}
"""What is offered behind an option of a request."""
