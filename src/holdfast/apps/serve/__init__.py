"""`holdfast serve`: an ASGI application under a policy, from its start to its stop.

    problem     what can go wrong at the start, as sentences for whoever typed the command
    plan        the settings of one run, plain values that a worker process can be given
    target      from `MODULE:ATTR` to the application
    listen      the listening socket, bound before anything else
    hosted      the application with its policy, which can be changed while it runs
    stopplan    the times of the stop, from the settings, the policy and the last stops
    service     all of that in one process, with the host that starts and stops it
    prestop     the lame duck before the stop
    operator    the Unix socket on which a running process answers its operator
    process     a service that has its process to itself: signals, memory, last moment
    supervisor  several processes: decides by `domain.lifecycle.fleet`
    worker      one of them; workerlink, handover: what it is told and tells; offspring: its start
    chronicle   one journal for all of them
    run         which of these it is to be

What belongs here: putting the parts together. What does not: the limits (`domain.policy`), their
enforcement (`adapters.asgi`), the server (`adapters.uvicorn`) and the stop (`runtime.lifecycle`).
"""
