"""Runs `python -m mail_jax.serve`."""

from input_pipeline.common.command_line import COMMANDS
from input_pipeline.common.errors import run_command
from mail_jax.serve.command import main

if __name__ == "__main__":
  run_command(main, COMMANDS["serve"].interrupted)
