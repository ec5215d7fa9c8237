"""The model compiled with all optimizations computes the same as its single operations.

Other tests compile with few optimizations (`hurry.py`), without those most likely to be wrong.
"""

import itertools
import os
import subprocess
import sys

import hurry
import jax
import numpy as np
import pytest
import tiny_run

from input_pipeline.preprocess import bit_planes
from mail_jax.models import embeddings

VARIANTS = [
  f"{appearance} {neighbours}" for appearance, neighbours in itertools.product((1, 0), (1, 0))
]
BATCH, COUNT, SIZE = 64, 10, 96  # the demo's, when it is evaluated


def test_tokens_of_instances():
  _check("1 1")


@pytest.mark.slow
def test_tokens_of_instances_with_anything_left_out():
  _check(*VARIANTS)


def _check(*variants: str) -> None:
  flags = os.environ["XLA_FLAGS"].replace(hurry.flags(), "").strip()
  paths = os.pathsep.join([str(tiny_run.CHECKOUT), str(tiny_run.CHECKOUT / "tests/support")])
  done = subprocess.run(
    [sys.executable, __file__, *variants],
    env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  actual = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
  assert [name for name, _ in actual] == list(variants)
  assert {name for name, error in actual if not float(error) < 1e-4} == set()


def _largest_error(appearance: int, neighbours: int) -> float:
  """Returns the largest error of compiled tokens of random masks, of about unit scale."""
  rng = np.random.default_rng(0)
  coarse = rng.random((BATCH, COUNT, 6, 6)) < 0.3
  masks = coarse.repeat(SIZE // 6, axis=2).repeat(SIZE // 6, axis=3)
  image = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
  planes = np.stack([bit_planes.packbits(each) for each in masks])
  model = embeddings.InstanceEmbedding(32, SIZE // 12, bool(appearance), bool(neighbours))
  variables = model.init(jax.random.key(0), planes[:1], image[:1], COUNT)
  planes, image = jax.numpy.asarray(planes), jax.numpy.asarray(image)
  compiled, _ = jax.jit(model.apply, static_argnums=3)(variables, planes, image, COUNT)
  return float(np.abs(compiled - model.apply(variables, planes, image, COUNT)[0]).max())


if __name__ == "__main__":
  for variant in sys.argv[1:]:
    given = variant.split()
    print(variant, _largest_error(int(given[0]), int(given[1])), flush=True)
