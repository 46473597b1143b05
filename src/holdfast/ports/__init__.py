"""Floor 1: narrow Protocols, each owned by the one who calls it, at most four methods.

What belongs here: the shapes through which a floor above is reached from a floor below.
What does not: implementations, and shapes that nobody calls yet.
"""
