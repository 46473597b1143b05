"""Benchmarks: what Holdfast costs beside its peers, measured in one run.

    python -m bench [NAME ...] [--quick] [--json FILE] [--save]

One module per figure. A figure names its variants; each variant is measured in a process of its
own, so that nothing a peer loads changes the cost of another. Within a variant the contestants take
turns in shuffled rounds, and both the minima and the medians are compared.

What belongs here: the workloads, the peers, and the goals they are held to. What does not: anything
that Holdfast itself needs.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The sources beside this folder are what is measured, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
