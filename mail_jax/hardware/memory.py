"""How much memory there is where JAX computes: a device's own, or the host's."""

import pathlib
import resource

import jax


def available() -> int | None:
  """Returns the bytes that this process may still take on its first device; None if unknown.

  A GPU or TPU knows. For the CPU it is the least of what the machine, the limits of this process
  (`ulimit -v`) and its control group leave.
  """
  device = jax.local_devices()[0]
  if device.platform != "cpu":
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
  return min(filter(None, (_of_machine(), _of_limit(), _of_group())), default=None)


def _of_machine() -> int | None:
  return _kilobytes("/proc/meminfo", "MemAvailable:")


def _of_limit() -> int | None:
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  used = _kilobytes("/proc/self/status", "VmSize:")
  return None if limit == resource.RLIM_INFINITY or used is None else max(1, limit - used)


def _of_group() -> int | None:
  limit, used = (_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
  return None if limit is None or used is None else max(1, limit - used)


def _kilobytes(path: str, key: str) -> int | None:
  """Returns the bytes of a line such as `VmSize: 12 kB`."""
  try:
    lines = pathlib.Path(path).read_text().splitlines()
  except OSError:
    return None
  return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), None)


def _number(path: str) -> int | None:
  try:
    return int(pathlib.Path(path).read_text())
  except (OSError, ValueError):  # no such group, or "max"
    return None
