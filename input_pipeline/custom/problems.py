"""What is wrong with a file of lines, and how it is told: every problem has its line, alike ones stand together."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

SHOWN = 5
"""Problems of a kind that are written out, unless all are asked for."""
_LINES_NAMED = 20


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
  """One thing that is wrong, or looks it."""

  line: int
  """Its number in the file, from 1; 0 is the file itself."""
  kind: str
  """What it has in common with others: `image is missing`."""
  text: str
  warning: bool = False
  """Whether the data can be used all the same."""

  def __str__(self) -> str:
    """As it is told of alone."""
    return f"line {self.line}: {self.text}" if self.line else self.text


class Wrong(ValueError):
  """What is wrong with a part of a line: the kind and the sentence of a `Problem`."""

  def __init__(self, kind: str, text: str):
    """Args: see `Problem`."""
    super().__init__(text)
    self.kind = kind

  def at(self, line: int, where: str = "") -> Problem:
    """Returns it as a problem of a line, and of a field of it."""
    return Problem(line, self.kind, f"{where}: {self}" if where else str(self))


def errors(problems: Iterable[Problem]) -> list[Problem]:
  """Returns those that are no warnings."""
  return [problem for problem in problems if not problem.warning]


def describe(problems: Iterable[Problem], everything: bool = False) -> Iterator[str]:
  """Yields lines of text: the kinds, what is an error first and the most frequent first, with their problems.

  Args:
    problems: in any order.
    everything: writes out every problem; without, a kind of many has its first SHOWN, and numbers of lines.
  """
  kinds: dict[tuple[bool, str], list[Problem]] = collections.defaultdict(list)
  for problem in problems:
    kinds[problem.warning, problem.kind].append(problem)
  for (warning, kind), found in sorted(kinds.items(), key=lambda row: (row[0][0], -len(row[1]))):
    found.sort()
    word = "warning: " if warning else ""
    yield f"{word}{kind} ({len(found):,})"
    shown = found if everything or len(found) <= SHOWN + 1 else found[:SHOWN]
    for problem in shown:
      yield f"  {problem}"
    if rest := found[len(shown) :]:
      numbers = list(dict.fromkeys(problem.line for problem in rest))
      few = ", ".join(map(str, numbers[:_LINES_NAMED]))
      yield f"  and {len(rest):,} more, lines {few}{', ...' * (len(numbers) > _LINES_NAMED)}"
