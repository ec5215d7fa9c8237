"""Plans as text: one of them in some lines, several as a table."""

import re

from mail_jax.plan.estimate import Plan, mesh_name

_GIB = 2**30


def describe(plan: Plan) -> str:
  """One plan in a few lines."""
  lines = [
    f"{plan.topology}: {plan.chips} chips, {plan.hosts} hosts, {mesh_name(plan.mesh)}, "
    f"batch {plan.batch_size} ({plan.batch_size / plan.chips:g} a chip), "
    f"{plan.parameters / 1e6:.1f} M parameters, {plan.dtype} multiplied as bf16"
  ]
  found = plan.estimate
  if found is None:
    lines.append(f"  does not fit: {plan.refused}")
  else:
    lines += [*_memory_lines(plan), *_work_lines(plan)]
    seconds = ", ".join(f"{name} {value * 1e3:.2f}" for name, value in found.seconds.items())
    lines.append(
      f"  a step cannot beat   {found.seconds[found.bound] * 1e3:.2f} ms ({found.bound}); each alone, ms: {seconds}"
    )
    lines.append(f"  compiled in          {plan.compile_seconds:.0f} s ({plan.effort} effort)")
  if plan.largest_batch:
    lines.append(f"  largest batch        {_largest(plan)}")
  return "\n".join(lines)


def _memory_lines(plan: Plan) -> list[str]:
  assert plan.estimate
  memory = plan.estimate.memory
  return [
    f"  memory a chip, GiB   {_gib(memory.total)} of {_gib(memory.available)} ({memory.total / memory.available:.0%}): "
    f"arguments {_gib(memory.arguments)}, temporaries {_gib(memory.temporaries)}, "
    f"output {_gib(memory.output)} of which {_gib(memory.aliased)} in place of arguments, program {_gib(memory.code)}"
  ]


def _work_lines(plan: Plan) -> list[str]:
  found = plan.estimate
  assert found
  lines = [
    f"  GFLOP a chip         {found.flops / 1e9:.5g} in the products of the model, by hand; "
    f"{found.flops_compiled / 1e9:.5g} in those of the program; {found.flops_xla / 1e9:.5g} with all else, by XLA "
    f"({found.flops_xla / found.flops - 1:+.1%})",
    f"  HBM traffic          {found.hbm_bytes / 1e9:.4g} GB; {found.intensity:.3g} FLOP a byte, "
    f"of {found.ridge:.0f} that keep the products busy",
  ]
  for kind, total in found.collectives.items():
    lines.append(
      f"  {kind:20s} {total.count} of {total.bytes / 1e6:.1f} MB together; a chip sends {total.sent / 1e6:.1f} MB"
    )
  return lines


def _gib(count: int) -> str:
  return f"{count / _GIB:.2f}"


def _largest(plan: Plan) -> str:
  """`64 a chip, 1024 in all (72 a chip does not fit; 5 compilations)`."""
  largest = plan.largest_batch
  assert largest
  if not largest.fits:
    return f"{largest.too_large} a chip does not fit ({largest.compilations} compilations)"
  beyond = f"{largest.too_large} a chip does not fit" if largest.too_large else "no limit found"
  return (
    f"{largest.fits} a chip, {largest.fits * plan.chips} in all "
    f"({beyond}; {largest.compilations} compilations)"
  )


def table(plans: list[Plan]) -> str:
  """Plans as a table, one row each; Markdown."""
  header = [
    "slice",
    "data x fsdp",
    "batch a chip",
    "GiB per chip",
    "of",
    "TFLOP by hand",
    "program",
    "XLA",
  ]
  header += ["HBM GB", "sent MB", "compute ms", "HBM ms", "links ms", "bound", "largest a chip"]
  rows = [header, ["---"] * len(header), *(_row(plan) for plan in plans)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
  return "\n".join(
    "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
    for row in rows
  )


def _row(plan: Plan) -> list[str]:
  row = [plan.topology, f"{plan.mesh['data']} x {plan.mesh['fsdp']}"]
  row.append(f"{plan.batch_size / plan.chips:g}")
  found = plan.estimate
  if found is None:
    needed = re.search(r"Used ([\d.]+)G of ([\d.]+)G|\(([\d.]+)G\).*\(([\d.]+)G\)", plan.refused)
    numbers = [text for text in needed.groups() if text] if needed else ["?", "?"]
    row += [f"{numbers[0]}: does not fit", numbers[1], *["-"] * 9]
  else:
    memory, seconds = found.memory, found.seconds
    row += [_gib(memory.total), _gib(memory.available)]
    row.append(f"{found.flops / 1e12:.3f}")
    row += [f"{count / found.flops - 1:+.1%}" for count in (found.flops_compiled, found.flops_xla)]
    row += [f"{found.hbm_bytes / 1e9:.1f}", f"{found.sent_bytes / 1e6:.0f}"]
    row += [f"{seconds[name] * 1e3:.2f}" for name in ("compute", "hbm", "interconnect")]
    row.append(found.bound)
  row.append(str(plan.largest_batch.fits) if plan.largest_batch else "-")
  return row
