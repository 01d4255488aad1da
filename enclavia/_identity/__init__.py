"""What is pinned, and what an attestation document proved. Decides nothing about connections.

May call: no other package.
"""
