"""A listener of this machine that shares verified channels among its processes.

Decides what goes between a connection and its stream. May call: _channel, _client, _exchange,
_identity, _io, _pool, _trust.
"""
