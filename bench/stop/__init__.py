"""What a stop loses, what it costs, and how long it takes, for us and for the peers side by side.

    make bench ARGS="--only stop"            all parts, 20 stops in each cell: more than an hour
    make bench ARGS="--only stop --quick"    2 stops in each cell
    make bench ARGS="--only stop.cells --server holdfast --server uvicorn"
    make bench ARGS="--only stop.cells --server holdfast --set lame_duck=1 --json FILE"
    python -m bench.stop.short FILE          what of it goes into the README

    load, tally   the clients (a process of their own), and what they saw, counted
    servers       the contenders and how each is started; peers/ has the service for them
    process       child processes that are never left behind

    cells         SIGTERM under load: lost requests in five situations
    roll          one port, the new process up before the old one is told to stop; HUP to a master
    edges         half a header, half a body, a silent connection, ... at SIGTERM
    sockets       open WebSockets, and requests that never end
    http2         streams under way and streams opened after the signal
    quiet         what the quiet window costs and what it saves
    rate          throughput of a short answer

**Lost** is a request that was sent on a connection that was up, and that got no complete
answer. A refused connect is not lost, for a client may safely try again.
"""
