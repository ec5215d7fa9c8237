"""Processes, meshes and the placement of arrays."""
