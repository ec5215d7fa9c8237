"""Items are made ahead, in order, and no more of them than asked for."""

import itertools
import threading

import pytest

from input_pipeline.tf.pipelines import prefetch

_SOON = 10  # seconds, many times what anything here needs


def test_items_come_in_order_and_end_where_they_end():
  assert list(prefetch(iter(range(7)))) == list(range(7))
  assert list(prefetch(iter(()))) == []
  # None is an item like any other.
  assert list(prefetch(iter([None, 0, None]))) == [None, 0, None]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_so_many_are_made_while_nobody_asks(count):
  made, reached = [], threading.Event()

  def items():
    for i in itertools.count():
      made.append(i)
      if i == count:
        reached.set()
      yield i

  batches = prefetch(items(), count)
  assert not made  # nothing before the first is asked for
  assert next(batches) == 0
  assert reached.wait(_SOON)
  batches.close()
  assert made == list(range(count + 1))


def test_what_goes_wrong_is_raised_in_its_place_and_ends_it():
  def items():
    yield 1
    yield 2
    raise ValueError("the third")

  batches = prefetch(items())
  assert [next(batches), next(batches)] == [1, 2]
  with pytest.raises(ValueError, match="the third"):
    next(batches)
  assert list(batches) == []


def test_closing_waits_for_what_is_being_made():
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


def test_one_other_thread_makes_them_all():
  threads = set()

  def items():
    for i in range(5):
      threads.add(threading.current_thread())
      yield i

  list(prefetch(items()))
  assert len(threads) == 1
  assert threading.current_thread() not in threads
