"""Operations of the matrix products and convolutions in a compiled program."""

import math
import re

import numpy as np

from mail_jax.plan.hlo import Instruction, Module, trip_count


def product_flops(module: Module) -> float:
  """Operations of all products that one run of the program computes on a device."""
  return sum(times * _flops(module, instruction) for instruction, times in module.walk())


def flops_of_further_rounds(module: Module) -> float:
  """Operations of the products in loops, but for the first round: XLA's own cost analysis counts one."""
  total = 0.0
  for loop, times in module.walk():
    if loop.opcode == "while":
      inside = sum(
        _flops(module, instruction)
        for name in loop.called
        for instruction, _ in module.walk(start=name)
      )
      total += times * ((trip_count(module, loop) or 1) - 1) * inside
  return total


def _flops(module: Module, instruction: Instruction) -> float:
  if instruction.opcode == "dot":
    left = module.operands(instruction)[0].shapes[0].dims
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    dims = [int(d) for d in contracted[1].split(",") if d] if contracted else []
    return 2.0 * instruction.shapes[0].elements * math.prod(left[d] for d in dims)
  if instruction.opcode == "convolution":
    return _of_convolution(module, instruction)
  return 0.0


def _of_convolution(module: Module, instruction: Instruction) -> float:
  """Two operations for each tap that falls on the input; on a TPU a matrix product is a convolution too."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
  if not labels:
    return 0.0
  data, kernel = (operand.shapes[0].dims for operand in module.operands(instruction)[:2])
  result = instruction.shapes[0].dims
  window = _window(instruction.attributes)
  taps = 1
  for i, axis in enumerate(sorted(set(labels[1]) - {"b", "f"})):
    sizes = (
      data[labels[1].index(axis)],
      kernel[labels[2].index(axis)],
      result[labels[3].index(axis)],
    )
    taps *= _taps(*sizes, **{name: values[i] for name, values in window.items()})
  features = data[labels[1].index("f")] // _number(instruction.attributes, "feature_group_count")
  batch = data[labels[1].index("b")] // _number(instruction.attributes, "batch_group_count")
  return 2.0 * batch * features * result[labels[3].index("f")] * taps


def _number(attributes: str, name: str) -> int:
  found = re.search(rf"{name}=(\d+)", attributes)
  return int(found[1]) if found else 1


def _window(attributes: str) -> dict[str, list[int]]:
  """Stride, padding before, and how far input and kernel are spread, a number for each axis."""
  window = re.search(r"window=\{([^}]*)\}", attributes)
  fields = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
  axes = len(fields.get("size", "").split("x")) if "size" in fields else 0

  def numbers(name: str, default: int) -> list[int]:
    if name not in fields:
      return [default] * axes
    return [int(part.split("_")[0]) for part in fields[name].split("x")]

  return {
    "stride": numbers("stride", 1),
    "pad": numbers("pad", 0),
    "spread": numbers("lhs_dilate", 1),
    "reach": numbers("rhs_dilate", 1),
  }


def _taps(
  data: int, kernel: int, result: int, stride: int, pad: int, spread: int, reach: int
) -> int:
  """Pairs of a place in the result and one in the kernel that meet a number of the input."""
  place = np.arange(result)[:, None] * stride + np.arange(kernel) * reach - pad
  return int(((place >= 0) & (place % spread == 0) & (place // spread < data)).sum())
