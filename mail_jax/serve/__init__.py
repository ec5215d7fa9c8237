"""The HTTP interface, `python -m mail_jax.serve`; needs FastAPI."""
