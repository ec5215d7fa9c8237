"""Counts of the neighbours of instances, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mail_jax.models.embeddings import SIDES, Neighbours, on_side

_COUNT = 5


def draw(seed: int, absent: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws vectors, boxes and areas of instances; the last ones have no pixel."""
  rng = np.random.default_rng(seed)
  corner = rng.integers(0, 20, (1, _COUNT, 2))
  box = np.concatenate([corner, corner + rng.integers(1, 9, (1, _COUNT, 2))], -1).astype(np.float32)
  area = rng.integers(1, 60, (1, _COUNT)).astype(np.float32)
  area[:, _COUNT - absent :] = 0
  return rng.normal(size=(1, _COUNT, 12)).astype(np.float32), box, area


@given(seed=st.integers(0, 10_000), absent=st.integers(0, 2))
def test_sides_are_those_of_a_loop(seed, absent):
  _, box, area = draw(seed, absent)
  sides = np.asarray(on_side(jnp.asarray(box), jnp.asarray(area)))
  assert sides.shape == (1, _COUNT, _COUNT, SIDES)
  for i, (top, left, bottom, right) in enumerate(box[0]):
    for j, (its_top, its_left, its_bottom, its_right) in enumerate(box[0]):
      x, its_x = (left + right) / 2, (its_left + its_right) / 2
      y, its_y = (top + bottom) / 2, (its_top + its_bottom) / 2
      size, its_size = area[0, i], area[0, j]
      expected = [its_x < x, its_x > x, its_y < y, its_y > y, its_size < size, its_size > size]
      assert sides[0, i, j].tolist() == [float(e and its_size > 0) for e in expected]


def added(*arrays: np.ndarray) -> np.ndarray:
  """Returns the output of a new module for each token."""
  module, arguments = Neighbours(width=7), [jnp.asarray(array) for array in arrays]
  variables = module.init(jax.random.key(0), *arguments)
  return np.asarray(module.apply(variables, *arguments))


def test_the_order_of_instances_carries_nothing():
  x, box, area = draw(1)
  order = np.array([3, 0, 4, 1, 2])
  straight = added(x, box, area)
  np.testing.assert_allclose(
    added(x[:, order], box[:, order], area[:, order]), straight[:, order], atol=1e-5
  )


def test_slots_without_an_instance_are_counted_by_nobody():
  x, box, area = draw(2, absent=2)
  whole = added(x, box, area)
  fewer = added(x[:, :3], box[:, :3], area[:, :3])
  np.testing.assert_allclose(whole[:, :3], fewer, atol=1e-5)


def test_only_instances_that_are_alike_are_counted():
  """Three of one kind and two of another in a row, each with its own kind's number on its left."""
  kind = np.array([0, 1, 0, 1, 0])
  x = np.eye(2, dtype=np.float32)[kind][None]
  left = np.arange(_COUNT, dtype=np.float32) * 10
  box = np.stack([0 * left, left, 0 * left + 5, left + 5], -1)[None]
  area = np.full((1, _COUNT), 25, np.float32)
  x, box, area = jnp.asarray(x), jnp.asarray(box), jnp.asarray(area)
  module = Neighbours(width=1, heads=1, head_width=2)
  variables = module.init(jax.random.key(0), x, box, area)
  params = jax.tree.map(np.zeros_like, variables["params"])
  params["kinds"]["kernel"] = np.eye(2, dtype=np.float32).reshape(2, 1, 2)
  params["norm"]["scale"], params["sharpness"] = np.ones(2, np.float32), np.full(1, 50.0)

  def output(head: int, side: int, feature: int) -> list[float]:
    """Returns one feature of each instance."""
    kernel = np.zeros((2, SIDES, 5), np.float32)
    kernel[head, side, feature] = 1
    params["project"]["kernel"] = kernel.reshape(-1, 1)
    return np.asarray(module.apply({"params": params}, x, box, area))[0, :, 0].round(4).tolist()

  assert output(head=0, side=0, feature=1) == [0, 0, 1, 1, 0]  # exactly one of its kind on the left
  assert output(head=0, side=1, feature=2) == [1, 0, 0, 0, 0]  # exactly two on the right
  assert output(head=0, side=0, feature=4) == [0, 0, 0.25, 0.25, 0.5]  # their number
  assert output(head=1, side=0, feature=3) == [0, 0, 0, 1, 0]  # three of any kind on the left
