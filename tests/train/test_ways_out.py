"""What a run that has no memory left is advised to do."""

import math

import jax
import pytest
import tiny_model

from input_pipeline.common.errors import InputError
from mail_jax.distributed import sharding
from mail_jax.train import command, memory
from mail_jax.train.program import build_program


@pytest.fixture
def config():
  config = tiny_model.make_config()
  config.update(batch_size=16, ema_decay=0.9)
  return config


def count(config) -> int:
  """Returns the parameters of a config's model, counted from their shapes."""
  shapes = jax.eval_shape(lambda: tiny_model.random_variables(config))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))


def test_the_state_is_parameters_gradients_two_moments_and_the_average(config):
  program = build_program(config, tiny_model.VOCAB, sharding.make_mesh(devices=jax.devices()[:1]))
  five = 5 * 4 * count(config)
  assert five < memory.state_bytes(program) < 1.02 * five


def test_a_batch_is_made_cheaper_first_where_the_results_stay_the_same(config):
  ways = memory.ways_out(config, tiny_model.VOCAB, 10**12)
  devices = jax.device_count()
  assert ways[0] == "config.grad_accum_steps=2, with the same batch"
  assert ways[1:4] == [
    "config.model.remat=block, slower",
    "config.decode_every=2",
    f"config.batch_size={max(devices, 8)}",
  ]
  config.update(grad_accum_steps=16 // devices, decode_every=1)
  config.model.remat = "block"
  assert memory.ways_out(config, tiny_model.VOCAB, None)[0].startswith("config.batch_size=")


def test_a_model_that_alone_is_too_large_is_said_to_be(config):
  first, second = memory.ways_out(config, tiny_model.VOCAB, 1000)[:2]
  assert first.startswith("more devices that share the model, config.mesh.fsdp=2 (the model and")
  assert "width" in second and "ema_decay" in second


def test_the_command_says_it_in_one_line(monkeypatch, finished_run, shapes_data, tmp_path):
  import tiny_run

  def fail(*_):
    raise MemoryError

  monkeypatch.setattr(command.Trainer, "run", fail)
  with pytest.raises(InputError, match=r"out of memory; try, in this order: config\.grad_accum"):
    command.main(tiny_run.arguments(shapes_data, tmp_path / "run"))
