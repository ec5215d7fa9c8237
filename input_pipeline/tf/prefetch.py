"""Batches made ready by a thread of their own, while whoever reads them does something else."""

import collections
from collections.abc import Iterator
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], count: int = 2) -> Iterator[T]:
  """Yields the items in their order, and keeps some of the next ones ready.

  Nothing is read before the first is asked for. What goes wrong with an item is raised in its place. Closing waits for
  the item that is being made.

  Args:
    items: read by one thread, which is none of the caller's.
    count: how many are kept ready, at least 1.
  """
  end = object()
  with futures.ThreadPoolExecutor(1, "prefetch") as thread:
    waiting = collections.deque(thread.submit(next, items, end) for _ in range(count))
    try:
      while (item := waiting.popleft().result()) is not end:
        waiting.append(thread.submit(next, items, end))
        yield item  # pyright: ignore[reportReturnType]
    finally:
      for future in waiting:
        future.cancel()
