"""`config.deterministic`: what it asks of XLA, and where."""

import jax
import numpy as np
import pytest
import tiny_run

from mail_jax.config import load_config
from mail_jax.train.program import DETERMINISTIC, compiler_options


@pytest.mark.parametrize(("platform", "asks"), [("gpu", True), ("cpu", False), ("tpu", False)])
def test_only_gpus_need_it(platform, asks):
  config = load_config(tiny_run.__file__, ["deterministic=True"])
  assert bool(compiler_options(config, platform)) == asks
  assert compiler_options(load_config(tiny_run.__file__), platform) is None


def test_xla_knows_every_option():
  double = jax.jit(lambda x: 2 * x, compiler_options=DETERMINISTIC)
  np.testing.assert_array_equal(double(np.arange(3)), [0, 2, 4])
  with pytest.raises(Exception, match="xla_gpu_autotune_lefel"):
    jax.jit(lambda x: 3 * x, compiler_options={"xla_gpu_autotune_lefel": 0})(1)
