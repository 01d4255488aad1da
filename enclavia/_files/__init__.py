"""Files through a client: downloads that go on where they were cut, uploads that can be sent again,
and files that are read by ranges. Written once for threads and event loops, over
:class:`enclavia._files.face.Face`; the clients and the command line use the same code.

Decides which bytes are one file. May call: _io.
"""
