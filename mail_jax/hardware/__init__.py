"""What chips can do, and what a model asks of them."""
