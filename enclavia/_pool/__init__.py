"""Which request gets which connection, and who waits. Performs no I/O and reads no clock."""
