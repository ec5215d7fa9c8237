"""How far a run is, how fast, and when it ends: the words of its lines."""

from collections.abc import Mapping, Sequence
from typing import Any

# What a line says of an evaluation, where it is known.
_SHOWN = ("mIoU", "oIoU", "P@0.5", "selection_accuracy", "gIoU", "cIoU", "N-acc", "T-acc")


def duration(seconds: float) -> str:
  """Seconds as people say them: `42 s`, `3 min`, `2 h 05 min`."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def left(seconds: float | None) -> str:
  """The time that is left, in words; `?` where it is not known."""
  return "? left" if seconds is None else f"{duration(max(0.0, seconds))} left"


def position(step: int, steps: int) -> str:
  """`step 12/400`; of how many only where that is known."""
  return f"step {step}/{steps}" if steps else f"step {step}"


def losses(values: Mapping[str, Any], parts: Sequence[str]) -> str:
  """The loss, and in brackets the parts that it is the weighted sum of.

  Args:
    values: of a row of the log; one whose updates were all skipped has no loss.
    parts: names of the parts.
  """
  if "loss" not in values:
    return "loss none"
  known = [f"{name} {values[name]:.3f}" for name in parts if name in values]
  return f"loss {values['loss']:.4f}" + (f" ({', '.join(known)})" if len(known) > 1 else "")


def speed(values: Mapping[str, Any]) -> str:
  """Samples a second, and the MFU where the device is known."""
  used = f"  MFU {values['mfu']:.1%}" if "mfu" in values else ""
  return f"{values['samples_per_second']:.0f} samples/s{used}"


def data_wait(values: Mapping[str, Any]) -> str:
  """The share of the time that waited for data."""
  return f"data wait {values['data_wait']:.1%}"


def skipped(values: Mapping[str, Any]) -> str:
  """How many updates were not made, if any; with two spaces before it."""
  return f"  {values['skipped_steps']} skipped" if values.get("skipped_steps") else ""


def evaluation(split: str, metrics: Mapping[str, Any]) -> str:
  """The main metrics of an evaluation."""
  shown = "  ".join(f"{name} {metrics[name]:.3f}" for name in _SHOWN if name in metrics)
  return f"{split}: {shown}"


def seconds_left(
  steps_left: int, seconds_per_step: float, overhead: float, steps_done: int
) -> float:
  """When the steps that are left will be done, with as much beside them as there was until now.

  Args:
    steps_left: updates to come.
    seconds_per_step: of late.
    overhead: seconds of this start that evaluations and checkpoints took.
    steps_done: updates of this start.
  """
  return steps_left * (seconds_per_step + overhead / max(1, steps_done))
