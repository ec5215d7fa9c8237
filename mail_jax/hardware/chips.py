"""Peak figures of accelerators, for estimates of what a step costs."""

import dataclasses
import math
import re

from input_pipeline.common.errors import InputError

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do at most.

  Attributes:
    name: as in the name of a topology, `v5e:4x4`.
    flops: bf16 multiply-adds, as two operations each, a second.
    memory: bytes of HBM that a program may use; the rest of what is published belongs to the runtime. It is what the
      compiler of libtpu 0.0.50.1 says when it refuses a program ("exceeds available HBM (15.75G)").
    memory_published: bytes of HBM as published.
    bandwidth: bytes a second between HBM and the cores.
    link_bandwidth: bytes a second that one link to a neighbouring chip carries one way.
    dimensions: of the torus; two links for each.
    wraps_at: sides of a slice that are a multiple of this one are closed to a ring.
    cores: TensorCores; the two of v4 and v5p are one device to JAX.
    chips_per_host: of a slice of several hosts.
    sources: where the figures are from.
  """

  name: str
  flops: float
  memory: int
  memory_published: int
  bandwidth: float
  link_bandwidth: float
  dimensions: int
  wraps_at: int
  cores: int
  chips_per_host: int
  sources: tuple[str, ...]


# All sources were read in November 2026. Which sides wrap around: jax-ml.github.io/scaling-book/tpus.
_BOOK = "https://jax-ml.github.io/scaling-book/tpus"
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      "v4", 275e12, int(30.75 * _GIB), 32 * _GIB, 1200e9, 50e9, 3, 4, 2, 4,
      # The links, 6 of 50 GB/s, are in table 4 of the paper.
      ("https://cloud.google.com/tpu/docs/v4", "https://arxiv.org/abs/2304.01433", _BOOK),
    ),
    # 400, 1200 and 800 GB/s both ways over 4, 6 and 4 links.
    Chip(
      "v5e", 197e12, int(15.75 * _GIB), 16 * _GIB, 819e9, 50e9, 2, 16, 1, 4,
      ("https://cloud.google.com/tpu/docs/v5e", _BOOK),
    ),
    Chip(
      "v5p", 459e12, int(95.73 * _GIB), 95 * _GIB, 2765e9, 100e9, 3, 4, 2, 4,
      ("https://cloud.google.com/tpu/docs/v5p", _BOOK),
    ),
    Chip(
      "v6e", 918e12, int(31.24 * _GIB), 32 * _GIB, 1638e9, 100e9, 2, 16, 1, 4,
      ("https://cloud.google.com/tpu/docs/v6e", _BOOK),
    ),
  )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a pod.

  Attributes:
    chip: of which it is made.
    sides: chips along each dimension.
  """

  chip: Chip
  sides: tuple[int, ...]

  @property
  def name(self) -> str:
    """As it is written: `v5e:4x4`."""
    return f"{self.chip.name}:{'x'.join(map(str, self.sides))}"

  @property
  def chips(self) -> int:
    """Chips of the slice."""
    return math.prod(self.sides)

  @property
  def links(self) -> int:
    """Links of the chip that has the fewest: one along a side that is a line, two along a ring."""
    wraps = self.chip.wraps_at
    return sum(0 if side == 1 else 2 if side % wraps == 0 else 1 for side in self.sides)


def parse_topology(text: str) -> Topology:
  """Reads the name of a slice, such as `v5e:4x4` or `v4:4x4x4`.

  Raises:
    InputError: an unknown chip, or sides that no slice of it has.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
  if not match:
    raise InputError(f"--topology {text}: write CHIP:SIDES, such as v5e:4x4 or v4:4x4x4")
  if match[1] not in CHIPS:
    raise InputError(f"--topology {text}: unknown chip {match[1]!r}; there is {', '.join(CHIPS)}")
  chip, sides = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
  if len(sides) != chip.dimensions or min(sides) < 1:
    example = "x".join("4" * chip.dimensions)
    raise InputError(
      f"--topology {text}: {chip.name} has slices of {chip.dimensions} sides, such as {chip.name}:{example}"
    )
  return Topology(chip, sides)


def peak_flops(chip: Chip, dtype: str) -> float:
  """Operations a second of matrix products in a model of this `config.model.dtype`.

  A TPU multiplies bf16. JAX's default precision rounds the factors of float32 products to bf16 too, in one pass, so
  both types have the same peak.

  Raises:
    InputError: another type.
  """
  if dtype not in ("float32", "bfloat16"):
    raise InputError(f"config.model.dtype {dtype!r} is not one of float32, bfloat16")
  return chip.flops


# Dense bf16 and TF32, which JAX multiplies float32 in by default; NVIDIA's data sheets halve what they print "with
# sparsity". By how JAX names a device, without its memory and form.
_GPUS = {
  "NVIDIA H200": (989.4e12, 494.7e12),  # nvidia.com/en-us/data-center/h200
  "NVIDIA H100": (989.4e12, 494.7e12),  # SXM; nvidia.com/en-us/data-center/h100
  "NVIDIA A100": (312e12, 156e12),  # nvidia.com/en-us/data-center/a100
  "NVIDIA L4": (121e12, 60e12),  # nvidia.com/en-us/data-center/l4
  "NVIDIA L40S": (362e12, 183e12),  # nvidia.com/en-us/data-center/l40s
}
_TPUS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}


def peak_flops_of(kind: str, dtype: str) -> float | None:
  """Operations a second of matrix products on a device, by JAX's name for it.

  Args:
    kind: `jax.Device.device_kind`, such as `TPU v5 lite` or `NVIDIA H100 80GB HBM3`.
    dtype: as for `peak_flops`.

  Returns:
    None for a device that is not known, such as a CPU.
  """
  if kind in _TPUS:
    return peak_flops(CHIPS[_TPUS[kind]], dtype)
  names = [name for name in _GPUS if re.match(rf"{name}\b", kind)]
  return _GPUS[names[0]][0 if dtype == "bfloat16" else 1] if names else None
