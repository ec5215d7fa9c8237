"""Progress of a long command."""

import sys

from tqdm import tqdm

# Seconds between lines where stderr is not a terminal.
_LINE_INTERVAL = 30


def progress_bar(label: str, total: int, unit: str, done: int = 0) -> tqdm:
  """Returns a bar with the time left; where stderr is not a terminal, a line now and then.

  Args:
    label: what is being done, in a word.
    total: number of items.
    unit: of the items, in the plural.
    done: items that were done before.
  """
  if sys.stderr.isatty():
    return tqdm(desc=label, total=total, unit=f" {unit}", initial=done)
  return tqdm(
    desc=label,
    total=total,
    initial=done,
    bar_format=f"{{desc}}: {{n_fmt}} of {{total_fmt}} {unit}, {{rate_fmt}}, {{remaining}} left\n",
    mininterval=_LINE_INTERVAL,
    delay=_LINE_INTERVAL,
  )
