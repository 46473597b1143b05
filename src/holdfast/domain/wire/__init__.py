"""What crosses a boundary, as text: budgets, identity, stage, causes, timings.

What belongs here: grammars, both ways, as pure functions; codecs compiled once from settings and
used per request. Decoders never raise on bytes from outside: they cap, they drop, and they name
what they dropped, so that a driver can count it.

What does not: reading a socket, deciding on a policy, knowing a framework's header class.
"""
