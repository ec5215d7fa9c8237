"""How a pipeline of tf.data runs and ends, whichever records it reads."""

import atexit
import traceback
import weakref
from collections.abc import Generator
from typing import Any

import tensorflow as tf


def options(threads: int) -> tf.data.Options:
  """A deterministic pipeline with a thread pool of its own and nothing that tunes itself.

  Whoever ends one that tunes itself waits for it now and then, for up to a minute: none is read without these.
  """
  result = tf.data.Options()
  result.deterministic = True
  result.autotune.enabled = False
  result.threading.private_threadpool_size = threads
  result.threading.max_intra_op_parallelism = 1
  return result


_running: weakref.WeakSet[Generator] = weakref.WeakSet()


def iterate(dataset: tf.data.Dataset) -> Generator[dict[str, Any], None, None]:
  """Yields what a pipeline gives, and sees to it that the pipeline ends before Python does.

  Threads that want to call Python while it ends never return, and TF waits for them for ever.
  """
  elements = _iterate(dataset)
  _running.add(elements)
  return elements


def _iterate(dataset: tf.data.Dataset) -> Generator[dict[str, Any], None, None]:
  iterator = dataset.as_numpy_iterator()
  try:
    yield from iterator
  except BaseException as error:
    # An error that ends the program holds its frames to the end, and they hold the pipeline.
    traceback.clear_frames(error.__traceback__)
    raise
  finally:
    del iterator


@atexit.register
def _end_pipelines() -> None:
  for elements in list(_running):
    elements.close()
