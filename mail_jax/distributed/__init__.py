"""Processes of a run, the mesh of devices, and the sharding of arrays."""
