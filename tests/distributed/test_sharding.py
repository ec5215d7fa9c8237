"""Training gives the same results on every mesh: one device, eight of one process, eight of two."""

import dataclasses
import math
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import mesh_training
import numpy as np
import pytest
import tiny_model
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from input_pipeline.common.errors import InputError
from mail_jax.config import recipe
from mail_jax.distributed import sharding
from mail_jax.distributed.sharding import make_mesh
from mail_jax.models.build import make_model
from mail_jax.plan import costs, hlo
from mail_jax.train.optim import make_optimizer_from
from mail_jax.train.program import build_program
from mail_jax.train.step import create_state

Results = dict[str, dict[str, np.ndarray]]
# The last one resumes twice, on another mesh and with another rule.
MESHES = ("8x1", "2x4", "8x1:zero1", "8x1,4x2:zero1,2x4")


def _start(folder: pathlib.Path, root, devices: int, *arguments: str) -> subprocess.Popen:
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  environment = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": flags}
  command = [sys.executable, mesh_training.__file__, str(folder), *arguments]
  return subprocess.Popen(command, env=environment, cwd=root, stderr=subprocess.PIPE)


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory, request) -> Results:
  """Results of one device, of eight in one process, and of two processes with four each.

  The number of devices is fixed when JAX starts, so all but the first run in other processes.
  """
  _skip_unless_there_is_one_device()
  one_process = tmp_path_factory.mktemp("one_process")
  started = [_start(one_process, request.config.rootpath, 8, "--text", *MESHES)]
  two_processes = tmp_path_factory.mktemp("two_processes")
  started += _start_two(
    two_processes, request.config.rootpath, "--text", "1x8"
  )  # sharded over both
  found = {"one device": mesh_training.train(mesh_training.make_config())}
  _wait(started)
  found |= _read("one_process", one_process) | _read("two_processes", two_processes)
  assert len(found) == 1 + len(MESHES) + 1
  return found


@pytest.mark.slow
def test_losses_are_the_same_where_each_of_two_processes_has_the_whole_model(tmp_path, request):
  _skip_unless_there_is_one_device()
  started = _start_two(tmp_path, request.config.rootpath, "2x4")
  results = {"one device": mesh_training.train(mesh_training.make_config())}
  _wait(started)
  results |= _read("two_processes", tmp_path)
  assert len(results) == 2
  test_losses_of_twenty_steps_are_the_same_on_every_mesh(results)
  test_parameters_and_batch_statistics_are_the_same_on_every_mesh(results)


@pytest.mark.slow
def test_losses_are_the_same_where_one_process_has_what_two_are_cut_across(tmp_path, request):
  _skip_unless_there_is_one_device()
  folders = {name: tmp_path / name for name in ("one_process", "two_processes")}
  for folder in folders.values():
    folder.mkdir()
  started = [_start(folders["one_process"], request.config.rootpath, 8, "1x8")]
  started += _start_two(folders["two_processes"], request.config.rootpath, "1x8")
  results = {"one device": mesh_training.train(mesh_training.make_config())}
  _wait(started)
  for name, folder in folders.items():
    results |= _read(name, folder)
  assert len(results) == 3
  test_losses_of_twenty_steps_are_the_same_on_every_mesh(results)
  test_parameters_and_batch_statistics_are_the_same_on_every_mesh(results)
  held = {mesh: int(result["bytes"]) for mesh, result in results.items()}
  assert held["two_processes 1x8"] == held["one_process 1x8"]


def _skip_unless_there_is_one_device() -> None:
  if jax.device_count() != 1:
    pytest.skip(f"compares with one device, and there are {jax.device_count()}")


def _start_two(folder: pathlib.Path, root, *arguments: str) -> list[subprocess.Popen]:
  port = str(_free_port())
  return [
    _start(folder, root, 4, *arguments, "--process", f"{i}/2", "--port", port) for i in range(2)
  ]


def _wait(started: list[subprocess.Popen]) -> None:
  for process in started:
    with process:
      error = process.communicate()[1].decode()
    assert process.returncode == 0, error


def _read(name: str, folder: pathlib.Path) -> Results:
  return {f"{name} {path.stem}": dict(np.load(path)) for path in folder.glob("*.npz")}


def test_losses_of_twenty_steps_are_the_same_on_every_mesh(results):
  single = results["one device"]
  names = [name for name in single if name.startswith("metrics/")]
  assert {name.split("/")[2] for name in names} >= {"loss", "bce", "dice", "selection"}
  assert (
    len(names) == mesh_training.STEPS * 6
  )  # The total, its parts, the norm of the gradient, skipped_steps.
  for mesh, other in results.items():
    for name in names:
      np.testing.assert_allclose(other[name], single[name], rtol=1e-5, err_msg=f"{mesh} {name}")
  assert len({float(single[f"metrics/{step}/loss"]) for step in range(20)}) == 20


def test_parameters_and_batch_statistics_are_the_same_on_every_mesh(results):
  single = results["one device"]
  names = [name for name in single if name.startswith(("variables/", "averaged/"))]
  assert (
    sum("batch_stats" in name for name in names) == 12
  )  # Three stages, and their moving averages.
  # The largest possible update is a scale too: some start at zero, with only rounding as gradient.
  moved = mesh_training.PEAK * mesh_training.STEPS
  for mesh, other in results.items():
    assert {name for name in other if name.startswith(("variables/", "averaged/"))} == set(names)
    for name in names:
      atol = 1e-5 * max(np.abs(single[name]).max(), moved)
      np.testing.assert_allclose(
        other[name], single[name], rtol=1e-5, atol=atol, err_msg=f"{mesh} {name}"
      )


def test_a_device_holds_its_share_of_what_is_cut_and_all_of_the_rest(results):
  held = {mesh: int(result["bytes"]) for mesh, result in results.items()}
  whole = held["one device"]
  assert held["one_process 8x1"] == whole
  parts_of = {"one_process 2x4": 4, "two_processes 1x8": 8, "one_process 8x1:zero1": 8}
  for mesh, parts in parts_of.items():
    assert held[mesh] < whole * (
      1 / parts + 0.15
    )  # Many arrays of so small a model are not worth sharding.


def test_what_is_evaluated_is_gathered_over_data_once_and_for_all_batches(results):
  held = {mesh: int(result["evaluated bytes"]) for mesh, result in results.items()}
  assert held["one_process 8x1:zero1"] == held["one device"]
  assert held["one_process 2x4"] < 0.5 * held["one device"]


def test_the_program_contains_the_shardings_that_were_asked_for(results):
  """Counts the sharding constraints: a missing one would go unnoticed."""
  text = str(results["one_process 2x4"]["lowered"])
  head, body = text[text.index("@main(") :].split("{\n", 1)
  arguments, outputs = (re.findall(r"sdy\.sharding<@mesh, (\[.*?\])>", x) for x in head.split("->"))
  batch = [place for place in arguments if place.startswith('[{"slice", "data", "fsdp"}')]
  assert len(batch) == 8  # The fields of a batch, with the jitter factors of each image.
  cut = _cut(4)
  # Parameters, their average, and the two moments of Adam.
  assert len([place for place in arguments if '{"fsdp"}' in place]) == 4 * len(cut)
  assert len([place for place in outputs if '{"fsdp"}' in place]) == 4 * len(cut)
  constraints = re.findall(r"sdy\.sharding_constraint .*? <@mesh, (\[.*?\])>", body)
  # Gathered before use, but for the word table, of which rows are sent; gradients are scattered.
  assert len(constraints) == 2 * len(cut) - 1
  assert len([place for place in constraints if '{"fsdp"}' in place]) == len(cut)
  assert (
    head.count("tf.aliasing_output") == len(arguments) - len(batch) - 1
  )  # All but the learning rate.


def _cut(parts: int) -> list[tuple[int, ...]]:
  """Returns the shapes of the parameters that are worth sharding into so many parts."""
  config = mesh_training.make_config()
  params = tiny_model.shapes(config, mesh_training.VOCAB)["params"]
  large = [x.shape for x in jax.tree.leaves(params) if x.size * 4 >= 2**17]
  cut = [shape for shape in large if any(length % parts == 0 for length in shape)]
  assert len(cut) > 4
  return cut


def test_parameters_that_are_cut_are_gathered_and_others_are_not(results):
  gathered = {
    mesh: len(re.findall(r" all-gather(-start)?\(", str(result["compiled"])))
    for mesh, result in results.items()
    if mesh != "one device"
  }
  none_cut = gathered["one_process 8x1"]
  assert gathered["one_process 2x4"] >= none_cut + len(_cut(4)) - 1
  assert gathered["two_processes 1x8"] >= none_cut + len(_cut(8)) - 1
  assert gathered["one_process 8x1:zero1"] >= none_cut + len(_cut(8)) - 1


def test_zero1_gathers_parameters_once_sums_gradients_once_and_sends_rows_of_the_word_table(
  results,
):
  counted = {
    mesh: costs.count_collectives(
      hlo.parse(str(results[f"one_process {mesh}"]["compiled"])), [0] * 8
    )
    for mesh in ("8x1", "8x1:zero1")
  }
  assert counted["8x1"].keys() == {"all-reduce"}
  words = 4 * mesh_training.VOCAB * mesh_training.make_config().model.width
  sent = 4 * sum(math.prod(shape) for shape in _cut(8)) - words
  rows = 0.1 * words
  assert sent <= counted["8x1:zero1"]["all-gather"].bytes < sent + rows
  # CPUs have no reduce-scatter.
  summed = {mesh: kinds["all-reduce"].bytes for mesh, kinds in counted.items()}
  assert -0.01 * words < summed["8x1:zero1"] - (summed["8x1"] - words) < rows


def test_what_is_read_in_bfloat16_travels_so_and_its_gradient_is_kept_in_float32():
  mesh = _mesh(1, 2, 4)
  placed = {
    name: NamedSharding(mesh, spec)
    for name, spec in {"kernel": P(None, "fsdp"), "words": P("fsdp"), "small": P()}.items()
  }
  dtypes = {"kernel": jnp.bfloat16, "words": jnp.float32, "small": jnp.bfloat16}
  given = {name: jax.ShapeDtypeStruct((8, 8), jnp.float32) for name in placed}
  gather, scatter = sharding.make_gather_and_scatter(mesh, placed, dtypes)
  there = jax.eval_shape(gather, given)
  assert {name: x.dtype for name, x in there.items()} == dtypes | {"small": jnp.float32}
  moves = [
    eqn.invars[0].aval.dtype
    for eqn in jax.make_jaxpr(gather)(given).eqns
    if eqn.primitive.name == "sharding_constraint"
  ]
  assert set(map(str, moves)) == {"bfloat16", "float32"}
  assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(scatter, there))} == {
    jnp.dtype("float32")
  }


@pytest.mark.parametrize(
  ("shape", "rule"),
  [((1, 1, 8), "fsdp"), ((1, 8, 1), "zero1"), ((1, 2, 4), "zero1"), ((64, 8, 1), "zero1")],
)
def test_a_device_of_eight_holds_an_eighth_of_vilt_and_its_optimizer(shape, rule):
  """Allows 5 % more for arrays that are too small to shard."""
  config = recipe("refcoco")
  model, optimizer = make_model(config, vocab_size=30522), make_optimizer_from(config)
  state = jax.eval_shape(lambda: create_state(model, optimizer, config))
  mesh = _mesh(*shape)
  kept = (state.variables["params"], state.opt_state)
  placed = sharding.state_sharding(mesh, kept, ((".*", rule),))
  leaves = jax.tree.leaves(sharding.shapes_at(kept, placed))
  total = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
  held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
  assert total > 1.3e9
  assert held <= total / 8 * 1.05


def _mesh(*sizes: int) -> AbstractMesh:
  return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def _place(rules, **arrays: tuple[int, ...]) -> dict[str, P]:
  shapes = {name: jax.ShapeDtypeStruct(shape, jax.numpy.float32) for name, shape in arrays.items()}
  mesh = _mesh(2, 2, 4)
  return {name: place.spec for name, place in sharding.state_sharding(mesh, shapes, rules).items()}


def test_the_first_rule_that_is_found_decides():
  rules = (("^words$", ("fsdp", None)), ("bias", "replicate"), (".*", "fsdp"))
  places = _place(rules, words=(8, 3), my_bias=(512, 512), kernel=(512, 1024), odd=(511, 513))
  assert places == {
    "words": P("fsdp", None),
    "my_bias": P(),
    "kernel": P(None, "fsdp"),
    "odd": P(),
  }


def test_zero1_shards_over_both_axes_the_dimension_that_is_the_longest_by_then():
  places = _place(
    ((".*", "zero1"),),
    long=(4096, 64), wide=(512, 516), even=(511, 514), odd=(511, 513), small=(8, 8),
  )  # fmt: skip
  assert places == {
    "long": P(("fsdp", "data")),
    "wide": P("data", "fsdp"),
    "even": P(None, "data"),
    "odd": P(),
    "small": P(),
  }


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ((("bias", "fsdp"),), "'bias' matches no parameter; the parts are kernel"),
    ((("^k$|rn", "fsdp"), ("(", "fsdp")), r"'\(' is not a regular expression"),
    ((), r"no rule matches 'kernel'; end the list with \('\.\*', value\)"),
    (((".*", "tensor"),), r"'tensor' is neither 'fsdp', 'zero1', 'replicate' nor a tuple"),
    (((".*", ("model", None)),), r"\('model', None\) is neither"),
    (((".*", ("fsdp",)),), r"\('fsdp',\) does not fit 'kernel' of shape \(6, 8\)"),
    (((".*", ("fsdp", None)),), r"does not fit 'kernel'.*'fsdp': 4"),
  ],
)
def test_a_rule_that_cannot_be_followed_is_named(rules, message):
  with pytest.raises(InputError, match=rf"config\.sharding_rules: .*{message}"):
    _place(rules, kernel=(6, 8))


def test_minus_one_takes_what_is_left():
  devices = jax.device_count()
  assert dict(make_mesh().shape) == {"slice": 1, "data": devices, "fsdp": 1}
  assert dict(make_mesh(1, -1).shape) == {"slice": 1, "data": 1, "fsdp": devices}


@pytest.mark.parametrize(("data", "fsdp"), [(-1, -1), (1000, 1), (-1, 1000), (0, -1), (-2, 1)])
def test_impossible_mesh_names_its_place_in_the_config(data, fsdp):
  with pytest.raises(InputError, match=rf"config\.mesh: data {data} x fsdp {fsdp} is not \d+"):
    make_mesh(data, fsdp)


@dataclasses.dataclass(frozen=True)
class _Device:
  """A device of one of several slices, which JAX has on large machines only."""

  id: int
  slice_index: int
  process_index: int = 0
  platform: str = "cpu"
  device_kind: str = "cpu"


def _devices(*slices: int) -> list[_Device]:
  """Returns the devices of slices of these sizes, as JAX may list them: in any order."""
  found = [_Device(8 * i + j, i) for i, size in enumerate(slices) for j in range(size)]
  return list(np.random.default_rng(0).permutation(found))


@pytest.mark.parametrize(
  ("data", "fsdp", "shape"),
  [
    (-1, 1, (2, 4, 1)),
    (8, -1, (2, 4, 1)),
    (-1, 2, (2, 2, 2)),
    (4, 2, (2, 2, 2)),
    (-1, 4, (2, 1, 4)),
  ],
)
def test_data_goes_over_the_slices_and_fsdp_stays_within_one(data, fsdp, shape):
  mesh = make_mesh(data, fsdp, _devices(4, 4))
  assert mesh.devices.shape == shape
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  assert (slices[0] == 0).all()
  assert (slices[1] == 1).all()


def test_a_slice_is_what_shares_a_fast_network_whatever_it_is_called():
  @dataclasses.dataclass(frozen=True)
  class Gpu:
    id: int
    process_index: int
    partition_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"

  named = [Gpu(i, i // 2, 1 - i // 4) for i in range(8)]  # Two machines share a faster network.
  assert [d.id for d in make_mesh(devices=named).devices.flat] == [4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize(
  ("mesh", "slices", "message"),
  [
    ((-1, 8), (4, 4), "fsdp 8 would be cut across 2 slices of 4 devices; set fsdp to 4 or a div"),
    ((1, -1), (4, 4), "fsdp 8 would be cut across 2 slices of 4 devices"),
    ((-1, 3), (4, 4, 4), "fsdp 3 would be cut across 3 slices of 4 devices"),
    ((-1, 1), (4, 2), "the slices have 2 to 4 devices; use slices of one size"),
  ],
)
def test_a_mesh_that_would_cut_a_model_across_slices_is_refused(mesh, slices, message):
  with pytest.raises(InputError, match=rf"config\.mesh: {message}"):
    make_mesh(*mesh, devices=_devices(*slices))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"model": {"backend": "tpu"}},
      r"config\.model\.backend 'tpu' does not run on cpu; set it to 'auto'",
    ),
    ({"model": {"backend": "cudnn"}}, r"config\.model\.backend 'cudnn' does not run on cpu"),
    (
      {"batch_size": 6, "grad_accum_steps": 4},
      r"batch_size 6 is not a multiple .* config\.grad_accum_steps 4",
    ),
    ({"decode_every": 3, "batch_size": 8}, r"batch_size 8 .* times config\.decode_every 3"),
    ({"grad_accum_steps": 0}, r"config\.grad_accum_steps is 0; it must be at least 1"),
  ],
)
def test_a_program_that_cannot_be_is_refused(changes, message):
  config = mesh_training.make_config(**changes)
  with pytest.raises(InputError, match=message):
    build_program(config, mesh_training.VOCAB, make_mesh(1, 1, jax.devices()[:1]))


def test_a_process_gives_as_many_rows_as_fill_its_devices():
  mesh = make_mesh()
  devices = jax.device_count()
  for size in (1, 7, 32):
    rows = sharding.local_batch_size(mesh, size)
    assert rows >= size and rows % devices == 0 and rows - size < devices
