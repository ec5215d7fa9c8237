"""Counts the FLOPs of products: matrix products, convolutions, and those that libraries compute."""

import math
import re

import numpy as np

from mail_jax.plan.hlo import Instruction, Module

# What runs a kernel that is not XLA's own, by the name of what is called.
_LIBRARIES = (
  ("cuDNN attention", r"__cudnn\$fmha"),
  ("cuDNN convolution", r"__cudnn\$conv"),
  ("cuBLAS product", r"__cublas\$"),
  ("Triton", r"triton"),
  ("Pallas", r"tpu_custom_call|mosaic_gpu"),
)
# Forward: scores and weighted sum. Backward: scores again, gradients of both products' factors.
_OF_ATTENTION = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}


def library(instruction: Instruction) -> str:
  """Returns whose kernel an instruction runs, such as `cuDNN attention`; empty if XLA's own."""
  called = _target(instruction)
  return next((name for name, pattern in _LIBRARIES if re.search(pattern, called)), "")


def _target(instruction: Instruction) -> str:
  """Returns the name of what a custom call or a custom fusion runs."""
  if instruction.opcode not in ("custom-call", "fusion"):
    return ""
  found = re.search(r'(?:custom_call_target=|"kind":\s*)"([^"]*)"', instruction.attributes)
  return found[1] if found else ""


def count_libraries(module: Module) -> dict[str, int]:
  """Counts the kernels that are not XLA's own, by library; those in loops once per iteration."""
  counts: dict[str, int] = {}
  for instruction, times in module.walk(into_fusions=False):
    if name := library(instruction):
      counts[name] = counts.get(name, 0) + times
  return dict(sorted(counts.items()))


def is_product(instruction: Instruction) -> bool:
  """Returns whether an instruction in a fusion is a matrix product or a convolution."""
  return instruction.opcode in ("dot", "convolution")


def flops(module: Module, instruction: Instruction) -> float:
  """Returns the FLOPs of one run of an instruction; 0 for all but products."""
  if instruction.opcode == "dot":
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    return _of_matmul(module, instruction, re.findall(r"\d+", contracted[1]) if contracted else [])
  operands = [o.shapes[0].dims for o in module.operands(instruction)[:2] if o.shapes]
  if instruction.opcode == "convolution":
    return _of_convolution(
      instruction.attributes, operands[0], operands[1], instruction.shapes[0].dims
    )
  target = _target(instruction)
  if target.startswith("__cublas$"):
    contracted = re.search(r'"lhs_contracting_dimensions":\s*\[([^]]*)\]', instruction.attributes)
    return _of_matmul(module, instruction, re.findall(r"\d+", contracted[1]) if contracted else [])
  if target in _OF_ATTENTION:
    return _OF_ATTENTION[target] * _of_scores(instruction)
  if target.startswith("__cudnn$conv"):
    # The window and the labels are those of the forward convolution.
    first, second, result = *operands, instruction.shapes[0].dims
    if target.endswith("BackwardInput"):
      return _of_convolution(instruction.attributes, result, second, first)
    if target.endswith("BackwardFilter"):
      return _of_convolution(instruction.attributes, first, result, second)
    return _of_convolution(instruction.attributes, first, second, result)
  return 0.0


def _of_matmul(module: Module, instruction: Instruction, contracted: list[str]) -> float:
  left = module.operands(instruction)[0].shapes[0].dims
  return 2.0 * instruction.shapes[0].elements * math.prod(left[int(d)] for d in contracted)


def _of_scores(attention: Instruction) -> float:
  """Returns the FLOPs of one of the products of fused attention; all of them cost the same."""
  shape = re.search(
    r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^]]*)\]', attention.attributes
  )
  if not shape:
    return 0.0
  *_, keys = map(int, re.findall(r"\d+", shape[1]))
  # The result, or the gradient of the queries, has batch, heads, queries and channels.
  return 2.0 * attention.shapes[0].elements * keys


def _of_convolution(
  attributes: str, data: tuple[int, ...], kernel: tuple[int, ...], result: tuple[int, ...]
) -> float:
  """Counts two FLOPs per tap on the input; on TPUs, matrix products are convolutions, too."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
  if not labels:
    return 0.0
  window = _window(attributes)
  taps = 1
  for i, axis in enumerate(sorted(set(labels[1]) - {"b", "f"})):
    sizes = (
      data[labels[1].index(axis)],
      kernel[labels[2].index(axis)],
      result[labels[3].index(axis)],
    )
    taps *= _taps(*sizes, **{name: values[i] for name, values in window.items()})
  features = data[labels[1].index("f")] // _number(attributes, "feature_group_count")
  batch = data[labels[1].index("b")] // _number(attributes, "batch_group_count")
  return 2.0 * batch * features * result[labels[3].index("f")] * taps


def _number(attributes: str, name: str) -> int:
  match = re.search(rf"{name}=(\d+)", attributes)
  return int(match[1]) if match else 1


def _window(attributes: str) -> dict[str, list[int]]:
  """Returns stride, leading padding, and dilation of input and kernel, for each axis."""
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
    "input_dilation": numbers("lhs_dilate", 1),
    "kernel_dilation": numbers("rhs_dilate", 1),
  }


def _taps(
  data: int,
  kernel: int,
  result: int,
  stride: int,
  pad: int,
  input_dilation: int,
  kernel_dilation: int,
) -> int:
  """Counts the pairs of positions in the result and the kernel that fall on the input."""
  place = np.arange(result)[:, None] * stride + np.arange(kernel) * kernel_dilation - pad
  on_input = (place >= 0) & (place % input_dilation == 0) & (place // input_dilation < data)
  return int(on_input.sum())
