"""Calls over a network that does not work, and what a working one costs: us and the plain clients.

    python -m bench net                    the whole; --quick for less
    python -m bench net.scenarios          13 ways in which a server can be bad, each client on each
    python -m bench net.healthy            a call that nothing is wrong with, over loopback
    python -m bench net.churn              10,000 connections, cancelled at random points
    python -m bench net.names              looking a name up, cached and not
    python -m bench.net.short FILE ...     what of it goes into the README

    bad         the 13 scenarios
    hostile     the servers, a process of its own
    ground      the network that all of it is on: a namespace of its own with packets dropped and a
                dead name server, or stand-ins for both on loopback
    arena       forks a process for each client and scenario, from one that has all imported
    clients, plain, ours
                the contenders, each set up in the way its documentation says, for one second
    cell        one call in one of those processes: how long, how it ended, what it left behind

**Kept** means that the call was over after its second and 0.1 s at most.
"""
