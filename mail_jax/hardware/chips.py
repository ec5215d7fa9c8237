"""Peak performance of accelerators, to estimate the cost of a step."""

import dataclasses
import math
import re

from input_pipeline.common.errors import InputError

_GIB, _MIB = 2**30, 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Peak figures of an accelerator.

  Attributes:
    name: as in the name of a topology, `v5e:4x4` or `h100:8`.
    kind: a regular expression for JAX's name of the device.
    flops: bf16 operations per second; a multiply-add counts as two.
    flops_float32: of float32 products, in JAX's default precision.
    clock: cycles per second of the cores.
    memory: bytes of HBM that a program may use.
    memory_published: bytes of HBM; of GPUs, as the driver reports them.
    bandwidth: bytes per second between HBM and the cores.
    link_bandwidth: bytes per second of one link to other chips, one way.
    network_bandwidth: bytes per second of the data-centre network for each chip, one way.
    chips_per_host: in slices of several hosts; of GPUs, the most.
    sources: of the figures.
  """

  name: str
  kind: str
  flops: float
  flops_float32: float
  clock: float
  memory: int
  memory_published: int
  bandwidth: float
  link_bandwidth: float
  network_bandwidth: float
  chips_per_host: int
  sources: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
  """A TPU chip.

  Its `memory` is the limit in the compiler's error message in libtpu 0.0.50.1 ("exceeds available
  HBM (15.75G)"); the rest is reserved by the runtime. Factors of float32 products are rounded to
  bf16 too, so both dtypes have the same peak.

  Attributes:
    dimensions: of the torus, with two links each.
    wraps_at: sides of a slice that are a multiple of this number form a ring.
    cores: TensorCores; JAX sees the two of v4 and v5p as one device.
  """

  dimensions: int
  wraps_at: int
  cores: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu(Chip):
  """A GPU of NVIDIA, with one link to a switch in its host.

  Its `memory` is the 75 % that JAX takes unless `XLA_PYTHON_CLIENT_MEM_FRACTION` is set. Float32
  products are in TF32. The figures below are for the compiler.

  Attributes:
    capability: major and minor, of CUDA.
    multiprocessors: their number.
    lanes: float32 operations that a multiprocessor begins in a cycle.
    threads: the most on a multiprocessor.
    shared_memory: bytes of a multiprocessor.
    cache: bytes of the second level.
  """

  capability: tuple[int, int]
  multiprocessors: int
  lanes: int
  threads: int
  shared_memory: int
  cache: int


# All sources were read in November 2026. The scaling book has which sides wrap around, the network,
# and the clocks of v5e and v5p; that of v4 is in table 4 of the paper, v6e's follows from its peak,
# at which it multiplies four times 256 x 256 numbers in a cycle. Links are published for both
# directions and all of them: 400, 1200 and 800 GB/s over 4, 6 and 4 links of v5e, v5p and v6e; the
# paper has v4's, 6 of 50 GB/s.
_BOOK = "https://jax-ml.github.io/scaling-book/tpus"
_TPUS = (
  Tpu(
    name="v4", kind="TPU v4", flops=275e12, flops_float32=275e12, clock=1.05e9,
    memory=int(30.75 * _GIB), memory_published=32 * _GIB, bandwidth=1200e9,
    link_bandwidth=50e9, network_bandwidth=6.25e9,
    chips_per_host=4, dimensions=3, wraps_at=4, cores=2,
    sources=("https://cloud.google.com/tpu/docs/v4", "https://arxiv.org/abs/2304.01433", _BOOK),
  ),
  Tpu(
    name="v5e", kind="TPU v5 lite", flops=197e12, flops_float32=197e12, clock=1.5e9,
    memory=int(15.75 * _GIB), memory_published=16 * _GIB, bandwidth=819e9,
    link_bandwidth=50e9, network_bandwidth=3.125e9,
    chips_per_host=4, dimensions=2, wraps_at=16, cores=1,
    sources=("https://cloud.google.com/tpu/docs/v5e", _BOOK),
  ),
  Tpu(
    name="v5p", kind="TPU v5", flops=459e12, flops_float32=459e12, clock=1.75e9,
    memory=int(95.73 * _GIB), memory_published=95 * _GIB, bandwidth=2765e9,
    link_bandwidth=100e9, network_bandwidth=6.25e9,
    chips_per_host=4, dimensions=3, wraps_at=4, cores=2,
    sources=("https://cloud.google.com/tpu/docs/v5p", _BOOK),
  ),
  Tpu(
    name="v6e", kind="TPU v6 lite", flops=918e12, flops_float32=918e12, clock=1.75e9,
    memory=int(31.24 * _GIB), memory_published=32 * _GIB, bandwidth=1638e9,
    link_bandwidth=100e9, network_bandwidth=12.5e9,
    chips_per_host=4, dimensions=2, wraps_at=16, cores=1,
    sources=("https://cloud.google.com/tpu/docs/v6e", _BOOK),
  ),
)  # fmt: skip
# The SXM form, where there are several. Peaks are dense: half of what the data sheets give "with
# sparsity". Links are half of what they give for NVLink, or for PCIe, in both directions. The
# network is that of NVIDIA's DGX with these GPUs, of L4 and L40S that of Amazon's instances with
# eight. What the compiler wants to know is in openxla/xla, xla/backends/gpu/target_config/specs.
_XLA = "https://github.com/openxla/xla"
_GPUS = (
  Gpu(
    name="a100", kind=r"NVIDIA A100\b.*", flops=312e12, flops_float32=156e12, clock=1.41e9,
    memory=int(0.75 * 85100068864), memory_published=85100068864, bandwidth=2039e9,
    link_bandwidth=300e9, network_bandwidth=25e9, chips_per_host=8,
    capability=(8, 0), multiprocessors=108, lanes=64, threads=2048, shared_memory=167936,
    cache=40 * _MIB,
    sources=("https://www.nvidia.com/en-us/data-center/a100", _XLA),
  ),
  Gpu(
    name="h100", kind=r"NVIDIA H100\b.*", flops=989.4e12, flops_float32=494.7e12, clock=1.98e9,
    memory=int(0.75 * 84942979072), memory_published=84942979072, bandwidth=3352e9,
    link_bandwidth=450e9, network_bandwidth=50e9, chips_per_host=8,
    capability=(9, 0), multiprocessors=132, lanes=128, threads=2048, shared_memory=233472,
    cache=50 * _MIB,
    sources=("https://www.nvidia.com/en-us/data-center/h100", _XLA),
  ),
  Gpu(
    name="h200", kind=r"NVIDIA H200\b.*", flops=989.4e12, flops_float32=494.7e12, clock=1.98e9,
    memory=int(0.75 * 151397597184), memory_published=151397597184, bandwidth=4800e9,
    link_bandwidth=450e9, network_bandwidth=50e9, chips_per_host=8,
    capability=(9, 0), multiprocessors=132, lanes=128, threads=2048, shared_memory=233472,
    cache=50 * _MIB,
    sources=("https://www.nvidia.com/en-us/data-center/h200", _XLA),
  ),
  Gpu(
    name="b200", kind=r"NVIDIA B200\b.*", flops=2250e12, flops_float32=1125e12, clock=1.965e9,
    memory=int(0.75 * 191514411008), memory_published=191514411008, bandwidth=7672e9,
    link_bandwidth=900e9, network_bandwidth=50e9, chips_per_host=8,
    capability=(10, 0), multiprocessors=148, lanes=128, threads=2048, shared_memory=233472,
    cache=132644864,
    sources=("https://www.nvidia.com/en-us/data-center/dgx-b200", _XLA),
  ),
  Gpu(
    name="l4", kind=r"NVIDIA L4\b.*", flops=121e12, flops_float32=60e12, clock=2.04e9,
    memory=int(0.75 * 23034 * _MIB), memory_published=23034 * _MIB, bandwidth=300e9,
    link_bandwidth=32e9, network_bandwidth=1.5625e9, chips_per_host=8,
    capability=(8, 9), multiprocessors=58, lanes=128, threads=1536, shared_memory=102400,
    cache=48 * _MIB,
    sources=("https://www.nvidia.com/en-us/data-center/l4",
             "https://aws.amazon.com/ec2/instance-types/g6"),
  ),
  Gpu(
    name="l40s", kind=r"NVIDIA L40S\b.*", flops=362e12, flops_float32=183e12, clock=2.52e9,
    memory=int(0.75 * 46068 * _MIB), memory_published=46068 * _MIB, bandwidth=864e9,
    link_bandwidth=32e9, network_bandwidth=6.25e9, chips_per_host=8,
    capability=(8, 9), multiprocessors=142, lanes=128, threads=1536, shared_memory=102400,
    cache=96 * _MIB,
    sources=("https://www.nvidia.com/en-us/data-center/l40s",
             "https://aws.amazon.com/ec2/instance-types/g6e"),
  ),
)  # fmt: skip
CHIPS: dict[str, Tpu | Gpu] = {chip.name: chip for chip in (*_TPUS, *_GPUS)}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Islands of chips with links between them; a network joins the islands.

  Attributes:
    chip: the type of the chips.
    sides: of an island: chips along each dimension of a slice; GPUs of a host.
    islands: number of slices or hosts.
  """

  chip: Tpu | Gpu
  sides: tuple[int, ...]
  islands: int = 1

  @property
  def name(self) -> str:
    """The name, such as `v5e:4x4`, `2*v5e:4x4` or `h100:4x8`."""
    sides = "x".join(map(str, self.sides))
    if self.islands == 1:
      return f"{self.chip.name}:{sides}"
    if isinstance(self.chip, Gpu):
      return f"{self.chip.name}:{self.islands}x{sides}"
    return f"{self.islands}*{self.chip.name}:{sides}"

  @property
  def chips(self) -> int:
    """The number of chips."""
    return self.islands * math.prod(self.sides)

  @property
  def links(self) -> int:
    """The number of links of the chip with the fewest.

    On TPUs, one along a line and two along a ring; on GPUs, one to the switch of the host.
    """
    if isinstance(self.chip, Gpu):
      return int(self.sides[0] > 1)
    wraps = self.chip.wraps_at
    return sum(0 if side == 1 else 2 if side % wraps == 0 else 1 for side in self.sides)


def parse_topology(text: str) -> Topology:
  """Parses the name of a topology: `v5e:4x4`, `2*v5e:4x4` (two slices), `h100:8`, `h100:4x8`.

  Raises:
    InputError: the chip is unknown, or has no slices or hosts with such sides.
  """
  match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", text)
  if not match:
    raise InputError(
      f"--topology {text}: write CHIP:SIDES, such as v5e:4x4, 2*v5e:4x4 (two slices), h100:8 or "
      "h100:4x8 (four hosts)"
    )
  if match[2] not in CHIPS:
    raise InputError(f"--topology {text}: unknown chip {match[2]!r}; known are {', '.join(CHIPS)}")
  chip, sides = CHIPS[match[2]], tuple(map(int, match[3].split("x")))
  islands = int(match[1] or 1)
  if isinstance(chip, Gpu):
    if len(sides) == 2:
      islands, sides = islands * sides[0], sides[1:]
    if len(sides) != 1 or not 1 <= sides[0] <= chip.chips_per_host or not islands:
      raise InputError(
        f"--topology {text}: a host has 1 to {chip.chips_per_host} GPUs: write {chip.name}:8, or "
        f"{chip.name}:4x8 for four hosts"
      )
  elif len(sides) != chip.dimensions or not min(islands, *sides):
    example = "x".join("4" * chip.dimensions)
    raise InputError(
      f"--topology {text}: a slice of {chip.name} has {chip.dimensions} sides, such as "
      f"{chip.name}:{example}, or 2*{chip.name}:{example} for two slices"
    )
  return Topology(chip, sides, islands)


def peak_flops(chip: Chip, dtype: str) -> float:
  """Returns the peak operations per second of matrix products for a `config.model.dtype`.

  Raises:
    InputError: another dtype.
  """
  if dtype not in ("float32", "bfloat16"):
    raise InputError(f"config.model.dtype {dtype!r} is not one of float32, bfloat16")
  return chip.flops if dtype == "bfloat16" else chip.flops_float32


def chip_of(device_kind: str) -> Chip | None:
  """Returns the chip with a name in JAX, such as `TPU v5 lite` or `NVIDIA H100 80GB HBM3`.

  Returns:
    None for an unknown device, such as a CPU.
  """
  return next((chip for chip in CHIPS.values() if re.fullmatch(chip.kind, device_kind)), None)


def peak_flops_of(device_kind: str, dtype: str) -> float | None:
  """Returns the `peak_flops` of a device by its name in JAX; None for an unknown one."""
  chip = chip_of(device_kind)
  return peak_flops(chip, dtype) if chip else None
