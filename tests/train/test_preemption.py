"""Signals during training."""

import gc
import signal
import sys

import pytest

from mail_jax.train.guards import Preemption


@pytest.fixture
def python_hears():
  """Restores the signal handlers that Python starts with, which pytest replaces."""
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
  signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def test_sigterm_is_noted_and_ends_nothing_by_itself(python_hears):
  preemption = Preemption()
  with preemption.watch():
    assert not preemption.reached()
    signal.raise_signal(signal.SIGTERM)
    assert preemption.reached()
    assert preemption.asked
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_ends_the_run_even_where_python_only_prints_it(python_hears, monkeypatch):
  printed = []
  monkeypatch.setattr(sys, "unraisablehook", printed.append)
  preemption = Preemption()
  with preemption.watch(), pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)

  def interrupt(*_):
    if not printed:
      signal.raise_signal(signal.SIGINT)

  preemption = Preemption()
  with preemption.watch():
    gc.callbacks.append(interrupt)  # as JAX has one
    try:
      gc.collect()
    finally:
      gc.callbacks.remove(interrupt)
    assert [x.exc_type for x in printed] == [KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
      preemption.reached()
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_minds_ctrl_c_already_goes_on_with_it(python_hears):
  heard = []
  signal.signal(signal.SIGINT, lambda *_: heard.append(True))
  with Preemption().watch():
    signal.raise_signal(signal.SIGINT)
  assert heard == [True]
