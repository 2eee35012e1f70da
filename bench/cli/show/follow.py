"""Looking on: a state that is drawn again and again, and a log that grows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

LOOK_SECONDS = 2.0  # between two looks at the cells
LISTEN_SECONDS = 0.3  # between two looks at a log
CLEAR = "\033[H\033[J"  # top left, then all below


def redraw(look: Callable[[], tuple[bool, str]], draw: Callable[[], None], pause: float = LOOK_SECONDS) -> None:
    """Shows how things stand until nothing is under way or Ctrl-C.

    look: whether something is under way, and all of it in one line. On a terminal everything is drawn again in the same
    place; without one the line is printed whenever it has changed, and everything is drawn once, in the end.
    """
    terminal, said, going = sys.stdout.isatty(), "", True
    while going:
        going, line = look()
        if terminal:
            sys.stdout.write(CLEAR)
            draw()
        elif line != said:
            print(line, flush=True)
            said = line
        sys.stdout.flush()
        if going:
            time.sleep(pause)
    if not terminal:
        draw()


def follow(path: Path, going: Callable[[], bool], out: TextIO, pause: float = LISTEN_SECONDS) -> None:
    """Prints a log, and what is added to it while its cell is at work."""
    offset = 0
    while True:
        last = not going()  # asked first: what is written until then is still printed
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                new = stream.read()
        except FileNotFoundError:
            new = b""
        if new:
            offset += len(new)
            out.write(new.decode(errors="replace"))
            out.flush()
        if last:
            return
        time.sleep(pause)
