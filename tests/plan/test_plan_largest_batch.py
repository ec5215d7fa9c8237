"""The search for the largest batch, with made-up memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail_jax.plan.estimate import find_largest


class Compiler:
  """Needs fixed bytes and bytes per example, padded to a multiple; rejects above a limit."""

  def __init__(self, fixed: float, each: float, pad: int, refuses_above: float):
    self.fixed, self.each, self.pad, self.refuses_above = fixed, each, pad, refuses_above
    self.asked: list[int] = []

  def __call__(self, batch: int) -> float | None:
    self.asked.append(batch)
    needed = self.fixed + self.each * -(-batch // self.pad) * self.pad
    return None if needed > self.refuses_above else needed


@given(
  fixed=st.floats(0, 20),
  each=st.floats(0.01, 1),
  pad=st.sampled_from([1, 8]),
  refuses=st.floats(10, 16),
  start=st.integers(1, 40),
  unit=st.sampled_from([1, 4]),
  budget=st.integers(1, 12),
)
def test_the_largest_batch_fits_and_the_too_large_one_does_not(
  fixed, each, pad, refuses, start, unit, budget
):
  compiler = Compiler(fixed, each, pad, refuses)
  result = find_largest(compiler, 16.0, start * unit, unit, budget)
  assert result.compilations == len(compiler.asked) <= budget
  assert len(set(compiler.asked)) == len(compiler.asked)  # nothing is compiled twice
  assert all(batch > 0 and batch % unit == 0 for batch in compiler.asked)
  limit = min(refuses, 16.0)
  assert result.fits == 0 or compiler(result.fits) <= limit
  if result.too_large:
    needed = compiler(result.too_large)
    assert needed is None or needed > limit
  if result.fits and result.too_large and result.too_large - result.fits > unit:
    assert result.compilations == budget


@given(fixed=st.floats(0, 9), each=st.floats(0.1, 1), start=st.integers(1, 8))
def test_a_line_is_followed_to_its_end_in_few_compilations(fixed, each, start):
  compiler = Compiler(fixed, each, 1, 1e9)
  result = find_largest(compiler, 16.0, start, budget=20)
  largest = sum(fixed + each * batch <= 16.0 for batch in range(1, 200))
  assert (result.fits, result.too_large) == (largest, largest + 1)
  assert result.compilations <= 12


def test_nothing_fits():
  result = find_largest(lambda batch: None, 16.0, 32, 8, budget=10)
  assert (result.fits, result.too_large) == (0, 8)
  assert result.compilations == 3  # 32, 16, 8


def test_too_much_for_the_chip_does_not_fit_even_if_the_compiler_takes_it():
  result = find_largest(lambda batch: 2.0 * batch, 16.0, 4, budget=10)
  assert (result.fits, result.too_large) == (8, 9)


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_budget_is_kept(budget):
  asked = []
  find_largest(lambda batch: asked.append(batch) or 1e-3 * batch, 16.0, 4, budget=budget)
  assert len(asked) == budget
