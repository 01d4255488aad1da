"""The command line: ``python -m enclavia`` and ``enclavia-client``. A user of the public package,
and of _files, by which clients download too; nothing of the package imports it. docs/cli.md is its
manual.

Decides nothing: it is a folder. Calls: nothing of the package. Locks: none.
"""
