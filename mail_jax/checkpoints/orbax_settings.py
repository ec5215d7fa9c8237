"""How `checkpoint.py` has Orbax work: what it keeps, how it writes arrays, and what it says when it fails."""

import logging
import math
import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from input_pipeline.common import atomic_files

_SHARED_BYTES = 2**20  # of an array, for each machine that writes it


class LastTwoAndBest(policies.PreservationPolicy):
  """Which checkpoints are kept. The scores are ours: metrics may come later than their checkpoint."""

  def __init__(self, score: Callable[[int], float]):
    self._score = score

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    """Says of each checkpoint whether it stays."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    score, best = max((self._score(step), step) for step in steps)
    keep = {*sorted(steps)[-2:], *([best] if score > -math.inf else [])}
    return [step in keep for step in steps]


def array_handler() -> ocp.PyTreeCheckpointHandler:
  """Writes and reads the state.

  What is on all devices is by default cut into as many pieces, and every cut is compiled: half a minute at the first
  save. That pays only for large arrays that several machines write together.
  """
  arrays = ocp.type_handlers.ArrayHandler(
    use_replica_parallel=jax.process_count() > 1,
    min_slice_bytes_for_replica_parallel=_SHARED_BYTES,
  )
  registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
  return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def storage_error(error: Exception) -> str | None:
  """What the storage says against it; None where it is not the storage that complains."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # TensorStore raises a ValueError for whatever happens to it: `... : what [os_error_code='28']`.
  text, *details = re.split(r" \[(?=\w+=')", str(error))
  if any(detail.startswith(("os_error_code=", "http_response_code=")) for detail in details):
    return text.rpartition(": ")[2]
  return None


def is_full(error: Exception) -> bool:
  """Whether the storage has no room left."""
  if isinstance(error, OSError):
    return error.errno in atomic_files.FULL
  return any(f"os_error_code='{code}'" in str(error) for code in atomic_files.FULL)


def leave_errors_to_us() -> None:
  """Orbax prints an exception several times over, with its traceback, before it raises it.

  Where several writes fail at once it raises the first, and asyncio prints the others when they are forgotten.
  """
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(_is_no_traceback_of_orbax)


def _is_no_traceback_of_orbax(record: logging.LogRecord) -> bool:
  if not record.exc_info:
    return True
  frames = traceback.extract_tb(record.exc_info[2])
  return not any("orbax" in path for path in (record.pathname, *(f.filename for f in frames)))
