"""Peak performance of accelerators, to estimate the cost of a step."""

import dataclasses
import math
import re

from input_pipeline.common.errors import InputError

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak figures of a TPU chip.

  Attributes:
    name: as in the name of a topology, `v5e:4x4`.
    flops: bf16 operations per second; a multiply-add counts as two.
    clock: cycles per second of the cores.
    memory: bytes of HBM that a program may use; the rest is reserved by the runtime. The limit in
      the compiler's error message in libtpu 0.0.50.1 ("exceeds available HBM (15.75G)").
    memory_published: bytes of HBM as published.
    bandwidth: bytes per second between HBM and the cores.
    link_bandwidth: bytes per second of one link to a neighbouring chip, one way.
    dimensions: of the torus, with two links each.
    wraps_at: sides of a slice that are a multiple of this number form a ring.
    cores: TensorCores; JAX sees the two of v4 and v5p as one device.
    chips_per_host: in slices of several hosts.
    sources: of the figures.
  """

  name: str
  flops: float
  clock: float
  memory: int
  memory_published: int
  bandwidth: float
  link_bandwidth: float
  dimensions: int
  wraps_at: int
  cores: int
  chips_per_host: int
  sources: tuple[str, ...]


# All sources were read in November 2026. Which sides wrap around is from the scaling book, and so
# are the clocks of v5e and v5p; that of v4 is in table 4 of the paper. v6e's follows from its peak,
# at which it multiplies four times 256 x 256 numbers in a cycle.
_BOOK = "https://jax-ml.github.io/scaling-book/tpus"
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      "v4", 275e12, 1.05e9, int(30.75 * _GIB), 32 * _GIB, 1200e9, 50e9, 3, 4, 2, 4,
      # The links, 6 of 50 GB/s, are in table 4 of the paper.
      ("https://cloud.google.com/tpu/docs/v4", "https://arxiv.org/abs/2304.01433", _BOOK),
    ),
    # Published for both directions and all links: 400, 1200 and 800 GB/s over 4, 6 and 4 links.
    Chip(
      "v5e", 197e12, 1.5e9, int(15.75 * _GIB), 16 * _GIB, 819e9, 50e9, 2, 16, 1, 4,
      ("https://cloud.google.com/tpu/docs/v5e", _BOOK),
    ),
    Chip(
      "v5p", 459e12, 1.75e9, int(95.73 * _GIB), 95 * _GIB, 2765e9, 100e9, 3, 4, 2, 4,
      ("https://cloud.google.com/tpu/docs/v5p", _BOOK),
    ),
    Chip(
      "v6e", 918e12, 1.75e9, int(31.24 * _GIB), 32 * _GIB, 1638e9, 100e9, 2, 16, 1, 4,
      ("https://cloud.google.com/tpu/docs/v6e", _BOOK),
    ),
  )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a pod.

  Attributes:
    chip: the type of its chips.
    sides: number of chips along each dimension.
  """

  chip: Chip
  sides: tuple[int, ...]

  @property
  def name(self) -> str:
    """The name, such as `v5e:4x4`."""
    return f"{self.chip.name}:{'x'.join(map(str, self.sides))}"

  @property
  def chips(self) -> int:
    """The number of chips."""
    return math.prod(self.sides)

  @property
  def links(self) -> int:
    """The number of links of the chip with the fewest: one along a line, two along a ring."""
    wraps = self.chip.wraps_at
    return sum(0 if side == 1 else 2 if side % wraps == 0 else 1 for side in self.sides)


def parse_topology(text: str) -> Topology:
  """Parses the name of a slice, such as `v5e:4x4` or `v4:4x4x4`.

  Raises:
    InputError: the chip is unknown, or has no slices with such sides.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
  if not match:
    raise InputError(f"--topology {text}: write CHIP:SIDES, such as v5e:4x4 or v4:4x4x4")
  if match[1] not in CHIPS:
    raise InputError(f"--topology {text}: unknown chip {match[1]!r}; known are {', '.join(CHIPS)}")
  chip, sides = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
  if len(sides) != chip.dimensions or min(sides) < 1:
    example = "x".join("4" * chip.dimensions)
    raise InputError(
      f"--topology {text}: a slice of {chip.name} has {chip.dimensions} sides, such as "
      f"{chip.name}:{example}"
    )
  return Topology(chip, sides)


def peak_flops(chip: Chip, dtype: str) -> float:
  """Returns the peak operations per second of matrix products for a `config.model.dtype`.

  TPUs multiply bf16. In its default precision JAX rounds the factors of float32 products to bf16
  too, so both dtypes have the same peak.

  Raises:
    InputError: another dtype.
  """
  if dtype not in ("float32", "bfloat16"):
    raise InputError(f"config.model.dtype {dtype!r} is not one of float32, bfloat16")
  return chip.flops


# Dense bf16 and TF32, which JAX uses for float32 products by default: half of the figures that
# NVIDIA's data sheets give "with sparsity". By JAX's name of the device, without memory and form.
_GPUS = {
  "NVIDIA H200": (989.4e12, 494.7e12),  # nvidia.com/en-us/data-center/h200
  "NVIDIA H100": (989.4e12, 494.7e12),  # SXM; nvidia.com/en-us/data-center/h100
  "NVIDIA A100": (312e12, 156e12),  # nvidia.com/en-us/data-center/a100
  "NVIDIA L4": (121e12, 60e12),  # nvidia.com/en-us/data-center/l4
  "NVIDIA L40S": (362e12, 183e12),  # nvidia.com/en-us/data-center/l40s
}
_TPUS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}


def peak_flops_of(device_kind: str, dtype: str) -> float | None:
  """Returns the peak operations per second of matrix products on a device, by its name in JAX.

  Args:
    device_kind: of a `jax.Device`, such as `TPU v5 lite` or `NVIDIA H100 80GB HBM3`.
    dtype: as for `peak_flops`.

  Returns:
    None for an unknown device, such as a CPU.
  """
  if device_kind in _TPUS:
    return peak_flops(CHIPS[_TPUS[device_kind]], dtype)
  names = [name for name in _GPUS if re.match(rf"{name}\b", device_kind)]
  return _GPUS[names[0]][0 if dtype == "bfloat16" else 1] if names else None
