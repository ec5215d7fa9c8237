"""A process that joins others, one of which may fail.

`python tests/support/ending_together.py FATE NUMBER DEED`.

The process NUMBER is `killed`, is `asked` to end by SIGTERM, `raises` an error, finds bad `input`,
is `late` with its end, or ends `well`. The others are `busy` on the host, or `wait` for it in a
collective.
"""

import argparse
import os
import signal
import time

from input_pipeline.common.errors import InputError
from mail_jax.distributed import processes

# Shorter than in commands.
processes.SHUTDOWN = 3


def main() -> None:
  """Joins the others, then does what the arguments say."""
  parser = argparse.ArgumentParser()
  parser.add_argument(
    "fate", choices=("killed", "asked", "raises", "input", "late", "well", "alone")
  )
  parser.add_argument("number", type=int)
  parser.add_argument("deed", choices=("busy", "wait"))
  processes.add_arguments(parser)
  args = parser.parse_args()
  if args.fate == "alone":
    processes.STARTUP = 4
  processes.initialize(args, saves_on_sigterm=False)

  import jax

  me = jax.process_index()
  number = processes.broadcast_from_main(70 + me)
  print(f"process {me} of {jax.process_count()} heard {number}, main: {processes.is_main()}")
  if me == args.number:
    meet(args.fate)
  while args.deed == "busy":
    sum(range(10**5))
  processes.broadcast_from_main(0)
  if me == args.number and args.fate == "late":
    time.sleep(2 * processes.SHUTDOWN)
  print(f"process {me} ends")


def meet(fate: str) -> None:
  """Ends this process in the given way."""
  time.sleep(1)  # The others are busy or waiting by now.
  print(f"at {time.time():.2f} I am {fate}")
  if fate == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
  if fate == "asked":
    os.kill(os.getpid(), signal.SIGTERM)
  if fate == "raises":
    raise ArithmeticError("a defect of one process")
  if fate == "input":
    raise InputError("a file that is bad on one host")


if __name__ == "__main__":
  processes.run_command(main)
