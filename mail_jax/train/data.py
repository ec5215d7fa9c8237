"""The data of a run: the records of a config's dataset, or another source of batches."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline import storage
from input_pipeline.image_hashes import ImageSet
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer, Tokenizer, open_tokenizer
from mail_jax.distributed import processes, sharding
from mail_jax.models.build import HostBatch
from mail_jax.train import start


@dataclasses.dataclass(frozen=True)
class Data:
  """The interface of a source of training data.

  Attributes:
    tokenizer: of the tokens.
    train: yields batches without end, from a step on; batch n depends on n alone.
    evaluate: starts one pass over the expressions of an evaluation; None for no evaluation.
    samples: per epoch; needed by configs with `epochs`.
    describe: returns the samples of this process in the batches of steps, which count from 1; None
      if they are unknown.
    images: hashes of the images, by DATASET/SPLIT; None if they are unknown.
    fingerprint: of the training data; empty if it is unknown.
    exact_order: whether the order is the same for any number of processes.
  """

  tokenizer: Tokenizer
  train: Callable[[int], Iterator[HostBatch]]
  evaluate: Callable[[], Iterable[Any]] | None = None
  samples: int = 0
  describe: Callable[[list[int]], list[dict[str, Any]]] | None = None
  images: Mapping[str, ImageSet] | None = None
  fingerprint: str = ""
  exact_order: bool = False

  def about(self) -> dict[str, Any]:
    """Returns what a checkpoint notes of the training data."""
    return {"fingerprint": self.fingerprint, "samples": self.samples}


def make_tokenizer(config: ConfigDict, expressions: Callable[[], Iterable[str]]) -> Tokenizer:
  """Opens or trains the tokenizer of a whole config.

  Args:
    config: `tokenizer` is a file; if empty, `init` comes with one; without `init` it is trained.
    expressions: returns the training expressions.
  """
  if config.tokenizer:
    return open_tokenizer(config.tokenizer)
  return start.open_tokenizer(config.init) or SentencePieceTokenizer.train(
    expressions(), config.vocab_size
  )


def open_data(config: ConfigDict, data_dir: str, tokenizer: Tokenizer | None = None) -> Data:
  """Opens the records that `input_pipeline.prepare` wrote.

  Args:
    config: a whole config.
    data_dir: the folder that was written.
    tokenizer: of a run that is resumed; None opens or trains that of the config.
  """
  # Imports TensorFlow, which other sources of data do not need.
  from input_pipeline.tf import loader

  on_error = config.loader.on_error
  if on_error == "skip" and processes.is_main():
    for line in loader.describe_damage(data_dir, config.dataset):
      print(f"warning: {line}", file=sys.stderr, flush=True)
  tokenizer = tokenizer or make_tokenizer(
    config, lambda: loader.train_expressions(data_dir, config.dataset, on_error)
  )
  if config.eval_split:
    # Checks the name.
    loader.num_refs(data_dir, config.dataset, config.eval_split)
  mesh = sharding.make_mesh(**config.mesh)

  def share(split: str) -> loader.Split:
    return loader.Split(data_dir, config.dataset, split, jax.process_index(), jax.process_count())

  def shape(batch_size: int) -> loader.BatchShape:
    local = sharding.local_batch_size(mesh, batch_size)
    return loader.BatchShape(local, config.image_size, config.max_instances, config.max_tokens)

  options = loader.TrainOptions(
    seed=config.seed,
    flip=config.augment.flip,
    jitter=config.augment.jitter,
    scale=tuple(config.augment.scale),
    mask_noise=config.augment.mask_noise,
    **config.loader,
  )

  exact_order = config.loader.refs_per_image == 1

  def train_batches(start_step: int, with_meta: bool = False) -> Iterator[HostBatch]:
    return loader.train_batches(
      share("train"),
      tokenizer,
      shape(config.batch_size),
      options,
      start_step=start_step,
      with_meta=with_meta,
    )

  def describe(steps: list[int]) -> list[dict[str, Any]]:
    rows = []
    batches = train_batches(steps[0] - 1, with_meta=True)
    for step, batch in zip(range(steps[0], steps[-1] + 1), batches, strict=False):
      # With groups each process numbers its own samples; otherwise all of them share one order.
      before = step - 1
      if exact_order:
        before = before * jax.process_count() + jax.process_index()
      first = before * len(batch["meta"])
      samples = [{"position": first + row} | sample for row, sample in enumerate(batch["meta"])]
      rows.append({"step": step, "process": jax.process_index(), "samples": samples})
    return rows

  def eval_batches() -> Iterator[HostBatch]:
    return loader.eval_batches(
      share(config.eval_split),
      tokenizer,
      shape(config.eval_batch_size),
      limit=config.eval_expressions or None,
      multiple=len(mesh.local_devices),
    )

  samples = loader.num_refs(data_dir, config.dataset, "train", on_error)
  if _lacks_targets(config, data_dir) and not config.model.no_target and processes.is_main():
    print(
      f"warning: {config.dataset} has expressions without a target; this model can only output an "
      "empty mask for them. --config.model.no_target=True adds an output for them",
      flush=True,
    )
  hashes = storage.read_hashes(data_dir, config.dataset, "train")
  return Data(
    tokenizer,
    train_batches,
    eval_batches if config.eval_split else None,
    samples,
    describe,
    None if hashes is None else {f"{config.dataset}/train": hashes},
    loader.fingerprint_of(data_dir, config.dataset, "train"),
    exact_order=exact_order,
  )


def _lacks_targets(config: ConfigDict, data_dir: str) -> bool:
  """Returns whether training expressions lack a target; the metadata says so."""
  counts = (storage.read_metadata(data_dir, config.dataset) or {}).get("no_targets", {})
  return counts.get("train", 0) > 0
