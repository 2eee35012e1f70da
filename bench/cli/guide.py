"""`bench guide`: the Markdown files of `bench/guide/`, for a person on a terminal and as they are for a program."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import complete, show
from bench.cli.app import app
from bench.spec import BenchError, suggest

HOME = Path(__file__).resolve().parents[1] / "guide"
TOPICS = {  # in the order of the list
    "use": ("table", "data", "own-data", "own-weights", "clusters"),
    "add": ("method", "task", "dataset", "protocol", "metric", "backbone", "maps"),
    "know": ("catalogue", "measured", "house", "changes"),
}
WIDTH = 100  # columns of a page, on a terminal that has as many


def topics() -> list[str]:
    """Every topic, in the order of the list."""
    return [topic for part in TOPICS.values() for topic in part]


def page(topic: str) -> str:
    """The Markdown of a topic without the comments for its makers; BenchError where there is no such topic."""
    if topic not in topics():
        near = suggest(topic, topics()) or f"; there are {', '.join(topics())}"
        raise BenchError(f"there is no guide to {topic!r}{near}")
    text = (HOME / f"{topic}.md").read_text(encoding="utf-8")
    return re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)


def summary(topic: str) -> str:
    """The sentence below a page's title."""
    return page(topic).split("\n\n")[1].replace("\n", " ")


@app.command()
def guide(
    topic: Annotated[
        str | None,
        typer.Argument(
            help="Which; none: the list of them.",
            metavar="TOPIC",
            show_default=False,
            autocompletion=complete.of(topics()),
        ),
    ] = None,
) -> int:
    """Read how to use, extend and understand all this."""
    if topic is None:
        rows = [(part, name, summary(name)) for part, names in TOPICS.items() for name in names]
        show.columns(["to", "topic", "what it tells"], rows)
        return 0
    text = page(topic)
    if show.is_terminal():
        _draw(text)
    else:
        print(text, end="")
    return 0


def _draw(text: str) -> None:
    """On the terminal, by its pager where that is longer than the terminal; q ends it."""
    from rich.console import Console
    from rich.markdown import Markdown

    text = re.sub(r"<sup>(\w+)</sup>", r" [\1]", text)  # numbers of footnotes
    os.environ.setdefault("LESS", "-FRX")  # as git does: colours, and no pager for what is short
    console = Console()
    width = min(WIDTH, console.width)
    long = len(console.render_lines(Markdown(text), console.options.update_width(width))) > console.height
    paged = console.pager(styles=True) if long and sys.stdin.isatty() else contextlib.nullcontext()
    with paged:
        console.print(Markdown(text), width=width)
