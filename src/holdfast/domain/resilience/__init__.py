"""Who waits, who is let in, and who is turned away, where there is more work than room.

Here belong pure machines and queues that decide; what performs is in `runtime`. The files are
strangers to one another.
"""
