"""How far a long command is."""

import sys

from tqdm import tqdm

_LINE_EVERY = 30  # seconds, where nobody watches


def progress_bar(what: str, total: int, unit: str, done: int = 0) -> tqdm:
  """A bar with the time left where somebody watches; elsewhere a line now and then.

  Args:
    what: is being done, in a word.
    total: how many there are.
    unit: what they are, in the plural.
    done: how many were done before.
  """
  if sys.stderr.isatty():
    return tqdm(desc=what, total=total, unit=f" {unit}", initial=done)
  return tqdm(
    desc=what,
    total=total,
    initial=done,
    bar_format=f"{{desc}}: {{n_fmt}} of {{total_fmt}} {unit}, {{rate_fmt}}, {{remaining}} left\n",
    mininterval=_LINE_EVERY,
    delay=_LINE_EVERY,
  )
