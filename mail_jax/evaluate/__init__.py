"""What judges a model: each yields (name, value)."""
