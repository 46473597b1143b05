"""`python -m holdfast.apps.cli`: the same as the command `holdfast`."""

import sys

from holdfast.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
