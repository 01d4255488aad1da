"""The life of one request, from its place in the queue to the last byte of its answer."""
