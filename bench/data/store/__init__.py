"""Where work and results lie: records, claims, events, checkpoints. Every file is whole or absent.

`results/records/KEY.json` holds one record per transfer cell, `runs/pretrain|transfer/NAME/` the work of a cell. Files
are written beside their place, flushed and renamed; what turns out damaged is set aside, named in a warning, and made
again.
"""

from bench.data.store.cells import CellState, Store, settled
from bench.data.store.claims import Claim, claim, live_owner, sweep
from bench.data.store.events import (
    add_event,
    ask_to_stop,
    asked_to_stop,
    forget_stop,
    read_events,
    read_progress,
    write_progress,
)
from bench.data.store.files import LOG, collected_warnings, read_json, set_aside, utc_now, write_bytes, write_json
from bench.data.store.tensors import Damaged, load_checkpoint, load_tensors, previous_of, save_tensors

__all__ = [
    "LOG",
    "CellState",
    "Claim",
    "Damaged",
    "Store",
    "add_event",
    "ask_to_stop",
    "asked_to_stop",
    "claim",
    "collected_warnings",
    "forget_stop",
    "live_owner",
    "load_checkpoint",
    "load_tensors",
    "previous_of",
    "read_events",
    "read_json",
    "read_progress",
    "save_tensors",
    "set_aside",
    "settled",
    "sweep",
    "utc_now",
    "write_bytes",
    "write_json",
    "write_progress",
]
