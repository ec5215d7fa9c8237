"""Every second of a run is counted in one phase."""

import time

import jax
import jax.numpy as jnp
import pytest
import tiny_run

from mail_jax.train import goodput
from mail_jax.train.goodput import PHASES, Goodput, Rate


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test moves, without compile time."""
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  monkeypatch.setattr(goodput, "_compiled", [0.0])
  return now


def test_seconds_are_those_of_the_clock_and_add_up(clock):
  spent = Goodput()
  for phase, seconds in {"step": 8.0, "data": 1.0, "checkpoint": 0.5, "evaluation": 2.0}.items():
    with spent.spend(phase):
      clock[0] += seconds
  clock[0] += 3.0
  assert spent.seconds() == {
    "step": 8.0, "data": 1.0, "load": 0.0, "checkpoint": 0.5, "evaluation": 2.0, "compile": 0.0,
    "other": 3.0,
  }  # fmt: skip
  assert spent.line().startswith("step 55.2%  other 20.7%  evaluation 13.8%")


def test_what_the_compiler_takes_is_taken_out_of_the_step_that_waits_for_it(clock):
  spent = Goodput()
  with spent.spend("step"):
    clock[0] += 10.0
    goodput._listen("/jax/core/compile/backend_compile_duration", 7.0)
    goodput._listen("/jax/core/something_else_duration", 1.0)
  seconds = spent.seconds()
  assert (seconds["step"], seconds["compile"], seconds["other"]) == (3.0, 7.0, 0.0)


def test_a_phase_that_ends_with_an_error_is_counted(clock):
  spent = Goodput()
  with pytest.raises(KeyError), spent.spend("evaluation"):
    clock[0] += 2.0
    raise KeyError
  assert spent.seconds()["evaluation"] == 2.0


def test_jax_tells_of_what_it_compiles():
  spent = Goodput()
  size = time.monotonic_ns() % 997 + 2  # a shape that is not in a cache
  began = time.monotonic()
  with spent.spend("step"):
    jax.jit(lambda x: jnp.sort(x) @ x)(jnp.ones(size)).block_until_ready()
  assert 0 < spent.seconds()["compile"] <= time.monotonic() - began


def test_the_rate_is_that_of_training_alone(clock):
  spent = Goodput()
  rate = Rate(spent, batch_size=32)
  rate.start(100)
  for phase, seconds in (("step", 6.0), ("data", 2.0), ("evaluation", 50.0)):
    with spent.spend(phase):
      clock[0] += seconds
  assert rate.lap(110) == (10 * 32 / 8.0, 0.25)
  with spent.spend("step"):
    clock[0] += 1.0
  assert rate.lap(111) == (32.0, 0.0)


def test_a_log_says_where_the_time_went(finished_run):
  rows = tiny_run.rows(finished_run)
  assert rows
  before = dict.fromkeys((*PHASES, "other"), 0.0)
  for row in rows:
    assert row["seconds"].keys() == before.keys()
    assert all(row["seconds"][phase] >= before[phase] - 1e-3 for phase in PHASES)
    before = row["seconds"]
  for phase in ("step", "data", "load", "checkpoint", "evaluation", "compile"):
    assert before[phase] > 0, phase
