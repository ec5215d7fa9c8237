"""Invalid user input: one clear line, exit code 2."""

import sys
from collections.abc import Callable


class InputError(ValueError):
  """Input that cannot be used; the message names the file, the field and the way out."""

  def __str__(self) -> str:
    """Returns the message on one line: names in it come from files, and may hold anything."""
    return "".join(c if c.isprintable() else " " for c in super().__str__())


def run_command(main: Callable[[], None], interrupted: str = "") -> None:
  """Runs a command; an `InputError` becomes one line on stderr and exit code 2.

  Args:
    main: the command; any other exception is a bug and keeps its traceback.
    interrupted: printed after Ctrl-C, with exit code 130; without it, Ctrl-C keeps its traceback.
  """
  try:
    main()
  except InputError as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    if not interrupted:
      raise
    print(interrupted, file=sys.stderr)
    sys.exit(130)
