"""Prefetching: items are prepared ahead, in order, and not too many."""

import itertools
import threading

import pytest

from input_pipeline.tf.pipelines import prefetch

# In seconds, many times longer than anything here takes.
_SOON = 10


def test_items_come_in_order():
  assert list(prefetch(iter(range(7)))) == list(range(7))
  assert list(prefetch(iter(()))) == []
  # None is an ordinary item.
  assert list(prefetch(iter([None, 0, None]))) == [None, 0, None]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_so_many_items_are_prepared_ahead(count):
  made, reached = [], threading.Event()

  def items():
    for i in itertools.count():
      made.append(i)
      if i == count:
        reached.set()
      yield i

  batches = prefetch(items(), count)
  assert not made  # nothing before the first is requested
  assert next(batches) == 0
  assert reached.wait(_SOON)
  batches.close()
  assert made == list(range(count + 1))


def test_an_exception_is_raised_in_its_place_and_ends_the_items():
  def items():
    yield 1
    yield 2
    raise ValueError("the third")

  batches = prefetch(items())
  assert [next(batches), next(batches)] == [1, 2]
  with pytest.raises(ValueError, match="the third"):
    next(batches)
  assert list(batches) == []


def test_closing_waits_for_the_item_in_preparation():
  began, go, ended = threading.Event(), threading.Event(), []

  def items():
    yield 0
    began.set()
    assert go.wait(_SOON)
    ended.append(True)
    yield 1

  batches = prefetch(items(), 1)
  next(batches)
  assert began.wait(_SOON)
  threading.Timer(0.05, go.set).start()
  batches.close()
  assert ended


def test_one_other_thread_prepares_them_all():
  threads = set()

  def items():
    for i in range(5):
      threads.add(threading.current_thread())
      yield i

  list(prefetch(items()))
  assert len(threads) == 1
  assert threading.current_thread() not in threads
