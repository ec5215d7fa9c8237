"""Estimates a program: memory per chip, a lower bound on its time, the largest batch."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce
from input_pipeline.preprocess.tokenizer import open_tokenizer
from mail_jax.hardware import chips
from mail_jax.plan import ahead, costs, hlo, parts, products, programs

# Word pieces by the scheme of `config.init`: those of bert-base-uncased and of BEiT-3's table.
_VOCABULARIES = {"vilt": 30522, "beit3": 64010}


@dataclasses.dataclass(frozen=True)
class LargestBatch:
  """The result of a search.

  Attributes:
    fits: the largest batch found to fit; 0 if none.
    too_large: the smallest batch found not to fit; 0 if none.
    compilations: number of them.
  """

  fits: int
  too_large: int
  compilations: int


def find_largest(
  needs: Callable[[int], float | None],
  available: float,
  start: int,
  unit: int = 1,
  budget: int = 6,
) -> LargestBatch:
  """Searches for the largest batch that fits.

  Args:
    needs: returns the bytes that a batch needs, None if it does not fit; takes minutes.
    available: bytes of memory.
    start: the first batch to try, a multiple of `unit`.
    unit: batches are multiples of it.
    budget: the limit of calls to `needs`.
  """
  fitting: dict[int, float] = {0: 0.0}
  too_large = 0
  guess = start
  for calls in range(1, budget + 1):
    needed = needs(guess)
    if needed is None or needed > available:
      too_large = min(guess, too_large or guess)
    else:
      fitting[guess] = needed
    best = max(fitting)
    if too_large and too_large - best <= unit:
      return LargestBatch(best, too_large, calls)
    guess = _next(fitting, too_large, available, unit)
  return LargestBatch(max(fitting), too_large, budget)


def _next(fitting: dict[int, float], too_large: int, available: float, unit: int) -> int:
  """Returns the next batch to try, by extrapolating from the two largest that fit."""
  best = max(fitting)
  if len(fitting) < 3:
    # One point does not separate the fixed memory from that of the batch; halve or double.
    guess = (best + too_large) // 2 if too_large else 2 * best
  else:
    second = sorted(fitting)[-2]
    slope = (fitting[best] - fitting[second]) / (best - second)
    left = (available - fitting[best]) / slope if slope > 0 else best
    guess = best + int(min(left, 3 * best))
    if too_large and not best < guess < too_large:
      guess = (best + too_large) // 2
  guess = max(best + unit, guess // unit * unit)
  return min(guess, too_large - unit) if too_large else guess


@dataclasses.dataclass(frozen=True)
class Memory:
  """Memory on a chip, in bytes.

  Attributes:
    arguments: the state or the variables, and the chip's share of the batch.
    temporaries: intermediate results.
    output: the results; in training, the new state.
    aliased: the part of the output that replaces arguments.
    code: the program.
    total: all of them together.
    available: the memory that a program may use.
  """

  arguments: int
  temporaries: int
  output: int
  aliased: int
  code: int
  total: int
  available: int

  @property
  def fits(self) -> bool:
    """Whether it is enough; the compiler of GPUs does not refuse what does not fit."""
    return self.total <= self.available


@dataclasses.dataclass(frozen=True)
class Part:
  """The cost of a part of a program; see `parts.PARTS`.

  Attributes:
    cycles: estimated by the compiler, without collectives; 0 if it does not estimate.
    seconds: that they take; None without them.
    share: of the program's cycles; 0 without them.
    flops: of products.
    products_share: fraction of the seconds that the products take at peak; None without seconds.
    hbm_bytes: traffic between HBM and the cores.
  """

  cycles: int
  seconds: float | None
  share: float
  flops: float
  products_share: float | None
  hbm_bytes: int


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The cost of one run of a program on one chip.

  Attributes:
    memory: see `Memory`.
    flops: of the products of the model, counted by hand (`mail_jax.hardware.flops`).
    flops_compiled: of the products in the compiled program; more if it recomputes intermediate
      results.
    flops_xla: all operations that XLA counts, including elementwise ones; every iteration of loops.
      None of GPUs.
    hbm_bytes: traffic between HBM and the cores.
    collectives: by kind: their number, bytes, and the bytes that a chip sends.
    sent_bytes: by all collectives, over links.
    network_bytes: by all collectives, over the network between slices or hosts.
    libraries: number of kernels that are not XLA's own, by library.
    intensity: FLOPs per byte of HBM traffic; at `ridge`, both take equally long.
    seconds: the least time that the products, the HBM traffic and the traffic over links and over
      the network need, each alone.
    bound: the largest of them.
    whole: cycles, seconds, products and traffic of the program by the compiler's estimate.
    parts: the same of its parts.
    foreign_kernels: runs of kernels that the compiler does not estimate, besides collectives.
  """

  memory: Memory
  flops: float
  flops_compiled: float
  flops_xla: float | None
  hbm_bytes: int
  collectives: dict[str, costs.Collective]
  sent_bytes: float
  network_bytes: float
  libraries: dict[str, int]
  intensity: float
  ridge: float
  seconds: dict[str, float]
  bound: str
  whole: Part
  parts: dict[str, Part]
  foreign_kernels: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """The estimate of a config on a slice.

  Attributes:
    program: one of `programs.PROGRAMS`.
    topology, chips, hosts: the slice.
    mesh: sizes of its axes, `data` and `fsdp`.
    batch_size: over all chips.
    parameters: of the model.
    dtype: of its products.
    effort: of the compiler.
    compile_seconds: the time that compiling took.
    refused: the compiler's message if the program does not fit; `estimate` is None then.
    estimate: the cost on a chip.
    largest_batch: per chip; None if it was not searched.
  """

  program: str
  topology: str
  chips: int
  hosts: int
  mesh: dict[str, int]
  batch_size: int
  parameters: int
  dtype: str
  effort: str
  compile_seconds: float
  refused: str
  estimate: Estimate | None
  largest_batch: LargestBatch | None


def memory_of(compiled: jax.stages.Compiled, chip: chips.Chip) -> Memory:
  """Returns the memory of a compiled program, from the compiler's analysis."""
  analysis: Any = compiled.memory_analysis()
  arguments, output = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
  temporaries, aliased = analysis.temp_size_in_bytes, analysis.alias_size_in_bytes
  code = analysis.generated_code_size_in_bytes
  total = arguments + temporaries + output - aliased + code
  return Memory(arguments, temporaries, output, aliased, code, total, chip.memory)


def _text(compiled: jax.stages.Compiled) -> str:
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    raise InputError(
      f"JAX {jax.__version__} cannot read the output of {ahead.compiler_versions()}; install the "
      f"versions of requirements-plan*.txt ({str(error).splitlines()[0]})"
    ) from error
  # These compilers always return it.
  assert text is not None
  return text


def estimate_cost(
  kind: str, config: ConfigDict, compiled: jax.stages.Compiled, topology: chips.Topology
) -> Estimate:
  """Estimates the cost of a compiled program, one of `programs.PROGRAMS`, from its text."""
  chip = topology.chip
  module = hlo.parse(_text(compiled))
  ours = programs.flops_by_hand(kind, config) / topology.chips
  analysis: Any = compiled.cost_analysis()
  again = costs.flops_of_further_iterations(module)
  moved, done = costs.memory_bytes(module), costs.product_flops(module)
  by_part = parts.by_part(module)
  work = sum(by_part.values(), costs.Work())
  # A mesh keeps the chips of an island together, see `sharding.make_mesh`.
  size = topology.chips // topology.islands
  counted = costs.count_collectives(module, [i // size for i in range(topology.chips)])
  sent = math.fsum(kind.sent for kind in counted.values())
  far = math.fsum(kind.sent_far for kind in counted.values())
  peak = chips.peak_flops(chip, config.model.dtype)
  links = topology.links * chip.link_bandwidth
  seconds = {
    "compute": done / peak,
    "hbm": moved / chip.bandwidth,
    "interconnect": sent / links if sent else 0.0,
    "network": far / chip.network_bandwidth,
  }
  return Estimate(
    memory=memory_of(compiled, chip),
    flops=ours,
    flops_compiled=done,
    flops_xla=analysis["flops"] + again if analysis else None,
    hbm_bytes=moved,
    collectives=counted,
    sent_bytes=sent,
    network_bytes=far,
    libraries=products.count_libraries(module),
    intensity=done / moved,
    ridge=peak / chip.bandwidth,
    seconds=seconds,
    bound=max(seconds, key=seconds.__getitem__),
    whole=_part(work, work, chip.clock, peak),
    parts={name: _part(one, work, chip.clock, peak) for name, one in by_part.items()},
    foreign_kernels=costs.foreign_kernels(module),
  )


def _part(work: costs.Work, whole: costs.Work, clock: float, peak: float) -> Part:
  seconds = work.cycles / clock if work.cycles else None
  return Part(
    work.cycles,
    seconds,
    work.cycles / max(1, whole.cycles),
    work.flops,
    work.flops / peak / seconds if seconds else None,
    work.hbm_bytes,
  )


def mesh_name(mesh: dict[str, int]) -> str:
  """Returns a name such as `data 4 x fsdp 4`, with the slices if there are several."""
  return " x ".join(f"{name} {size}" for name, size in mesh.items() if (name, size) != ("slice", 1))


def vocab_size(config: ConfigDict) -> int:
  """Returns the vocabulary size of training, as far as it is known without data or weights."""
  if pathlib.Path(config.tokenizer.partition(":")[2]).is_file():
    return open_tokenizer(config.tokenizer).vocab_size
  return _VOCABULARIES.get(config.init.partition(":")[0], 0) or config.vocab_size


def with_mesh(config: ConfigDict, data: int, fsdp: int, batch_size: int) -> ConfigDict:
  """Returns a copy of a config with another mesh and batch size."""
  changed = config.copy_and_resolve_references().unlock()
  changed.mesh.data, changed.mesh.fsdp, changed.batch_size = data, fsdp, batch_size
  return changed.lock()


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What to compile.

  Attributes:
    program: one of `programs.PROGRAMS`.
    effort: see `ahead.compile_lowered`.
    search: the limit of compilations for the largest batch.
    canvas: height and width of the original images, for evaluations and predictions.
  """

  program: str = "train"
  effort: str = "full"
  search: int = 0
  canvas: tuple[int, int] = (640, 640)


def make_plan(config: ConfigDict, topology: chips.Topology, wanted: Wanted) -> Plan:
  """Compiles a program of a config for a slice, and searches for the largest batch.

  Args:
    config: complete; its mesh is that of the slice, and its batch size that of the program.
    topology: the slice.
    wanted: the program, and how to compile it.

  Raises:
    InputError: the config does not suit the slice, the slice is unknown, or libtpu is missing.
  """
  devices = ahead.open_topology(topology)
  program = ahead.make_program(config, vocab_size(config), devices)
  parameters = sum(x.size for x in jax.tree.leaves(program.shapes.variables["params"]))
  mesh = dict(program.mesh.shape)
  _log(
    f"compiling {wanted.program} for {topology.name}, {mesh_name(mesh)}, batch {config.batch_size}"
  )
  refused, cost, seconds = "", None, 0.0
  try:
    with announce("  compiling", every=60.0):
      lowered = programs.lower(wanted.program, program, wanted.canvas)
      compiled, seconds = ahead.compile_lowered(lowered, devices[0], wanted.effort)
    cost = estimate_cost(wanted.program, config, compiled, topology)
  except ahead.DoesNotFitError as error:
    refused = " ".join(str(error).split("\n\n")[0].split())
  largest = _search(config, topology, devices, wanted) if wanted.search else None
  return Plan(
    wanted.program,
    topology.name,
    topology.chips,
    len({device.process_index for device in devices}),
    mesh,
    config.batch_size,
    parameters,
    config.model.dtype,
    wanted.effort,
    seconds,
    refused,
    cost,
    largest,
  )


def _search(
  config: ConfigDict, topology: chips.Topology, devices: list[Any], wanted: Wanted
) -> LargestBatch:
  def needs(batch_per_chip: int) -> float | None:
    batch_size = batch_per_chip * topology.chips
    _log(f"  trying a batch of {batch_per_chip} per chip")
    candidate = with_mesh(config, config.mesh.data, config.mesh.fsdp, batch_size)
    program = ahead.make_program(candidate, vocab_size(candidate), devices)
    try:
      lowered = programs.lower(wanted.program, program, wanted.canvas)
      compiled, _ = ahead.compile_lowered(lowered, devices[0], "quick")
    except ahead.DoesNotFitError:
      return None
    return float(memory_of(compiled, topology.chip).total)

  unit = config.grad_accum_steps * config.decode_every
  start = max(unit, config.batch_size // topology.chips // unit * unit)
  return find_largest(needs, float(topology.chip.memory), start, unit, wanted.search)


def _log(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
