"""Enclaves on this machine, for tests."""
