"""How pipelines of tf.data run ahead and end."""

import atexit
import collections
import traceback
import weakref
from collections.abc import Generator, Iterator
from concurrent import futures
from typing import Any, TypeVar

import tensorflow as tf

T = TypeVar("T")


def options(threads: int) -> tf.data.Options:
  """Returns options for a deterministic pipeline with its own thread pool and without autotuning.

  Every pipeline needs them: ending one that tunes itself can block for up to a minute.
  """
  result = tf.data.Options()
  result.deterministic = True
  result.autotune.enabled = False
  result.threading.private_threadpool_size = threads
  result.threading.max_intra_op_parallelism = 1
  return result


_running: weakref.WeakSet[Generator] = weakref.WeakSet()


def iterate(dataset: tf.data.Dataset) -> Generator[dict[str, Any], None, None]:
  """Yields the elements of a pipeline, and ensures that the pipeline ends before Python does.

  Threads that call Python during its shutdown never return, and TensorFlow waits for them forever.
  """
  elements = _iterate(dataset)
  _running.add(elements)
  return elements


def _iterate(dataset: tf.data.Dataset) -> Generator[dict[str, Any], None, None]:
  iterator = dataset.as_numpy_iterator()
  try:
    yield from iterator
  except BaseException as error:
    # An error that ends the program keeps its frames alive, and they the pipeline.
    traceback.clear_frames(error.__traceback__)
    raise
  finally:
    del iterator


@atexit.register
def _end_pipelines() -> None:
  for elements in list(_running):
    elements.close()


def prefetch(items: Iterator[T], count: int = 2) -> Iterator[T]:
  """Yields the items in order while a thread prepares the next ones.

  Nothing is read before the first item is requested. The exception of an item is raised in its
  place. Closing waits for the item in preparation.

  Args:
    items: read by a single thread, not by the caller's.
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
