"""argv in, exit code out: the command `bench`.

Exit codes: 0 every cell has a record, 1 some cell failed or the program did, 2 the request was wrong, 130 interrupted.
Errors are one line on standard error. Nothing here imports torch; each command imports what it needs when called.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from bench.cli import data, guide, jobs, offers, runs, show, tables
from bench.cli.app import app
from bench.cli.options import RUNS
from bench.cli.speak import Interrupted
from bench.spec import BenchError

COMMANDS = (runs, jobs, tables, data, offers, guide)  # modules that hang their commands onto the app

ClickException: type[Exception] = typer.BadParameter.__mro__[2]  # wherever the installed typer keeps its click


STOPPED = "interrupted; the same command goes on where it stopped"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; every error becomes one line on standard error."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        code = typer.main.get_command(app).main(words, prog_name="bench", standalone_mode=False)
        return _fail(STOPPED, 130) if code == 130 else int(code or 0)  # typer's word for KeyboardInterrupt, as is Abort
    except BenchError as error:
        return _fail(str(error), 2)
    except Interrupted as error:
        return _fail(str(error), 130)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(STOPPED, 130)
    except ClickException as error:
        return _fail(_usage(error, words), 2)
    except BrokenPipeError:  # `bench list tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 130 if words[0] == "run" else 0  # a run that lost its listener may have cells to go
    except Exception as error:
        if os.environ.get("BENCH_DEBUG") == "1":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"{reason} (this is a fault of bench; the traceback is in {_keep_traceback(words)})", 1)


def _fail(sentence: str, code: int) -> int:
    sys.stdout.flush()
    red, plain = ("\033[31m", "\033[0m") if show.is_coloured(sys.stderr) else ("", "")
    print(f"{red}error:{plain} {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _usage(error: Any, words: Sequence[str]) -> str:
    message = error.format_message().rstrip(".")
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = next((f" {word}" for word in words if word in known), "")
    return f"{message[:1].lower()}{message[1:]}; see `bench{command} --help`"


def _keep_traceback(words: Sequence[str]) -> Path:
    """Writes the current traceback into the runs folder, or a temporary one, and returns the file."""
    given = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "--runs"]
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path(given[-1]) if given else RUNS, Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"bench {' '.join(words)}\n\n{traceback.format_exc()}", encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return Path(os.devnull)
