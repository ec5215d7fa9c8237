"""The thread that runs the model, on what requests have submitted by then."""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from mail_jax.predict.batches import BatchSegmenter, PreparedImage, RawPrediction

_log = logging.getLogger("uvicorn.error")
_Job = tuple[PreparedImage, str, Future]


class Worker:
  """Runs a model in a thread of its own.

  A batch is what waits when the previous one is done, so that a single request waits for nobody,
  and many fill the batches.

  Attributes:
    state: `starting` until the model is compiled, then `ready`; `stopped` when closed, or after
      an error while starting.
    error: the latter.
  """

  def __init__(self, segmenter: BatchSegmenter):
    """Stores the model; `start` starts the thread."""
    self.state = "starting"
    self.error: Exception | None = None
    self._segmenter = segmenter
    self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._work, name="model", daemon=True)
    self._failed: Callable[[], object] = lambda: None

  def start(self, failed: Callable[[], object] = lambda: None) -> None:
    """Starts the thread.

    Args:
      failed: called if the model cannot be compiled; `error` is set by then.
    """
    self._failed = failed
    self._thread.start()

  def submit(self, image: PreparedImage, expression: str) -> "Future[RawPrediction]":
    """Submits a pair; one whose future is cancelled before its turn is skipped."""
    future: Future[RawPrediction] = Future()
    self._jobs.put((image, expression, future))
    return future

  def close(self) -> None:
    """Finishes what was submitted, and ends the thread."""
    self._jobs.put(None)
    if self._thread.is_alive():
      self._thread.join()
    self.state = "stopped"

  def _work(self) -> None:
    try:
      self._segmenter.warm_up()
    except Exception as error:  # The command reports it.
      self.error, self.state = error, "stopped"
      self._failed()
      return
    self.state = "ready"
    open_ = True
    while open_:
      jobs, open_ = self._next()
      if jobs:
        self._run(jobs)

  def _next(self) -> tuple[list[_Job], bool]:
    """Waits for a job; returns it with those that wait behind it, and whether more may come."""
    jobs: list[_Job] = []
    while len(jobs) < self._segmenter.sizes[-1]:
      try:
        job = self._jobs.get(block=not jobs)
      except queue.Empty:
        break
      if job is None:
        return jobs, False
      if job[-1].set_running_or_notify_cancel():
        jobs.append(job)
    return jobs, True

  def _run(self, jobs: list[_Job]) -> None:
    images, expressions, futures = zip(*jobs, strict=True)
    try:
      results = self._segmenter.run(images, expressions)
    except Exception as error:
      if len(jobs) == 1:
        futures[0].set_exception(error)
        return
      # What one request has caused, or a lack of memory, must not fail the others.
      _log.exception("a batch of %d failed; running its examples one by one", len(jobs))
      for job in jobs:
        self._run([job])
      return
    for future, result in zip(futures, results, strict=True):
      future.set_result(result)
