"""Formats that contain the weights: what they compute, how they are written and opened."""

import copy
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import stablehlo
from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes
from mail_jax.export import folder as folders
from mail_jax.models import instances
from mail_jax.models.build import (
  INPUTS,
  Variables,
  apply_model,
  input_specs,
  path_name,
)
from mail_jax.models.encoder import STACK, block_name
from mail_jax.models.mail import MaIL, Output
from mail_jax.models.mask_selection import select

Named = Mapping[str, jax.Array]
PLATFORMS = ("cpu", "cuda", "tpu")
# Old enough for TensorFlow, which reads up to 1.13.
_STABLEHLO = "1.8.0"
# Inlines composites and calls, whose shapes older readers cannot infer, and removes the paths of
# our source files.
_PASSES = "builtin.module(func.func(stablehlo-legalize-composite-to-call),inline,strip-debuginfo)"
# Bytes of weights in a file; StableHLO and ONNX are in formats that are limited to 2 GiB.
MAX_BYTES = 2**31 - 2**27
# Formats that are ONNX files.
_ONNX = ("onnx", "tensorrt")
_INSTALL = 'pip install "mail_jax[export]"'


def write(
  form: str,
  place: pathlib.Path,
  config: ConfigDict,
  model: MaIL,
  variables: Variables,
  precision: str = "float32",
) -> None:
  """Writes a model in any format of `folder.PLACES` but `safetensors`.

  Args:
    form: the format.
    place: the file or folder to create.
    config: a whole config.
    model: of the config, with an attention that runs on every platform.
    variables: of the model, on the host.
    precision: of the weights, for `onnx` and `tensorrt`.

  Raises:
    InputError: a package that writes this format is not installed, or a weight is too large for the
      precision.
  """
  specs = input_specs(config, export.symbolic_shape("b")[0])
  forward = make_forward(model)
  if form == "stablehlo":
    _write_stablehlo(place, forward, variables, specs)
  elif form == "saved_model":
    _write_saved_model(place, forward, variables, specs)
  elif form in _ONNX:
    onnx_model, tensorrt = _import_onnx_model(), form == "tensorrt"
    if tensorrt:
      specs["instances"] = as_masks(specs["instances"], config.max_instances)
    options = onnx_model.Options(precision, tensorrt)
    onnx_model.write(place, forward, variables, specs, options, MAX_BYTES)
  else:
    raise InputError(f"--format {form!r} is not one of {', '.join(folders.PLACES)}")


def _write_stablehlo(
  place: pathlib.Path, forward: Callable[..., Any], variables: Variables, inputs: dict[str, Any]
) -> None:
  """Writes the program with its weights, or beside them, `.data`, if they are too large for it."""
  beside = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) >= MAX_BYTES
  program = jax.jit(forward if beside else functools.partial(forward, variables))
  arguments = [variables] if beside else []
  exported = export.export(program, platforms=PLATFORMS)(*arguments, *inputs.values())
  module = _for_older_readers(exported.mlir_module_serialized)
  place.write_bytes(dataclasses.replace(exported, mlir_module_serialized=module).serialize())
  if beside:
    folders.write_variables(place.with_name(folders.beside(place.name)), variables)


def as_masks(planes: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
  """Returns shape and dtype of instance masks one by one, as bytes."""
  shape = (planes.shape[0], max(1, count), *planes.shape[2:])
  return jax.ShapeDtypeStruct(shape, jnp.uint8)


def _write_saved_model(
  place: pathlib.Path, forward: Callable[..., Any], variables: Variables, inputs: dict[str, Any]
) -> None:
  from input_pipeline.tf import saved_model

  exported = export.export(jax.jit(forward), platforms=PLATFORMS)(variables, *inputs.values())
  # Outputs are in the order of a flattened dictionary.
  names = jax.tree.unflatten(exported.out_tree, range(len(exported.out_avals)))
  program = saved_model.Program(
    _for_older_readers(exported.mlir_module_serialized),
    exported.calling_convention_version,
    exported.platforms,
    exported.module_kept_var_idx,
    {name: exported.out_avals[i] for name, i in sorted(names.items(), key=lambda item: item[1])},
  )
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  weights = {path_name(path): np.asarray(leaf) for path, leaf in leaves}
  saved_model.write(str(place), program, weights, inputs)


def _for_older_readers(module: bytes) -> bytes:
  """Converts StableHLO to an older version, since its readers may be older than this JAX."""
  stablehlo.register_stablehlo_passes()
  with ir.Context() as context:
    stablehlo.register_dialect(context)
    parsed = stablehlo.deserialize_portable_artifact(context, module)
    passmanager.PassManager.parse(_PASSES).run(parsed.operation)
    return stablehlo.serialize_portable_artifact(parsed, _STABLEHLO)


def check_installed(form: str) -> None:
  """Checks that the packages that write a format are installed.

  Raises:
    InputError: one is missing.
  """
  if form in _ONNX:
    _import_onnx_model()
  elif form == "saved_model":
    from input_pipeline.tf import saved_model  # noqa: F401


def _import_onnx_model() -> Any:
  try:
    from mail_jax.export import onnx_model
  except ImportError as error:
    raise InputError(f"--format onnx and tensorrt need the package onnx: {_INSTALL}") from error
  return onnx_model


class Opened(NamedTuple):
  """A model that `write` wrote.

  Attributes:
    forward: (variables, batch) -> Output, may be traced; `variables` are those beside a StableHLO
      program that are too large for it.
    outside: batch -> outputs by name, computed by another library than JAX, which `forward` takes
      from the batch. None if `forward` is the whole model. A compiled program that called the
      library back could wait for ever on a single core (jax#24255).
  """

  forward: Callable[[Variables, Named], Output]
  outside: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


def open_forward(form: str, place: epath.Path, model: MaIL) -> Opened:
  """Opens a model that `write` wrote.

  Raises:
    InputError: the model cannot be opened, or a package that runs it is not installed.
  """
  try:
    call = _OPEN[form](place)
  except InputError:
    raise
  except Exception as error:  # Three libraries, each with its own errors.
    reason = str(error).strip().split("\n")[0]
    raise InputError(f"--checkpoint {place}: cannot be opened ({reason})") from error

  def run(batch: Mapping[str, Any]) -> dict[str, Any]:
    return call(*(batch[name] for name in INPUTS))

  in_jax = form == "stablehlo"

  def forward(variables: Variables, batch: Named) -> Output:
    if not in_jax:
      return as_output(model, batch, batch)
    inputs = [batch[name] for name in INPUTS]
    return as_output(model, call(*([variables] if variables else []), *inputs), batch)

  return Opened(forward, None if in_jax else run)


def _open_stablehlo(place: epath.Path) -> Callable[..., Any]:
  return export.deserialize(bytearray(place.read_bytes())).call


def _open_saved_model(place: epath.Path) -> Callable[..., Any]:
  from input_pipeline.tf import saved_model

  if not (place / "saved_model.pb").is_file():
    # As TensorFlow Serving does: the largest number.
    place = max((p for p in place.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
  return _with_numpy_inputs(saved_model.load(str(place), INPUTS))


def _open_onnx(place: epath.Path) -> Callable[..., Any]:
  try:
    import onnxruntime  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(f"--checkpoint {place}: needs onnxruntime: {_INSTALL}") from error
  # By its path, for weights may be in a file beside it.
  local = pathlib.Path(place).is_file()
  session = onnxruntime.InferenceSession(str(place) if local else place.read_bytes())
  names = [output.name for output in session.get_outputs()]
  kinds = {x.name: (x.type, x.shape) for x in session.get_inputs()}

  def run(*inputs: np.ndarray) -> dict[str, Any]:
    named = dict(zip(INPUTS, inputs, strict=True))
    kind, shape = kinds["instances"]
    if kind == "tensor(uint8)":
      masks = [bit_planes.unpackbits(planes, shape[1]) for planes in named["instances"]]
      named["instances"] = np.array(masks, np.uint8)
    return dict(zip(names, session.run(names, named), strict=True))

  return _with_numpy_inputs(run)


def _with_numpy_inputs(run: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
  """Converts the inputs to NumPy arrays before a library gets them."""
  return lambda *inputs: run(*map(np.asarray, inputs))


_OPEN = {
  "stablehlo": _open_stablehlo,
  "saved_model": _open_saved_model,
  "onnx": _open_onnx,
  "tensorrt": _open_onnx,
}


def make_forward(model: MaIL) -> Callable[..., dict[str, jax.Array]]:
  """Returns the function (variables, *INPUTS) -> outputs by name, all float32.

  The outputs are `logits` [b, s, s], `selection_logits` [b, k + 1] (the last one for "none of the
  instances") and, if the model predicts it, `no_target` [b].
  """

  def forward(variables: Variables, *inputs: jax.Array) -> dict[str, jax.Array]:
    output = apply_model(model, variables, dict(zip(INPUTS, inputs, strict=True)))
    named = {"logits": output.logits, "selection_logits": output.selection_logits}
    if output.no_target is not None:
      named["no_target"] = output.no_target
    return {name: value.astype(jnp.float32) for name, value in named.items()}

  return forward


def without_loop(config: ConfigDict, variables: Variables) -> tuple[ConfigDict, Variables]:
  """Unrolls the loop over blocks of a model with `model.scan`, for formats without loops.

  Args:
    config: a whole config.
    variables: of its model.

  Returns:
    The config and the variables of the same model without the loop.
  """
  if not config.model.scan:
    return config, variables
  config = copy.deepcopy(config)
  config.model.scan = False
  encoder = dict(variables["params"]["encoder"])
  stacked = encoder.pop(STACK)
  for i in range(config.model.depth):
    encoder[block_name(i)] = jax.tree.map(lambda x, i=i: x[i], stacked)
  return config, variables | {"params": variables["params"] | {"encoder": encoder}}


def as_output(model: MaIL, named: Named, batch: Named) -> Output:
  """Completes the outputs of an exported model to those of the network itself."""
  valid = instances.count_valid(batch["num_instances"], model.max_instances)
  planes = instances.clear_slots(batch["instances"], valid)
  scores = named["selection_logits"]
  rho = jnp.zeros((scores.shape[0], 0))
  if model.max_instances:
    rho = select(scores[:, :-1], scores[:, -1], valid, model.options.selection)
  return Output(named["logits"][..., None], rho, scores, planes, named.get("no_target"))
