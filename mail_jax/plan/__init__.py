"""What a compiled program will cost on a device: memory, operations and collectives, read from its text."""
