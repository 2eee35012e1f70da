"""What the command line prints: plain columns where a program reads, tables that know the width where a person does.

No torch is imported with this (`doctor` and the list of backbones do when called), and rich only for a terminal.
"""

from __future__ import annotations

from bench.cli.show.amounts import bytes_text, counted, number_text, seconds_text, tally
from bench.cli.show.cells import find_cell, only, state_data, states, states_line
from bench.cli.show.datasets import findings, report, report_data, status_data, statuses
from bench.cli.show.follow import follow, redraw
from bench.cli.show.health import Check, doctor
from bench.cli.show.offers import declaration, find_plugins, offered, plugin, rows
from bench.cli.show.runs import cell_name, intention, plan_data, plan_line, plan_table, summary, summary_line
from bench.cli.show.submission import submission_data, submission_lines
from bench.cli.show.terminal import Voice, columns, facts, is_coloured, is_terminal, say, say_json
from bench.cli.show.watch import Bars, Lines, Meter, progress, progress_text

__all__ = [
    "Bars",
    "Check",
    "Lines",
    "Meter",
    "Voice",
    "bytes_text",
    "cell_name",
    "columns",
    "counted",
    "declaration",
    "doctor",
    "facts",
    "find_cell",
    "find_plugins",
    "findings",
    "follow",
    "intention",
    "is_coloured",
    "is_terminal",
    "number_text",
    "offered",
    "only",
    "plan_data",
    "plan_line",
    "plan_table",
    "plugin",
    "progress",
    "progress_text",
    "redraw",
    "report",
    "report_data",
    "rows",
    "say",
    "say_json",
    "seconds_text",
    "state_data",
    "states",
    "states_line",
    "status_data",
    "statuses",
    "submission_data",
    "submission_lines",
    "summary",
    "summary_line",
    "tally",
]
