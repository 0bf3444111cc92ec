"""Plain images of any field: 8 or 16 bits, one to many channels."""
