"""`mail_jax.plan` as users run it, with this machine's CPU in place of a slice and its compiler."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import pathlib
import re

import jax
import pytest
import tiny_run

from input_pipeline.common.errors import InputError
from mail_jax.config import recipe
from mail_jax.hardware import chips, flops
from mail_jax.plan import ahead, estimate, programs
from mail_jax.plan import command as plan
from mail_jax.plan.estimate import LargestBatch, Wanted


def _check_decoder(compiled: float, by_hand: float) -> None:
  """Checks the products of the decoder, whose folded kernels multiply zeros, too."""
  assert by_hand < compiled < 4 * by_hand


@pytest.fixture
def one_chip(monkeypatch):
  """A slice of one chip is one CPU device."""
  monkeypatch.setattr(ahead, "open_topology", lambda topology: jax.devices()[: topology.chips])


def run(*more: str, topology: str = "v5e:1x1", config: str = tiny_run.__file__) -> None:
  plan.main(["--config", config, "--topology", topology, *more])


def test_a_plan_is_printed_and_written(one_chip, tmp_path, capsys):
  smaller = ("--config.max_instances=0", "--config.batch_size=4")  # sooner compiled
  run(*smaller, "--search", "0", "--by", "part", "--json", str(tmp_path / "plan.json"))
  printed = capsys.readouterr().out
  report = json.loads((tmp_path / "plan.json").read_text())
  (row,) = report["plans"]
  assert report["chips"]["v5e"]["flops"] == 197e12
  assert (row["topology"], row["chips"], row["hosts"]) == ("v5e:1x1", 1, 1)
  assert row["mesh"] == {"slice": 1, "data": 1, "fsdp": 1}
  assert (row["batch_size"], row["largest_batch"]) == (4, None)
  actual, memory = row["estimate"], row["estimate"]["memory"]
  # Parameters, their average and two moments in float32; image and target of four examples.
  state, pixels = 4 * 4 * row["parameters"], 4 * 32 * 32 * (3 + 1)
  assert state + pixels < memory["arguments"] < 1.1 * (state + pixels)
  assert (
    memory["total"]
    == sum(memory[k] for k in ("arguments", "temporaries", "output", "code")) - memory["aliased"]
  )
  assert memory["aliased"] > 0.9 * memory["output"]  # the old state's memory is that of the new one
  config = tiny_run.get_config()
  config.batch_size, config.max_instances = 4, 0
  assert actual["flops"] == flops.train_step_flops(config)
  assert actual["collectives"] == {}
  assert actual["seconds"]["compute"] == actual["flops_compiled"] / 197e12
  assert actual["seconds"]["hbm"] == actual["hbm_bytes"] / 819e9
  assert actual["bound"] == max(actual["seconds"], key=actual["seconds"].get)
  # A CPU's compiler has no estimate of time, but the parts have their products.
  assert "estimated by the compiler" not in printed
  by_part = {name: part["flops"] for name, part in actual["parts"].items()}
  assert sum(by_part.values()) == pytest.approx(actual["flops_compiled"])
  by_hand = {
    part: 4 * sum(p.flops * (1 + p.gradients) for p in flops.products(config) if part in p.part)
    for part in ("encoder", "decoder")
  }
  assert by_part["encoder"] == pytest.approx(by_hand["encoder"], rel=0.05)
  # Of the gradients of its kernels, some have no name in the program of a CPU.
  decoder = by_part["decoder"] + by_part["unattributed"]
  _check_decoder(decoder, by_hand["decoder"])
  assert actual["flops_compiled"] - decoder == pytest.approx(
    actual["flops"] - by_hand["decoder"], rel=0.05
  )
  for part in by_hand:
    assert re.search(rf"^\| {part} +\| 0.00 +\| - .*\| {by_part[part] / 1e12:.2f}", printed, re.M)
  assert "1 chips, 1 hosts, data 1 x fsdp 1, batch 4 (4 per chip)" in printed
  assert f"wrote {tmp_path / 'plan.json'}" in printed


@pytest.mark.parametrize(
  ("program", "rows", "more"), [("evaluate", 8, ["--batch_per_chip", "8"]), ("predict", 1, [])]
)
def test_evaluations_and_predictions_are_planned(one_chip, tmp_path, capsys, program, rows, more):
  run("--program", program, *more, "--canvas", "48x64", "--search", "0",
      "--config.max_instances=0", "--json", str(tmp_path / "plan.json"))  # fmt: skip
  assert f"{program} on v5e:1x1" in capsys.readouterr().out
  (row,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
  assert (row["program"], row["batch_size"]) == (program, rows)
  config = tiny_run.get_config()
  config.max_instances = 0
  actual, forward = row["estimate"], rows * flops.forward_flops(config)
  assert actual["flops"] == forward
  # Logits are resized to the original images, along one side and then along the other.
  size = config.image_size
  last = 48 * size * 64
  fewest, most = (2 * rows * (last + size * size * side) for side in (48, 64))
  by_hand = rows * sum(p.flops for p in flops.products(config) if "decoder" in p.part)
  decoder = actual["parts"]["decoder"]["flops"]
  _check_decoder(decoder, by_hand)
  others = actual["flops_compiled"] - decoder
  assert 0.99 * (forward - by_hand + fewest) < others < 1.01 * (forward - by_hand + most)
  # No optimizer and no average; the photos and, to compare, the original targets.
  inputs = rows * (size * size * 3 + (program == "evaluate") * 48 * 64)
  expected = 4 * row["parameters"] + inputs
  assert expected < actual["memory"]["arguments"] < 1.05 * expected


def test_the_batch_of_an_evaluation_is_rounded_up_to_the_chips():
  config = plan.for_program(tiny_run.get_config(), "evaluate")
  topology = chips.parse_topology("v5e:4x16")
  ((case, _),) = plan.cases(config, [topology], 0, False, "evaluate")
  assert (case.eval_batch_size, case.batch_size) == (16, 64)


def test_slices_and_splits_make_a_table(one_chip, monkeypatch, tmp_path, capsys):
  def refuse(lowered, device, effort):
    raise ahead.DoesNotFitError(
      "RESOURCE_EXHAUSTED: Used 17.25G of 15.75G hbm. Exceeded by 1.5G.\n\nMore"
    )

  monkeypatch.setattr(programs, "lower", lambda kind, program, canvas: program)
  monkeypatch.setattr(ahead, "compile_lowered", refuse)
  monkeypatch.setattr(ahead, "open_topology", lambda t: jax.devices()[:1] * t.chips)
  monkeypatch.setattr(ahead, "make_program", lambda config, vocab, devices: _program(config))
  run("--topology", "v4:2x2x1", "--sweep", "--json", str(tmp_path / "p.json"), topology="v5e:2x2")
  printed = capsys.readouterr().out
  rows = re.findall(
    r"^\| (v\S+) +\| (data \d x fsdp \d) +\| (\S+) +\| (.*?) +\| (\S+)", printed, re.M
  )
  refused, of = "17.25: does not fit", "15.75"
  assert [row[:2] for row in rows] == [
    (name, f"data {4 // fsdp} x fsdp {fsdp}")
    for name in ("v5e:2x2", "v4:2x2x1")
    for fsdp in (1, 2, 4)
  ]
  assert {row[2:] for row in rows} == {("2", refused, of)}
  reasons = {row["refused"] for row in json.loads((tmp_path / "p.json").read_text())["plans"]}
  assert reasons == {"RESOURCE_EXHAUSTED: Used 17.25G of 15.75G hbm. Exceeded by 1.5G."}


@dataclasses.dataclass
class _Mesh:
  shape: dict[str, int]


@dataclasses.dataclass
class _Shapes:
  variables: dict


@dataclasses.dataclass
class _Program:
  config: object
  mesh: _Mesh
  shapes: _Shapes


def _program(config) -> _Program:
  """Stands for one on devices that are not there."""
  fsdp = config.mesh.fsdp
  mesh = _Mesh({"slice": 1, "data": 4 // fsdp, "fsdp": fsdp})
  return _Program(config, mesh, _Shapes({"params": {}}))


def test_the_largest_batch_is_searched_from_the_given_one_in_steps_that_divide(
  one_chip, monkeypatch, capsys
):
  asked = []

  def compile_lowered(program, device, effort):
    asked.append((program.config.batch_size, effort))
    if program.config.batch_size > 10:
      raise ahead.DoesNotFitError("RESOURCE_EXHAUSTED")
    return None, 0.0

  @dataclasses.dataclass
  class Total:
    total: int = 10**9

  monkeypatch.setattr(programs, "lower", lambda kind, program, canvas: program)
  monkeypatch.setattr(ahead, "compile_lowered", compile_lowered)
  monkeypatch.setattr(ahead, "make_program", lambda config, vocab, devices: _program(config))
  monkeypatch.setattr(estimate, "estimate_cost", lambda *args: None)
  monkeypatch.setattr(estimate, "memory_of", lambda *args: Total())
  config = tiny_run.get_config()
  config.grad_accum_steps, config.batch_size = 2, 4
  actual = estimate.make_plan(
    config.lock(), chips.parse_topology("v5e:1x1"), Wanted(search=9)
  ).largest_batch
  assert actual == LargestBatch(10, 12, len(asked) - 1)
  assert [effort for _, effort in asked] == ["full"] + ["quick"] * actual.compilations
  assert all(batch % 2 == 0 for batch, _ in asked)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"topology": "v5e"}, "--topology v5e: write CHIP:SIDES, such as v5e:4x4"),
    ({"topology": "v9:2x2"}, "unknown chip 'v9'; known are v4, v5e, v5p, v6e, a100, h100"),
    ({"topology": "*v5e:2x2"}, "2*v5e:4x4 (two slices), h100:8 or h100:4x8 (four hosts)"),
    ({"topology": "0*v5e:2x2"}, "such as v5e:4x4, or 2*v5e:4x4 for two slices"),
    ({"topology": "h100:16"}, "a host has 1 to 8 GPUs: write h100:8, or h100:4x8 for four hosts"),
    ({"topology": "h100:0x8"}, "a host has 1 to 8 GPUs"),
    ({"topology": "h100:2x2x2"}, "a host has 1 to 8 GPUs"),
    ({"topology": "v5e:4x4x4"}, "a slice of v5e has 2 sides, such as v5e:4x4"),
    ({"topology": "v4:0x4x4"}, "a slice of v4 has 3 sides"),
    ({"config": "nowhere.py"}, "--config nowhere.py: not a file and not a recipe"),
  ],
)
def test_invalid_arguments_are_reported_at_once(arguments, message):
  with pytest.raises(InputError, match=re.escape(message)):
    run(**arguments)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--batch_per_chip", "-1"], "--batch_per_chip -1: it must be at least 0"),
    (["--search", "-2"], "--search -2: it must be at least 0"),
    (["--config.mesh.fsdp=2"], "config.mesh: data -1 x fsdp 2 is not 1, the number of devices"),
    (
      ["--config.grad_accum_steps=3"],
      "config.batch_size 8 is not a multiple of 1 devices times config.grad_accum_steps 3",
    ),
    (["--canvas", "640"], "--canvas 640: write HEIGHTxWIDTH in pixels, such as 640x640"),
    (["--program", "predict", "--sweep"], "--sweep: a prediction runs on one chip; leave it out"),
    (["--json", "nowhere/plan.json"], "the folder nowhere does not exist"),
    (["--config.nothing=3"], "unknown key 'nothing'"),
  ],
)
def test_options_that_do_not_fit_are_told(one_chip, options, message):
  with pytest.raises(InputError, match=re.escape(message)):
    run(*options)


def test_without_the_compiler_one_line_says_how_to_get_it(monkeypatch):
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"plan needs the TPU compiler, libtpu.*make plan"):
    run(topology="v5e:4x4")


def test_without_the_compiler_of_gpus_as_well(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "version", missing)
  with pytest.raises(
    InputError, match=r"plan needs the GPU compiler, jax-cuda13-pjrt.*make plan.*\.xla_gpu"
  ):
    run(topology="h100:8")


def test_the_vocabulary_is_that_of_the_tokenizer_or_the_weights(tmp_path):
  config = recipe("base")
  assert estimate.vocab_size(config) == 512
  assert estimate.vocab_size(recipe("refcoco", "unc")) == 30522  # BERT's, as ViLT has it
  vocab = pathlib.Path(tmp_path / "vocab.txt")
  vocab.write_text(
    "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "left", "right"]) + "\n"
  )
  config.tokenizer = f"wordpiece:{vocab}"
  assert estimate.vocab_size(config) == 7
  assert {estimate.vocab_size(recipe("scale", size)) for size in ("vit_b", "vit_l", "vit_h")} == {
    30522
  }


def _of_kind(kind: type) -> list:
  return [chip for chip in chips.CHIPS.values() if isinstance(chip, kind)]


def test_published_figures_hold_together():
  for chip in chips.CHIPS.values():
    # The network is the slowest, then come links.
    assert chip.network_bandwidth < chip.link_bandwidth < chip.bandwidth
    assert all(source.startswith("https://") for source in chip.sources)
  for chip in _of_kind(chips.Tpu):
    assert 0.9 < chip.memory / chip.memory_published < 1.01
    # Each product of bf16 needs some hundred operations a byte to keep its chip busy.
    assert 150 < chip.flops / chip.bandwidth < 600
    # Each core has units that multiply 4 x 128 x 128 numbers in a cycle; v6e's are twice as wide.
    side = 256 if chip.name == "v6e" else 128
    assert 2 * 4 * side**2 * chip.cores * chip.clock == pytest.approx(chip.flops, rel=0.003)
  both_ways = {c.name: 2 * 2 * c.dimensions * c.link_bandwidth / 1e9 for c in _of_kind(chips.Tpu)}
  assert both_ways == {
    "v4": 600,
    "v5e": 400,
    "v5p": 1200,
    "v6e": 800,
  }  # Google's "bidirectional, per chip"
  # A host of v5e or v6e has eight chips, and 2 x 100 or 4 x 200 Gbit/s.
  network = {name: 8 * 8 * chips.CHIPS[name].network_bandwidth / 1e9 for name in ("v5e", "v6e")}
  assert network == {"v5e": 200, "v6e": 800}


def test_published_figures_of_gpus_hold_together():
  for gpu in _of_kind(chips.Gpu):
    assert gpu.memory / gpu.memory_published == pytest.approx(0.75)
    assert gpu.flops / gpu.flops_float32 == pytest.approx(2, rel=0.02)
    # A warp takes 32 lanes; a block has at most what is left of a kilobyte for the system.
    assert gpu.lanes % 32 == 0
    assert 99 * 1024 <= gpu.shared_memory - 1024 <= 227 * 1024
  nvlink = {name: 2 * chips.CHIPS[name].link_bandwidth / 1e9 for name in ("a100", "h100", "b200")}
  assert nvlink == {"a100": 600, "h100": 900, "b200": 1800}


@pytest.mark.parametrize(
  ("name", "count", "links"),
  [
    ("v5e:1x1", 1, 0), ("v5e:2x4", 8, 2), ("v5e:4x4", 16, 2),
    ("v5e:16x16", 256, 4), ("v5e:8x16", 128, 3),
    ("v6e:16x16", 256, 4), ("v4:2x2x1", 4, 2), ("v4:4x4x4", 64, 6), ("v5p:4x4x8", 128, 6),
    ("2*v5e:4x4", 32, 2), ("4*v5p:4x4x4", 256, 6),
    ("h100:1", 1, 0), ("h100:8", 8, 1), ("h100:4x8", 32, 1), ("l40s:2x1", 2, 0),
  ],
)  # fmt: skip
def test_a_corner_has_one_link_a_line_and_two_a_ring(name, count, links):
  topology = chips.parse_topology(name)
  assert (topology.name, topology.chips, topology.links) == (name, count, links)


def test_splits_follow_the_sides_of_the_slice():
  expected = {
    "v5e:4x4": [1, 4, 16],
    "v5p:4x4x8": [1, 4, 16, 128],
    "v4:2x2x1": [1, 2, 4],
    # Not across slices, or hosts of GPUs.
    "2*v5e:4x4": [1, 4, 16],
    "h100:4x8": [1, 8],
  }
  assert {name: plan.splits(chips.parse_topology(name)) for name in expected} == expected


def test_one_slice_of_several_or_one_host_is_named_without_their_number():
  assert chips.parse_topology("1*v5e:4x4").name == "v5e:4x4"
  assert chips.parse_topology("1*h100:1x8").name == "h100:8"
