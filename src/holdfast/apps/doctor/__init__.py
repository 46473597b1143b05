"""`holdfast doctor net`: what deadlines can be trusted on this host, and what is in their way.

    net        measure and read everything, one step after the other
    lateness   how late timers and selectors wake
    servers    what resolv.conf says, whether the name servers answer, what a look-up takes
    limits     ports, files, and how patient the kernel is
    facts      what was found
    rulings    what that means, and what to do about it
    show       print it

What belongs here: measuring this host as it is. What does not: changing anything.
"""
