"""`python -m holdfast.apps.demo`: the demo, with the option that makes a picture of its report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from holdfast.apps.demo import run


def main() -> int:
    """Run the demo as the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.apps.demo", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--seconds", type=float, default=12.0, help="of load in each run")
    parser.add_argument("--export", type=Path, metavar="FILE.svg", help="a picture of the report")
    options = parser.parse_args()
    return run(options.json, options.seconds, options.export)


if __name__ == "__main__":
    sys.exit(main())
