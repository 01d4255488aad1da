"""What is pinned, and what an attestation document proved. Decides nothing about connections."""
