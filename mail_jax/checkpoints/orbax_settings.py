"""Settings of Orbax: which checkpoints to keep, how arrays are written, how errors are reported."""

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

# Smallest part of an array, in bytes, that one of several machines writes.
_MIN_SLICE_BYTES = 2**20


class LastTwoAndBest(policies.PreservationPolicy):
  """Keeps the last two checkpoints and the best one.

  The scores are ours, not Orbax's: metrics may be added after their checkpoint was saved.
  """

  def __init__(self, score: Callable[[int], float]):
    self._score = score

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    """Returns for each checkpoint whether to keep it."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    score, best = max((self._score(step), step) for step in steps)
    keep = {*sorted(steps)[-2:], *([best] if score > -math.inf else [])}
    return [step in keep for step in steps]


def array_handler() -> ocp.PyTreeCheckpointHandler:
  """Returns the handler that writes and reads the state.

  By default Orbax slices replicated arrays into one piece per device, and compiles every slice:
  half a minute at the first save. This pays only for large arrays that several machines write.
  """
  arrays = ocp.type_handlers.ArrayHandler(
    use_replica_parallel=jax.process_count() > 1,
    min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES,
  )
  registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
  return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def storage_error(error: Exception) -> str | None:
  """Returns the reason for an error of the storage; None for any other error."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # TensorStore raises a ValueError for every error: `...: reason [os_error_code='28']`.
  text, *details = re.split(r" \[(?=\w+=')", str(error))
  if any(detail.startswith(("os_error_code=", "http_response_code=")) for detail in details):
    return text.rpartition(": ")[2]
  return None


def is_full(error: Exception) -> bool:
  """Returns whether the storage is full."""
  if isinstance(error, OSError):
    return error.errno in atomic_files.FULL
  return any(f"os_error_code='{code}'" in str(error) for code in atomic_files.FULL)


def silence_tracebacks() -> None:
  """Stops Orbax from logging the exceptions that it raises anyway.

  It logs each of them several times with a traceback. If several writes fail at once it raises the
  first, and asyncio logs the others when they are garbage-collected.
  """
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(_is_not_orbax_traceback)


def _is_not_orbax_traceback(record: logging.LogRecord) -> bool:
  if not record.exc_info:
    return True
  frames = traceback.extract_tb(record.exc_info[2])
  return not any("orbax" in path for path in (record.pathname, *(f.filename for f in frames)))
