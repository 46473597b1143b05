"""`holdfast prestop`: tell a service that it will be stopped, before the signal comes.

    ask    find the service, tell it, and wait until its lame duck is over

Kubernetes takes a pod out of its services and runs the preStop hook at the same time, and sends
SIGTERM when the hook is done. A hook that sleeps does so blindly; this one has the service become
unready and serve on, and ends as soon as no new connections come.

What belongs here: asking from outside. What does not: the lame duck itself, which is the service's.
"""
