"""Runs `python -m mail_jax.evaluate`."""

from input_pipeline.common.command_line import COMMANDS
from mail_jax.distributed.processes import run_command
from mail_jax.evaluate.command import main

if __name__ == "__main__":
  run_command(main, COMMANDS["evaluate"].interrupted)
