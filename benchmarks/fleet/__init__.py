"""A job of a thousand ranks, computed: ``python -m benchmarks.fleet``.

Nothing here opens a socket. What can be measured on one machine is measured (order, state, table). The rest is
simulated in virtual time, with the parts of the library that decide: the order, the shares of ranks, the retry policy,
and the window of requests in flight. A chance is always seeded, so each run tells the same.
"""
