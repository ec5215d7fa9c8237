"""The order of mixtures: frequencies, epochs, resuming, and any number of processes."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from input_pipeline.common.errors import InputError
from input_pipeline.tf import sample_order
from input_pipeline.tf.sample_order import Order, Share

SIZES, WEIGHTS = (7, 20, 4), (2, 1, 1)


def _order(sizes=SIZES, weights=WEIGHTS, seed: int = 5) -> Order:
  return Order.of(sizes, weights, seed)


def _refs(order: Order, epochs: int) -> np.ndarray:
  """Returns the refs of the first epochs, numbered through the data sets."""
  each = [order.refs(tf.constant(n, tf.int64)).numpy() for n in range(epochs)]
  return np.concatenate(each)


def _datasets(refs: np.ndarray, sizes=SIZES) -> np.ndarray:
  return np.searchsorted(np.cumsum(sizes), refs, side="right")


@settings(max_examples=25)
@given(
  st.lists(st.integers(1, 30), min_size=1, max_size=4),
  st.lists(st.integers(1, 9), min_size=4, max_size=4),
  st.integers(0, 1000),
)
def test_every_data_set_comes_as_often_as_its_weight_and_in_epochs_of_its_own(sizes, weights, seed):
  weights = weights[: len(sizes)]
  if len(sizes) > 1 and min(weights) * sum(sizes) < sum(weights):
    return
  refs = _refs(_order(sizes, weights, seed), 4)
  datasets = _datasets(refs, sizes)
  for n, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
    for epoch in range(1, 5):
      done = epoch * sum(sizes)
      exact = Fraction(weight * done, sum(weights)) if len(sizes) > 1 else done
      assert abs(int((datasets[:done] == n).sum()) - exact) < 1
    own = refs[datasets == n] - sum(sizes[:n])
    for start in range(0, len(own), size):
      part = own[start : start + size].tolist()
      assert len({*part}) == len(part), "a ref comes twice in an epoch of its data set"
    assert set(own.tolist()) <= set(range(size))


def test_by_size_every_epoch_has_every_ref_once():
  refs = _refs(_order(weights=SIZES), 3).reshape(3, -1)
  for epoch in refs:
    assert sorted(epoch.tolist()) == list(range(sum(SIZES)))
  assert (refs[0] != refs[1]).any()


def test_the_first_data_set_of_a_mixture_has_the_order_that_it_has_alone():
  alone = _refs(_order(SIZES[:1], [1]), 12)
  mixed = _refs(_order(), 3)
  own = mixed[_datasets(mixed) == 0]
  assert len(own) > 3 * SIZES[0]
  np.testing.assert_array_equal(own, alone[: len(own)])


def test_data_sets_of_one_size_have_different_orders():
  mixed = _refs(_order((50, 50), (1, 1)), 1)
  first, second = (mixed[_datasets(mixed, (50, 50)) == n] - 50 * n for n in range(2))
  assert (first != second).any()


@pytest.mark.parametrize("samples", [100, 1000, 10_000, 60_000])
def test_frequencies_are_within_the_binomials_99_percent_interval(samples):
  sizes, weights = (900, 20_000, 150), (5, 3, 2)
  order = _order(sizes, weights)
  datasets = _datasets(_refs(order, -(-samples // sum(sizes)))[:samples], sizes)
  for n, weight in enumerate(weights):
    low, high = stats.binom.interval(0.99, samples, weight / sum(weights))
    assert low <= (datasets == n).sum() <= high
  # The last one says nothing of the next: the runs are as many as in a random sequence.
  expected = samples * (1 - sum((w / sum(weights)) ** 2 for w in weights))
  assert abs((datasets[1:] != datasets[:-1]).sum() - expected) < 4 * np.sqrt(samples)


def test_a_batch_is_the_same_for_one_two_and_three_processes():
  order, batch, steps = _order(), 6, 20
  whole = _refs(order, 5)[: batch * steps].reshape(steps, batch)
  for processes in (1, 2, 3):
    rows = batch // processes
    parts = []
    for index in range(processes):
      stream = sample_order.ordered(order, 0, Share(rows, index, processes)).take(rows * steps)
      found = list(stream.as_numpy_iterator())
      parts.append(np.array([ref for ref, _ in found]).reshape(steps, rows))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("step", [1, 5, 6, 17])
def test_an_order_from_a_later_step_on_is_the_rest_of_the_whole_one(step):
  order, share = _order(), Share(6)
  whole, rest = (
    [
      (int(ref), numbers.tolist())
      for ref, numbers in sample_order.ordered(order, start, share).take(count).as_numpy_iterator()
    ]
    for start, count in ((0, 6 * step + 40), (step, 40))
  )
  assert rest == whole[6 * step :]


@pytest.mark.parametrize("start", [0, 1, 30, 31, 32, 100])
def test_what_was_drawn_before_a_sample_is_counted(start):
  order = _order()
  datasets = _datasets(_refs(order, 6))
  expected = np.bincount(datasets[:start], minlength=3)
  assert order.counts_until(start) == tuple(expected)
  chosen = [int(n) for n in order.choices(start).take(50).as_numpy_iterator()]
  np.testing.assert_array_equal(chosen, datasets[start : start + 50])


def test_weights_that_cannot_be_counted_are_refused():
  with pytest.raises(
    InputError, match=r"smallest weight is 0\.0001 of all, less than one of the 31"
  ):
    _order(weights=(4998, 5001, 1))
  with pytest.raises(InputError, match="too many digits"):
    Order.of([10**6, 10**6], [10**9 + 7, 10**9], 0)


def test_large_data_sets_are_counted_exactly():
  sizes = (9_000_001, 4_000_037)
  order = Order.of(sizes, sizes, 0)
  done = order.done_before(tf.constant(10_000, tf.int64)).numpy().tolist()
  assert done == [10_000 * size for size in sizes]
  weighted = Order.of(sizes, (3, 1), 0)
  total = 10_000 * sum(sizes)
  first, second = weighted.done_before(tf.constant(10_000, tf.int64)).numpy().tolist()
  assert first + second == total and abs(first - Fraction(3 * total, 4)) < 1


def test_processes_with_images_of_their_own_have_orders_of_their_own():
  orders = [_refs(Order.of(SIZES, WEIGHTS, 5, index), 1).tolist() for index in range(3)]
  assert all(a != b for a, b in itertools.combinations(orders, 2))
