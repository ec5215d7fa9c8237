"""What is wrong with a user's input: one clear line, exit code 2."""

import sys
from collections.abc import Callable


class InputError(ValueError):
  """Input that cannot be used; the message names the file, the field and the way out."""


def run_command(main: Callable[[], None]) -> None:
  """Runs a command and turns an `InputError` into one line on stderr and exit code 2.

  Args:
    main: the command; anything but an `InputError` that it raises is a defect and keeps its traceback.
  """
  try:
    main()
  except InputError as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
