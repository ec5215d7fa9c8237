"""Runs `python -m mail_jax`: the program `mail-jax`, where it is not installed."""

from mail_jax.cli import main

if __name__ == "__main__":
  main()
