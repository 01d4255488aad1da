"""Transports and clients of httpx2 that send their requests to an enclave.

Decides what a client of httpx2 does differently when it talks to an enclave. May call: _channel,
_exchange, _files, _http1, _identity, _io, _pool, _trust.
"""
