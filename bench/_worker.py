"""Measures one variant of one figure: `python -m bench._worker FIGURE VARIANT QUICK`.

Writes one JSON object per line: progress while it runs, the table at the end.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

__all__: list[str] = []


def main(figure: str, variant: str, quick: str) -> None:
    def tell(done: float, what: str) -> None:
        print(json.dumps({"done": done, "what": what}), flush=True)

    module = import_module(f"bench.{figure}")
    table = module.measure(json.loads(variant), quick == "quick", tell)
    print(json.dumps({"table": table.as_dict()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
