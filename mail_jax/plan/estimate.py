"""What a compiled step of training needs on a chip, and the time that it cannot beat."""

import dataclasses
import math
import pathlib
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import open_tokenizer
from mail_jax.hardware import chips, flops
from mail_jax.plan import ahead, collectives, costs, hlo
from mail_jax.plan.largest_batch import LargestBatch, find_largest
from mail_jax.train.program import Program

# Word pieces of bert-base-uncased, which ViLT uses.
_BERT_VOCABULARY = 30522


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on a chip.

  Attributes:
    arguments: the state and the chip's share of the batch.
    temporaries: what is needed in between.
    output: the new state.
    aliased: the part of the output that takes the place of arguments.
    code: the program itself.
    total: all of them at once.
    available: what a program may use.
  """

  arguments: int
  temporaries: int
  output: int
  aliased: int
  code: int
  total: int
  available: int


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A step of training on one chip; bytes, operations and seconds of one step.

  Attributes:
    memory: see `Memory`.
    flops: operations of the products of our model, counted by hand (`mail_jax.hardware.flops`).
    flops_compiled: those of the products in the compiled program; more where it computes something again rather than
      keep it.
    flops_xla: all operations that XLA counts, those on single elements too; loops as often as they go round.
    hbm_bytes: that the program moves between HBM and the cores.
    collectives: by kind: how many, of how many bytes, and bytes that a chip sends.
    sent_bytes: by all collectives.
    intensity: operations a byte of HBM; `ridge` is where a chip is as busy with both.
    seconds: that the program's products, its traffic with HBM and that between the chips need at least, each by itself.
    bound: which of them needs most.
  """

  memory: Memory
  flops: float
  flops_compiled: float
  flops_xla: float
  hbm_bytes: int
  collectives: dict[str, collectives.Collective]
  sent_bytes: float
  intensity: float
  ridge: float
  seconds: dict[str, float]
  bound: str


@dataclasses.dataclass(frozen=True)
class Plan:
  """A config on a slice.

  Attributes:
    topology, chips, hosts: the slice.
    mesh: how it is used: `data` x `fsdp`.
    batch_size: over all chips.
    parameters: of the model.
    dtype: of its products.
    effort: that the compiler took.
    compile_seconds: that it took here.
    refused: what it says where the step does not fit; `estimate` is None then.
    estimate: what the step needs on a chip.
    largest_batch: a chip; None where it was not searched.
  """

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
  """Reads what the compiler says of memory."""
  said: Any = compiled.memory_analysis()
  arguments, output = said.argument_size_in_bytes, said.output_size_in_bytes
  temporaries, aliased = said.temp_size_in_bytes, said.alias_size_in_bytes
  code = said.generated_code_size_in_bytes
  total = arguments + temporaries + output - aliased + code
  return Memory(arguments, temporaries, output, aliased, code, total, chip.memory)


def _text(compiled: jax.stages.Compiled) -> str:
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    raise InputError(
      f"libtpu {ahead.compiler_version()} compiled what JAX {jax.__version__} cannot read; "
      f"take the libtpu of requirements-plan.txt ({str(error).splitlines()[0]})"
    ) from error
  assert text is not None  # the compiler of TPUs gives it
  return text


def estimate_step(
  program: Program, compiled: jax.stages.Compiled, topology: chips.Topology
) -> Estimate:
  """Reads a compiled step."""
  config, chip = program.config, topology.chip
  module = hlo.parse(_text(compiled))
  ours = flops.train_step_flops(config) / topology.chips
  analysis: Any = compiled.cost_analysis()
  xla = analysis["flops"] + costs.flops_of_further_rounds(module)
  moved = costs.memory_bytes(module)
  done = costs.product_flops(module)
  counted = collectives.count_collectives(module, topology.chips)
  sent = math.fsum(kind.sent for kind in counted.values())
  peak = chips.peak_flops(chip, config.model.dtype)
  links = topology.links * chip.link_bandwidth
  seconds = {
    "compute": done / peak,
    "hbm": moved / chip.bandwidth,
    "interconnect": sent / links if sent else 0.0,
  }
  return Estimate(
    memory=memory_of(compiled, chip),
    flops=ours,
    flops_compiled=done,
    flops_xla=xla,
    hbm_bytes=moved,
    collectives=counted,
    sent_bytes=sent,
    intensity=done / moved,
    ridge=peak / chip.bandwidth,
    seconds=seconds,
    bound=max(seconds, key=seconds.__getitem__),
  )


def mesh_name(mesh: dict[str, int]) -> str:
  """`data 4 x fsdp 4`."""
  return " x ".join(f"{name} {size}" for name, size in mesh.items())


def vocab_size(config: ConfigDict) -> int:
  """Word pieces of the tokenizer that training would have, as far as that can be known without data or weights."""
  if pathlib.Path(config.tokenizer.partition(":")[2]).is_file():
    return open_tokenizer(config.tokenizer).vocab_size
  return _BERT_VOCABULARY if config.init.startswith("vilt:") else config.vocab_size


def with_mesh(config: ConfigDict, data: int, fsdp: int, batch_size: int) -> ConfigDict:
  """A copy of a config on another mesh, with another batch."""
  changed = config.copy_and_resolve_references().unlock()
  changed.mesh.data, changed.mesh.fsdp, changed.batch_size = data, fsdp, batch_size
  return changed.lock()


def make_plan(config: ConfigDict, topology: chips.Topology, effort: str, search: int) -> Plan:
  """Compiles the step of a config for a slice, and searches the largest batch.

  Args:
    config: a whole config; its mesh is that of the slice.
    topology: the slice.
    effort: see `ahead.compile_step`.
    search: compilations to spend on the largest batch.

  Raises:
    InputError: the config does not fit the slice, or there is no such slice or no compiler.
  """
  devices = ahead.open_topology(topology)
  program = ahead.make_program(config, vocab_size(config), devices)
  parameters = sum(x.size for x in jax.tree.leaves(program.shapes.variables["params"]))
  mesh = dict(program.mesh.shape)
  _tell(f"compiling for {topology.name}, {mesh_name(mesh)}, batch {config.batch_size}")
  refused, found, seconds = "", None, 0.0
  try:
    compiled, seconds = ahead.compile_step(program, effort)
    found = estimate_step(program, compiled, topology)
  except ahead.DoesNotFitError as error:
    refused = " ".join(str(error).split("\n\n")[0].split())
  largest = _search(config, topology, devices, search) if search else None
  return Plan(
    topology.name,
    topology.chips,
    len({device.process_index for device in devices}),
    mesh,
    config.batch_size,
    parameters,
    config.model.dtype,
    effort,
    seconds,
    refused,
    found,
    largest,
  )


def _search(
  config: ConfigDict, topology: chips.Topology, devices: list[Any], budget: int
) -> LargestBatch:
  def needs(batch_per_chip: int) -> float | None:
    batch_size = batch_per_chip * topology.chips
    _tell(f"  does a batch of {batch_per_chip} a chip fit?")
    tried = with_mesh(config, config.mesh.data, config.mesh.fsdp, batch_size)
    program = ahead.make_program(tried, vocab_size(tried), devices)
    try:
      compiled, _ = ahead.compile_step(program, "quick")
    except ahead.DoesNotFitError:
      return None
    return float(memory_of(compiled, topology.chip).total)

  unit = config.grad_accum_steps * config.decode_every
  start = max(unit, config.batch_size // topology.chips // unit * unit)
  return find_largest(needs, float(topology.chip.memory), start, unit, budget)


def _tell(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
