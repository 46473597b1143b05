"""Run the tests; a few that failed in the crowd get one more run, alone.

    python tools/tests.py [OPTIONS OF PYTEST]

Hundreds of them start real processes, servers and sockets, eight at a time, on whatever machine
there is: one in tens of thousands meets a moment that its author did not think of. A test that
passes alone is named at the end, as something to mend, and does not hold up the rest. More than
three that fail are no accident and are not run again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FAILED: Final = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
MOST: Final = 3
PARALLEL: Final = ("-n", "8", "--dist", "loadfile")
"""Eight, however few cores there are: most of the time a stop is waited for. Examples of one
document share their names, so a file stays with one worker."""


def main() -> int:
    FAILED.unlink(missing_ok=True)
    code, summary = run(*PARALLEL, "-m", "not soak", *sys.argv[1:])
    again = sorted(json.loads(FAILED.read_text())) if code == 1 and FAILED.exists() else []
    if not 0 < len(again) <= MOST:
        return code
    print(f"\n{len(again)} failed among the others; once more, alone:", flush=True)
    code, _ = run("-p", "no:cacheprovider", "-m", "", "--timeout", "600", *again)
    if code == 0:
        print("\nPassed only when run again, and to be mended:")
        print("\n".join(f"  {name}" for name in again))
        print(total(summary, len(again)), flush=True)
    return code


def run(*arguments: str) -> tuple[int, str]:
    """Exit code of pytest, and the last line that it wrote."""
    command = [sys.executable, "-m", "pytest", *arguments]
    last = ""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
        return process.wait(), last


def total(summary: str, again: int) -> str:
    """The summary of the first run, with those that passed in the second."""

    def more(found: re.Match[str]) -> str:
        return f"{int(found[1]) + again} passed"

    without = re.sub(r"\b[0-9]+ failed, ", "", summary)
    return f"{re.sub(r'([0-9]+) passed', more, without)}, {again} of them when run again"


if __name__ == "__main__":
    sys.exit(main())
