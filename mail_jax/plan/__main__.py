"""Runs `python -m mail_jax.plan`."""

import signal

from input_pipeline.common.errors import run_command
from mail_jax.plan.command import main

if __name__ == "__main__":
  # The compiler ignores signals for minutes; nothing is lost if Ctrl-C just ends the process.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  run_command(main)
