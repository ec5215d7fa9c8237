"""Mutation testing: changes of the core, one at a time, and the tests that see them."""
