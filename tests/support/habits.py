"""Finds phrases that this project's texts fall into, and that no native engineer would write.

  python tests/support/habits.py

Reads every `.py` and `.md` file of the repository but the reports, prints each phrase with what to
write instead, and ends with 1 where there is one.
"""

import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
# Dated, or kept as they were.
LEFT_OUT = (
  "docs/reports/",
  "tests/data/",
  "tests/support/habits.py",
  "tests/project/test_habits.py",
)

_UNITS = (
  "bytes|devices|examples|FLOPs?|GB|GiB|images|KB|MB|MiB|ms|MWh|operations|photos|processes|"
  "records|requests|rows|samples|seconds|sentences|steps|threads|tokens"
)
_PER = "batch|chip|core|day|device|epoch|GPU|host|hour|image|minute|process|second|step|TPU"
# A pattern, and what to write instead.
HABITS = {
  r"go(?:es|ing)? on with": "resume, continue",
  # "there is no", "is no longer", "is no more than" and "is no reason to" are English.
  r"(?<!there\s)(?<!here\s)(?:is|are|was|were) no (?!\w+(?:er|re|ss)\b)"
  r"(?!(?:bound|change|doubt|limit|need|point|reason|such|use|way)\b)[a-z]+": "is not a",
  r"of (?:before|then)": "earlier, previous",
  r"who(?:m|so)?ever": "anyone who, users who",
  r"whatever": "any, regardless of",
  r"meanwhile": "while that runs",
  r"(?:be|been|is|are|was|were) told(?! apart)": "is given, is set, is logged",
  r"anew": "again",
  r"mend(?:s|ed|ing)?": "fix",
  rf"(?:{_UNITS}) an? (?:{_PER})": "per",
  r"strangers?": "untrusted, someone else's",
  r"(?:is|are) there (?:once|twice)": "duplicate",
}
_COMPILED = {
  # A phrase may run over the end of a line.
  re.compile(r"\b(?:" + pattern.replace(" ", r"\s+") + r")(?!\w)", re.IGNORECASE): instead
  for pattern, instead in HABITS.items()
}


def find(text: str) -> Iterator[tuple[int, str, str]]:
  """Yields the line, the phrase and what to write instead, for each habit in a text."""
  for pattern, instead in _COMPILED.items():
    for match in pattern.finditer(text):
      yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead


def _files() -> Iterator[pathlib.Path]:
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  for name in sorted(set(listed.stdout.split("\0")) - {""}):
    if not name.startswith(LEFT_OUT) and (ROOT / name).is_file():
      yield ROOT / name


def main() -> int:
  """Prints the habits in all files and returns the exit code."""
  number = 0
  for file in _files():
    for line, phrase, instead in sorted(find(file.read_text(encoding="utf-8"))):
      print(f"{file.relative_to(ROOT)}:{line}: {phrase!r}: {instead}")
      number += 1
  print(f"{number} phrases to rewrite" if number else "No phrases to rewrite")
  return int(number > 0)


if __name__ == "__main__":
  sys.exit(main())
