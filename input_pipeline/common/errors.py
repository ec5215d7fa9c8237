"""Invalid user input: one clear line, exit code 2. Likewise what this machine lacks."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator

# Of JAX, TensorFlow and ONNX Runtime, which this file does not import. JAX raises subclasses too.
_LIBRARIES = ("JaxRuntimeError", "XlaRuntimeError", "ResourceExhaustedError", "RuntimeException")
_NO_MEMORY = re.compile(
  r"RESOURCE_EXHAUSTED|(ran )?out of memory|OOM when|bad.alloc", re.IGNORECASE
)
_AMOUNTS = (
  # Of XLA for TPUs, of XLA elsewhere and TensorFlow, of NumPy.
  (re.compile(r"Used (\S+) of (\S+) hbm"), "{0} of {1} of the device's memory are needed"),
  (re.compile(r"alloc\w+ (\d+) bytes"), "{gb:.2g} GB more could not be had"),
  (re.compile(r"allocate (\d+(?:\.\d+)?)\.?( ?[KMGTPE]i?B)"), "{0}{1} more could not be had"),
)
# Where nothing better is known.
_WAYS_OUT = ("end other programs", "use a machine with more memory")


class InputError(ValueError):
  """Input that cannot be used; the message names the file, the field and the way out."""

  def __str__(self) -> str:
    """Returns the message on one line: names in it come from files, and may hold anything."""
    return "".join(c if c.isprintable() else " " for c in super().__str__())


def describe_shortage(error: BaseException) -> str | None:
  """Returns what an error says of memory that ran out; None for any other error.

  Covers Python, NumPy, TensorFlow, ONNX Runtime and XLA on the CPU, GPUs and TPUs.
  """
  text = str(error)
  names = {kind.__name__ for kind in type(error).__mro__}
  if not isinstance(error, MemoryError) and not (
    names.intersection(_LIBRARIES) and _NO_MEMORY.search(text)
  ):
    return None
  for pattern, sentence in _AMOUNTS:
    if match := pattern.search(text):
      gigabytes = int(match[1]) / 1e9 if match[1].isdigit() else 0.0
      return f"out of memory: {sentence.format(*match.groups(), gb=gigabytes)}"
  return "out of memory"


@contextlib.contextmanager
def memory_errors(ways_out: Callable[[], list[str]]) -> Iterator[None]:
  """Raises an `InputError` in place of an error about memory.

  Args:
    ways_out: returns what helps, best first, each a command's option or an action.
  """
  try:
    yield
  except Exception as error:
    shortage = describe_shortage(error)
    if shortage is None:
      raise
    raise InputError(f"{shortage}; try, in this order: {'; '.join(ways_out())}") from error


def run_command(main: Callable[[], None], interrupted: str = "") -> None:
  """Runs a command; an `InputError` becomes one line on stderr and exit code 2.

  So does an error about memory that ran out, or about devices that `JAX_PLATFORMS` asks for and
  that are not there.

  Args:
    main: the command; any other exception is a bug and keeps its traceback.
    interrupted: printed after Ctrl-C, with exit code 130; without it, Ctrl-C keeps its traceback.
  """
  try:
    with memory_errors(lambda: list(_WAYS_OUT)), _platform_errors():
      main()
  except InputError as error:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    if not interrupted:
      raise
    print(interrupted, file=sys.stderr)
    sys.exit(130)


@contextlib.contextmanager
def _platform_errors() -> Iterator[None]:
  try:
    yield
  except (RuntimeError, AssertionError) as error:
    wanted, reason = os.environ.get("JAX_PLATFORMS"), _why_no_devices()
    if not wanted or reason is None:
      raise
    raise InputError(
      f"JAX_PLATFORMS={wanted}: JAX has no such device here{reason and f' ({reason:.200})'}; unset "
      "it, or set it to cpu"
    ) from error


def _why_no_devices() -> str | None:
  """Returns JAX's reason why it has no devices, if it is in use and has none; it may be empty."""
  jax = sys.modules.get("jax")
  if jax is None:
    return None
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    return str(error).partition(" (set JAX_PLATFORMS")[0]
  return None
