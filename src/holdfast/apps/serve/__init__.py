"""`holdfast serve`: an ASGI application under a time-out policy, hosted by uvicorn.

    problem    what can go wrong at the start, as sentences for whoever typed the command
    plan       the settings of one run, plain values that a worker process can be given
    policyfile the policy in `holdfast.toml`
    target     from `MODULE:ATTR` to the application
    hosted     the application with its policy, which can be changed while it runs
    guard      the limit on the time that a client takes for its headers
    wire_*     the protocols of uvicorn with arrival instants and that guard
    server     uvicorn's configuration, server and supervisor, as far as ours differ
    operator   the Unix socket on which a running process answers its operator
    run        all of it together

What belongs here: whatever touches uvicorn. What does not: the limits themselves (`domain.policy`)
and their enforcement (`adapters.asgi`), which work under any server.
"""
