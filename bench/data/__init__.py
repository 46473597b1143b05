"""What the carriers of data add to a call, a statement, a command, with real servers on loopback.

Each module is one figure, with `VARIANTS` and `measure` as all figures have. The servers are those
of the tests (`tests.peers`), started for the run and ended with it.
"""
