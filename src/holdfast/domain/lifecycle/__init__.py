"""The life of a process: when it serves, how it is told to stop, and in which order it does.

    phase        Initializing, Running, Terminating, Draining, Stopped, and what leads onwards
    meaning      what each signal means, and which of several comes first
    negotiation  who is asked to stop, who has answered, who is forced
    order        what starts before what
    drain        the order in which a server lets go of its connections
    stopbudget   the time that a stop has, and how it is shared out
    history      how the last stops went, and what the next one learns from it
    settings     the tables `[stop]` and `[health]` of a policy file
    quota        the processors that a container may use
    fleet        which workers a supervisor starts, keeps and retires
    timeline     the records of a stop as a picture

What belongs here: decisions, as pure machines and functions; `now` is an argument. What does not:
signals, sockets and files, which `runtime` and the adapters see to. The files are strangers to one
another; what they share is in `domain.record` and below.
"""
