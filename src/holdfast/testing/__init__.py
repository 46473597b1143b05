"""The test kit, for users of Holdfast and for Holdfast itself.

What belongs here: virtual time, a pytest plugin that looks for what a test left behind, the laws
that every carrier has to pass, fakes of the ports.
What does not: anything that production code needs.

    from holdfast.testing import run_virtual

    run_virtual(main())        # an hour of sleeping takes no time

In pytest, `pytest_plugins = ["holdfast.testing.plugin"]` runs every `async def test_...` like that.
"""

from __future__ import annotations

from holdfast.testing.leaks import Leak, leaks_of, run_checked
from holdfast.testing.virtual import Stuck, VirtualLoop, run_virtual

__all__ = ["Leak", "Stuck", "VirtualLoop", "leaks_of", "run_checked", "run_virtual"]
