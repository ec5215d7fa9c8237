"""Training: the loop, the step and everything around them."""
