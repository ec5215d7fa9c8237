"""Checkpoints: state, data position, config, tokenizer and metrics are one unit."""

import base64
import math
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from input_pipeline.errors import InputError

Tree = Any  # a nest of arrays, as JAX has them
FOLDER = "checkpoints"


class Checkpoints:
  """The checkpoints of a run: the two last ones and the best one are kept.

  A checkpoint appears under its step's name only when it is whole, so a half-written one is never picked.
  """

  def __init__(self, workdir: str, best_metric: str = "mIoU", read_only: bool = False):
    """Opens `workdir/checkpoints`.

    Args:
      workdir: of the run.
      best_metric: name of the metric by which the best checkpoint is kept; more is better.
      read_only: neither makes nor deletes anything.

    Raises:
      InputError: with `read_only`, no such folder, or no checkpoint in it.
    """
    path = pathlib.Path(workdir).absolute() / FOLDER
    if read_only and not path.is_dir():
      raise InputError(
        f"--checkpoint {workdir}: there is no {path}; give the --workdir of a training run"
      )

    def score(metrics: dict[str, int | float]) -> float:
      return metrics.get(best_metric, -math.inf)  # not every checkpoint was evaluated

    keep_best = policies.BestN(get_metric_fn=score, n=1)
    options = ocp.CheckpointManagerOptions(
      best_fn=score,  # without it metrics are forgotten when the process ends
      preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), keep_best]),
      # Orbax's own read_only warns twice at every start; without `save` nothing is written anyway.
      create=not read_only,
      cleanup_tmp_directories=not read_only,
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    self._manager = ocp.CheckpointManager(path, options=options, item_handlers=handlers)
    if read_only and self.latest() is None:
      raise InputError(
        f"--checkpoint {workdir}: {path} holds no checkpoint; has the training saved one yet?"
      )

  def latest(self) -> int | None:
    """Step of the last checkpoint; None without one."""
    return self._manager.latest_step()

  def best(self, metric: str) -> int | None:
    """Step of the checkpoint with the largest `metric`, the latest of equals; None where none was evaluated."""
    scored = []
    for step in self._manager.all_steps():
      metrics = self._manager.metrics(step)
      if metrics and metric in metrics:
        scored.append((metrics[metric], step))
    return max(scored)[1] if scored else None

  def save(
    self, step: int, state: Tree, meta: dict[str, Any], metrics: dict[str, int | float] | None
  ) -> None:
    """Saves in the background; nothing when there is a checkpoint of this step already."""
    if step in self._manager.all_steps():
      return
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
    self._manager.save(step, args=items, metrics=metrics or {}, force=True)

  def meta(self, step: int) -> dict[str, Any]:
    """What was saved beside the state: config, tokenizer, steps."""
    return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

  def restore(self, step: int, abstract: Tree) -> Tree:
    """Restores the part of the state that `abstract` names, onto its shardings.

    Args:
      step: which checkpoint.
      abstract: `jax.ShapeDtypeStruct`s with shardings, in the structure of (a part of) what was saved.
    """
    args = ocp.args.PyTreeRestore(
      item=abstract,
      restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
      partial_restore=True,
    )
    return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

  def close(self) -> None:
    """Waits until everything is written."""
    self._manager.close()


def exists(workdir: str) -> bool:
  """Whether a run has saved a checkpoint there; neither makes nor deletes anything."""
  folder = pathlib.Path(workdir) / FOLDER
  return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def abstract_like(tree: Tree, sharding: Tree) -> Tree:
  """Shapes, dtypes and shardings of a tree of arrays or of `jax.eval_shape`'s result."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding
  )


def pack_bytes(data: bytes) -> str:
  """Bytes as text, for the JSON part."""
  return base64.b64encode(data).decode("ascii")


def unpack_bytes(text: str) -> bytes:
  """Undoes `pack_bytes`."""
  return base64.b64decode(text)
