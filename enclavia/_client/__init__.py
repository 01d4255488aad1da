"""The transports and clients of httpx2 that are made from all of this."""
