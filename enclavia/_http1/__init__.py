"""HTTP/1.1 as a client speaks it, without I/O: requests to bytes, bytes to events.

Decides what of a peer's HTTP is accepted. May call: no other package.
"""
