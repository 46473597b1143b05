"""`holdfast tree`: the open scopes of running services, for people and for programs.

    fetch   ask a service on its operator's socket, or at a URL
    show    print what it answered

What belongs here: looking. What does not: the tree itself (`runtime.live`).
"""
