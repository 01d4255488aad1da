"""One verified connection to one enclave: its address, its configuration, its
public classes."""
