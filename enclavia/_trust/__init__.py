"""What is trusted at a moment: pins that change, upgrades that are followed, receipts.

Decides nothing about connections: whoever connects asks before, after a mismatch, and once a
document was verified. May call: _identity, _io.
"""
