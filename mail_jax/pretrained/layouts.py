"""How PyTorch stores tensors, and how our parameters do."""

import numpy as np


def same(x: np.ndarray) -> np.ndarray:
  """Returns the tensor as it is."""
  return x


def token(x: np.ndarray) -> np.ndarray:
  """Returns the tensor, of shape [1, 1, d], as it is."""
  if x.ndim != 3:
    raise ValueError("expected a token of shape [1, 1, d]")
  return x


def transposed(weight: np.ndarray) -> np.ndarray:
  """Transposes [out, in], as PyTorch has it, to [in, out]."""
  return weight.T


def patches(weight: np.ndarray) -> np.ndarray:
  """Converts a convolution to a dense layer over patches, flattened with channels last."""
  if weight.ndim != 4 or weight.shape[1] != 3 or weight.shape[2] != weight.shape[3]:
    raise ValueError("not a convolution over square patches with three channels")
  return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def qkv_kernel(*weights: np.ndarray) -> np.ndarray:
  """Converts query, key and value, separate or stacked, to [in, 3, out]."""
  weight = np.concatenate(weights)
  return weight.reshape(3, -1, weight.shape[1]).transpose(2, 0, 1)


def qkv_bias(*biases: np.ndarray) -> np.ndarray:
  """Converts query, key and value, separate or stacked, to [3, out]."""
  return np.concatenate(biases).reshape(3, -1)
