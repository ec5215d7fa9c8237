"""Disturbs tiny runs for a while, and prints how they ended:

python -m tests.faults --seconds 600
python -m tests.faults --seconds 60 --seed 3 --only kill full_disk

Ends with exit code 1 if a promise of docs/reports/reliability.md was broken.
"""

import argparse
import collections
import itertools
import pathlib
import random
import sys
import tempfile
import time

from tests.faults.faults import FAULTS, Untried
from tests.faults.place import BrokenPromise, Place, tidy


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  names = [fault.__name__ for fault in FAULTS]
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seconds", type=float, default=600, help="when no further try is begun")
  parser.add_argument("--seed", type=int, default=0, help="of chance")
  parser.add_argument("--only", nargs="+", choices=names, default=names, help="which faults")
  parser.add_argument("--data_dir", default="", help="as tests/conftest.py prepares it")
  parser.add_argument("--undisturbed", default="", help="folder of a finished run of tiny_run.py")
  args = parser.parse_args(argv)
  end = time.monotonic() + args.seconds
  found: dict[str, collections.Counter] = {}
  broken = 0
  with tempfile.TemporaryDirectory(prefix="mail_jax_faults_") as folder:
    place = Place(pathlib.Path(folder), args.data_dir, args.undisturbed)
    chosen = [fault for fault in FAULTS if fault.__name__ in args.only]
    for number, fault in enumerate(itertools.cycle(chosen)):
      if number and time.monotonic() > end:  # At least one try, even on a slow machine.
        break
      started = time.monotonic()
      with tidy(place):
        try:
          outcome = fault(place, random.Random(f"{args.seed} {number}"))
        except Untried as why:
          outcome = f"not tried: {why}"
        except BrokenPromise as promise:
          outcome, broken = "BROKEN", broken + 1
          print(f"{fault.__name__}, try {number}: {promise}", file=sys.stderr, flush=True)
      found.setdefault(fault.__name__, collections.Counter())[outcome] += 1
      print(
        f"{time.monotonic() - started:6.1f} s  {fault.__name__}: {outcome}",
        file=sys.stderr,
        flush=True,
      )
  print(table(found))
  return 1 if broken else 0


def table(found: dict[str, collections.Counter]) -> str:
  """Returns faults, tries and outcomes as a Markdown table."""
  about = {fault.__name__: " ".join((fault.__doc__ or "").split()) for fault in FAULTS}
  rows = ["| fault | tries | outcome |", "| --- | --- | --- |"]
  for name, outcomes in found.items():
    named = "; ".join(
      outcome if len(outcomes) == 1 else f"{count} times: {outcome}"
      for outcome, count in outcomes.items()
    )
    rows.append(f"| {about[name]} | {outcomes.total()} | {named} |")
  return "\n".join(rows)


if __name__ == "__main__":
  sys.exit(main())
