"""How many numbers of gradients the chips have to sum, counted by hand."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
from flax.traverse_util import flatten_dict

from mail_jax.models import decoder, folding
from mail_jax.plan import ahead


def count_parameters(config: Any, *names: str) -> int:
  """Counts the parameters with all of the names in their path."""
  config = config.copy_and_resolve_references()
  config.mesh.fsdp = 1
  program = ahead.make_program(config, 320, jax.devices()[:1])
  flat = flatten_dict(program.shapes.variables["params"])
  return sum(x.size for path, x in flat.items() if set(names) <= set(path))


@contextlib.contextmanager
def count_gradients(config: Any) -> Iterator[Callable[[], int]]:
  """Gives a function that counts the elements of the gradients of a step traced within.

  A gradient is summed over the chips where a product makes it: those of the decoder's kernels while
  they are folded.
  """
  sizes = []

  def convolve(x, kernel):
    sizes.append((x.shape[0], kernel.size))
    return folding.convolve(x, kernel)

  def convolve_border(x, kernel, fold):
    # Top and bottom look at a tile, its neighbours and the corners; left and right at the first
    # three. Each makes the outermost two pixels of both sides, in tiles of twice the length.
    depth, features = kernel.shape[2:]
    for tiles in (5, 3):
      sizes.append((x.shape[0], 2 * tiles * fold * depth * 2 * 2 * fold * features))
    return folding.convolve_border(x, kernel, fold)

  def count() -> int:
    # The parameters' shapes come from a batch of one.
    folded = sum(size for batch, size in sizes if batch == config.batch_size)
    return count_parameters(config) - count_parameters(config, "decoder", "kernel") + folded

  with (
    mock.patch.object(decoder, "convolve", convolve),
    mock.patch.object(decoder, "convolve_border", convolve_border),
  ):
    yield count
