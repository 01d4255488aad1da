"""The life of one request, from its place in the queue to the last byte of its answer.

Decides what is sent when, and what is sent again. May call: _channel, _http1, _identity, _io,
_pool, _trust.
"""
