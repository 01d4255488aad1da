"""One verified connection to one enclave: its address, its configuration, its
public classes.

Decides what a channel may be made of and how its address is written. May call: _identity, _io,
_trust.
"""
