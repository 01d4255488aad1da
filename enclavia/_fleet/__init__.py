"""One client for each worker, or each machine, of a cluster, and the check that all saw the same.

Decides who starts a machine's forwarder, and when the workers of a job disagree. May call:
_channel, _client, _forward, _identity, _io.
"""
