"""medssl-bench: which way of pretraining without labels helps my medical task, and is the difference real?"""

from __future__ import annotations

__version__ = "0.2.0"
