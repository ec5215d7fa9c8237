"""Formats plans as text: one in a few lines, several as a table."""

import re

from mail_jax.plan.estimate import Plan, mesh_name

_GIB = 2**30


def describe(plan: Plan) -> str:
  """Formats one plan in a few lines."""
  lines = [
    f"{plan.topology}: {plan.chips} chips, {plan.hosts} hosts, {mesh_name(plan.mesh)}, "
    f"batch {plan.batch_size} ({plan.batch_size / plan.chips:g} per chip), "
    f"{plan.parameters / 1e6:.1f} M parameters, {plan.dtype} multiplied as bf16"
  ]
  cost = plan.estimate
  if cost is None:
    lines.append(f"  does not fit: {plan.refused}")
  else:
    lines += [*_memory_lines(plan), *_work_lines(plan)]
    seconds = ", ".join(f"{name} {value * 1e3:.2f}" for name, value in cost.seconds.items())
    lines.append(
      f"  lower bound on step time: {cost.seconds[cost.bound] * 1e3:.2f} ms ({cost.bound}); each "
      f"alone, in ms: {seconds}"
    )
    lines.append(f"  compiled in {plan.compile_seconds:.0f} s ({plan.effort} effort)")
  if plan.largest_batch:
    lines.append(f"  largest batch: {_largest(plan)}")
  return "\n".join(lines)


def _memory_lines(plan: Plan) -> list[str]:
  assert plan.estimate
  memory = plan.estimate.memory
  return [
    f"  memory per chip: {_gib(memory.total)} of {_gib(memory.available)} GiB "
    f"({memory.total / memory.available:.0%}): arguments {_gib(memory.arguments)}, temporaries "
    f"{_gib(memory.temporaries)}, output {_gib(memory.output)} of which {_gib(memory.aliased)} "
    f"replace arguments, program {_gib(memory.code)}"
  ]


def _work_lines(plan: Plan) -> list[str]:
  cost = plan.estimate
  assert cost
  lines = [
    f"  GFLOP per chip: {cost.flops / 1e9:.5g} in the model's products, counted by hand; "
    f"{cost.flops_compiled / 1e9:.5g} in the program's; {cost.flops_xla / 1e9:.5g} in all its "
    f"operations, counted by XLA ({cost.flops_xla / cost.flops - 1:+.1%})",
    f"  HBM traffic: {cost.hbm_bytes / 1e9:.4g} GB; {cost.intensity:.3g} FLOP per byte; from "
    f"{cost.ridge:.0f} on, the products are the bound",
  ]
  for kind, total in cost.collectives.items():
    lines.append(
      f"  {kind}: {total.count}, together {total.bytes / 1e6:.1f} MB; a chip sends "
      f"{total.sent / 1e6:.1f} MB"
    )
  return lines


def _gib(count: int) -> str:
  return f"{count / _GIB:.2f}"


def _largest(plan: Plan) -> str:
  """Returns text such as `64 per chip, 1024 in all (72 per chip do not fit; 5 compilations)`."""
  largest = plan.largest_batch
  assert largest
  if not largest.fits:
    return f"{largest.too_large} per chip do not fit ({largest.compilations} compilations)"
  beyond = f"{largest.too_large} per chip do not fit" if largest.too_large else "no limit found"
  return (
    f"{largest.fits} per chip, {largest.fits * plan.chips} in all "
    f"({beyond}; {largest.compilations} compilations)"
  )


def table(plans: list[Plan]) -> str:
  """Formats plans as a Markdown table, one row each."""
  header = [
    "slice",
    "data x fsdp",
    "batch per chip",
    "GiB per chip",
    "of",
    "TFLOP by hand",
    "program",
    "XLA",
    "HBM GB",
    "sent MB",
    "compute ms",
    "HBM ms",
    "links ms",
    "bound",
    "largest per chip",
  ]
  rows = [header, ["---"] * len(header), *(_row(plan) for plan in plans)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
  return "\n".join(
    "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
    for row in rows
  )


def _row(plan: Plan) -> list[str]:
  row = [plan.topology, f"{plan.mesh['data']} x {plan.mesh['fsdp']}"]
  row.append(f"{plan.batch_size / plan.chips:g}")
  cost = plan.estimate
  if cost is None:
    needed = re.search(r"Used ([\d.]+)G of ([\d.]+)G|\(([\d.]+)G\).*\(([\d.]+)G\)", plan.refused)
    numbers = [text for text in needed.groups() if text] if needed else ["?", "?"]
    row += [f"{numbers[0]}: does not fit", numbers[1], *["-"] * 9]
  else:
    memory, seconds = cost.memory, cost.seconds
    row += [_gib(memory.total), _gib(memory.available)]
    row.append(f"{cost.flops / 1e12:.3f}")
    row += [f"{count / cost.flops - 1:+.1%}" for count in (cost.flops_compiled, cost.flops_xla)]
    row += [f"{cost.hbm_bytes / 1e9:.1f}", f"{cost.sent_bytes / 1e6:.0f}"]
    row += [f"{seconds[name] * 1e3:.2f}" for name in ("compute", "hbm", "interconnect")]
    row.append(cost.bound)
  row.append(str(plan.largest_batch.fits) if plan.largest_batch else "-")
  return row
