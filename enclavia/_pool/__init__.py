"""Which request gets which connection, and who waits. Performs no I/O and reads no clock.

Decides, and leaves it to others to carry out. May call: no other package.
"""
