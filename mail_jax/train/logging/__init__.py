"""The log of a run: the terminal, `metrics.jsonl`, TensorBoard and Weights & Biases."""
