"""Which request gets which connection, and who waits. Performs no I/O and reads no clock.

Decides this; callers connect, wait and close as it says. May call: no other package.
"""
