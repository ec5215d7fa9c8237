"""Trees of parameters, and the names of their leaves."""

from typing import Any

import jax

Tree = Any
"""A nest of arrays, as JAX has them."""
Variables = Any
"""What a model computes with: {"params": Tree, "batch_stats": Tree}."""


def path_name(path: tuple) -> str:
  """Returns the name of a leaf: its keys joined by slashes, as in `encoder/block00/qkv/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
