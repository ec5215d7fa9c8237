"""Ordered work on several processes: results arrive in the order of the inputs, a few in flight."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


def available_cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def start_workers(count: int) -> concurrent.futures.Executor:
  """Returns a pool of processes, which ends when nothing refers to it any more.

  They are spawned, not forked, because the caller runs TensorFlow's threads. They import the
  caller's main module, which should therefore import little at its top.
  """
  return concurrent.futures.ProcessPoolExecutor(
    count, multiprocessing.get_context("spawn"), initializer=_follow_parent
  )


def ordered_map(
  pool: concurrent.futures.Executor,
  function: Callable[[Input], Output],
  inputs: Iterable[Input],
  in_flight: int,
) -> Iterator[Output]:
  """Yields `function(x)` for every input, in order, for any number of workers.

  Args:
    pool: the workers.
    function: importable by name; its exceptions are raised here.
    inputs: picklable.
    in_flight: how many inputs are processed or wait to be taken at once, which bounds the memory.
  """
  waiting: collections.deque[concurrent.futures.Future[Output]] = collections.deque()
  try:
    for value in inputs:
      waiting.append(pool.submit(function, value))
      if len(waiting) == in_flight:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    for future in waiting:
      future.cancel()


def _follow_parent() -> None:
  """Leaves interrupts to the parent process, and ends when it is killed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  if parent is not None:
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
