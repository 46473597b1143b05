"""Floor 0: pure functions, frozen data, state machines.

What belongs here: arithmetic of budgets, the scope tree, causes and errors, wire grammars,
policies. Every decision is a function of its arguments; `now` is one of them.

What does not: I/O, clocks, randomness, threads, logging, the environment, and anything that is not
in the standard library.
"""
