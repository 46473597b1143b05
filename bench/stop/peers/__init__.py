"""The same small service for every contender: ASGI, aiohttp.web, Go.

    /hello        a short answer at once
    /pid          which process answers
    /wait/MS      a short answer after MS milliseconds
    /head/MS      head and first byte at once, the rest after MS milliseconds
    /hang         head and first byte, and then nothing for ever
    /never        nothing for ever
    POST /body    how many bytes came, as soon as all have come
    /ws           a WebSocket that echoes (not in Go, whose standard library has none)

What the service itself saw of the stop (its shutdown hook, a cancelled handler, a closed WebSocket)
it appends as lines to the file that `BENCH_STOP_NOTES` names.
"""
