"""Who waits, and how: a thread blocks, a task suspends. Code above this package that may wait is
written once, as coroutines over :class:`enclavia._io.face.Io`.

Decides nothing else. May call: no other package.
"""
