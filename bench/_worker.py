"""Measures one variant of one figure: `python -m bench._worker FIGURE VARIANT QUICK`.

Writes one JSON object per line: progress while it runs, the table at the end.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

__all__: list[str] = []


def main(figure: str, variant: str, quick: str) -> None:
    def tell(done: float, what: str) -> None:
        print(json.dumps({"done": done, "what": what}), flush=True)

    module = import_module(f"bench.{figure}")
    for table in module.measure(json.loads(variant), quick == "quick", tell):
        print(json.dumps({"table": table.as_dict()}), flush=True)
    os._exit(0)  # a hundred thousand tasks that still wait would be torn down one by one


if __name__ == "__main__":
    main(*sys.argv[1:])
