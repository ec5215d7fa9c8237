"""The processor of this machine."""

import pathlib
import re

# Of x86, and of ARM.
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def multiplies_bfloat16(path: str = "/proc/cpuinfo") -> bool:
  """Returns whether the processor has instructions for products of bfloat16, as far as Linux says.

  Args:
    path: the file with the flags of the processors.
  """
  try:
    text = pathlib.Path(path).read_text()
  except OSError:
    return False
  flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
  return flags is not None and not _BFLOAT16.isdisjoint(flags[1].split())
