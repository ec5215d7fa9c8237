"""Metrics of a model: evaluators that yield (name, value), and the command that runs them."""
