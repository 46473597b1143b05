"""Floor 2: the only floor that reads a clock, spawns tasks and waits on its own account.

What belongs here: asyncio scopes, timers, cancel delivery, task groups, the live tree.
What does not: decisions (they are in `domain`) and foreign libraries (they are in `adapters`).
"""
