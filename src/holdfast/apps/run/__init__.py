"""`holdfast run`: a program that is not an HTTP server, with the start and the stop of one.

    problem   what can go wrong at the start, as sentences for whoever typed the command
    settings  the table `[stop]` of `holdfast.toml`
    target    from `MODULE:ATTR` to a host
    run       all of it together

What belongs here: putting a host, the signals and the settings together. What does not: the stop
itself, which is the host's (`runtime.lifecycle`).
"""
