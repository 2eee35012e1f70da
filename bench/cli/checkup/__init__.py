"""What lies under a data root, and whether it is what it should be.

`look` judges by names and file sizes alone; `verify` opens every image and mask, compares what belongs together and
what must be apart, and says each thing it finds in one sentence. `checksums` tells whether two copies are the same.
"""

from __future__ import annotations

from bench.cli.checkup.checksums import as_list, compare, folders, read_list, renamed, sums, write_list
from bench.cli.checkup.choose import check_root, targets
from bench.cli.checkup.kinds import (
    DAMAGED,
    FOUND,
    MISSING,
    NOTE,
    PARTIAL,
    PROBLEM,
    Checked,
    Finding,
    Status,
    Target,
    Tick,
)
from bench.cli.checkup.look import look, strangers
from bench.cli.checkup.prepare import prepare
from bench.cli.checkup.verify import Report, verify

__all__ = [
    "DAMAGED",
    "FOUND",
    "MISSING",
    "NOTE",
    "PARTIAL",
    "PROBLEM",
    "Checked",
    "Finding",
    "Report",
    "Status",
    "Target",
    "Tick",
    "as_list",
    "check_root",
    "compare",
    "folders",
    "look",
    "prepare",
    "read_list",
    "renamed",
    "strangers",
    "sums",
    "targets",
    "verify",
    "write_list",
]
