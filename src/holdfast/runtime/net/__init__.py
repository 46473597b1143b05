"""The network, obeying: sockets that are dialled, read and closed by their deadlines.

    dial, race, proxying   from a name to a stream: look-up, connections, proxy, TLS
    stream, readers        reading and writing by absolute deadlines; readers to build with
    streams                the same in the form of asyncio's streams
    resolver, lookups      names, cached by the time that each record allows
    blocking, blockdial    the same for threads: nothing is cancelled there, only bounded
    kernel                 time-outs that the kernel keeps

What belongs here: sockets and names, on the standard library alone. What does not: HTTP, and what
a library of somebody else does with a socket.
"""
