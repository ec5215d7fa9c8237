"""Runs `python -m mail_jax.sweep`."""

from input_pipeline.common.command_line import COMMANDS
from input_pipeline.common.errors import run_command
from mail_jax.sweep.command import main

if __name__ == "__main__":
  run_command(main, COMMANDS["sweep"].interrupted)
