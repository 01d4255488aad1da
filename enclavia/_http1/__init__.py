"""HTTP/1.1 as a client speaks it, without I/O: requests to bytes, bytes to events."""
