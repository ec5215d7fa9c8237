"""What a compiled step of training needs on a chip, and the time that it cannot beat."""

import dataclasses
import math
from typing import Any

import jax

from input_pipeline.common.errors import InputError
from mail_jax.hardware import chips, flops
from mail_jax.plan import collectives, hlo, products, traffic
from mail_jax.plan.ahead import compiler_version
from mail_jax.train.program import Program


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
      f"libtpu {compiler_version()} compiled what JAX {jax.__version__} cannot read; "
      f"take the libtpu of requirements-plan.txt ({str(error).splitlines()[0]})"
    ) from error
  assert text is not None  # the compiler of TPUs gives it
  return text


def estimate(program: Program, compiled: jax.stages.Compiled, topology: chips.Topology) -> Estimate:
  """Reads a compiled step."""
  config, chip = program.config, topology.chip
  module = hlo.parse(_text(compiled))
  ours = flops.train_step_flops(config) / topology.chips
  costs: Any = compiled.cost_analysis()
  xla = costs["flops"] + products.flops_of_further_rounds(module)
  moved = traffic.memory_bytes(module)
  done = products.product_flops(module)
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
