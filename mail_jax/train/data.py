"""What training reads: the records that a config names, or any other source of batches."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import storage
from input_pipeline.preprocess.tokenizer import (
  SentencePieceTokenizer,
  Tokenizer,
  WordPieceTokenizer,
  open_tokenizer,
)
from mail_jax.distributed import processes, sharding
from mail_jax.pretrained import initialise

Batch = dict[str, np.ndarray]
NO_TARGET = ("grefcoco_unc",)
"""Data sets with expressions that mean nothing in their image."""


@dataclasses.dataclass(frozen=True)
class Data:
  """What training reads; any source that keeps these promises will do.

  Attributes:
    tokenizer: made the tokens.
    train: gives the endless batches from a step on; batch n depends on n alone.
    evaluate: starts one pass over the sentences that judge the model; None for no evaluation.
    samples: of one epoch; needed where the config counts in epochs.
    describe: says of steps, counted from 1, which samples this process had in their batches; None where nobody knows.
  """

  tokenizer: Tokenizer
  train: Callable[[int], Iterator[Batch]]
  evaluate: Callable[[], Iterable[Any]] | None = None
  samples: int = 0
  describe: Callable[[list[int]], list[dict[str, Any]]] | None = None


def make_tokenizer(config: ConfigDict, sentences: Callable[[], Iterable[str]]) -> Tokenizer:
  """Makes the tokenizer that a whole config describes.

  Args:
    config: `tokenizer` names a file; else the vocabulary comes with the weights of `init`; else it is trained.
    sentences: gives the training sentences.
  """
  if config.tokenizer:
    return open_tokenizer(config.tokenizer)
  if config.init:
    return WordPieceTokenizer(
      initialise.read_vocab(config.init), f"the vocabulary of {config.init}"
    )
  return SentencePieceTokenizer.train(sentences(), config.vocab_size)


def open_data(config: ConfigDict, data_dir: str) -> Data:
  """Opens the records that `input_pipeline.prepare` wrote, with the tokenizer that the config asks for."""
  # The only import that needs more than this package's own requirements.
  from input_pipeline.tf import loader

  on_error = config.loader.on_error
  if on_error == "skip" and processes.is_main():
    for line in loader.describe_damage(data_dir, config.dataset):
      print(f"warning: {line}", file=sys.stderr, flush=True)
  tokenizer = make_tokenizer(
    config, lambda: loader.train_expressions(data_dir, config.dataset, on_error)
  )
  if config.eval_split:
    loader.num_refs(data_dir, config.dataset, config.eval_split)  # a wrong name is told now
  mesh = sharding.make_mesh(**config.mesh)

  def share(split: str) -> loader.Split:
    return loader.Split(data_dir, config.dataset, split, jax.process_index(), jax.process_count())

  def shape(batch_size: int) -> loader.BatchShape:
    local = sharding.local_batch_size(mesh, batch_size)
    return loader.BatchShape(local, config.image_size, config.max_instances, config.max_tokens)

  options = loader.TrainOptions(
    seed=config.seed, flip=config.augment.flip, jitter=config.augment.jitter, **config.loader
  )

  def train_batches(start_step: int, with_meta: bool = False) -> Iterator[Batch]:
    return loader.train_batches(
      share("train"),
      tokenizer,
      shape(config.batch_size),
      options,
      start_step=start_step,
      with_meta=with_meta,
    )

  def describe(steps: list[int]) -> list[dict[str, Any]]:
    found = []
    batches = train_batches(steps[0] - 1, with_meta=True)
    for step, batch in zip(range(steps[0], steps[-1] + 1), batches, strict=False):
      first = (step - 1) * len(
        batch["meta"]
      )  # of this process, whose samples have numbers of their own
      named = [{"position": first + row} | sample for row, sample in enumerate(batch["meta"])]
      found.append({"step": step, "process": jax.process_index(), "samples": named})
    return found

  def eval_batches() -> Iterator[Batch]:
    return loader.eval_batches(
      share(config.eval_split),
      tokenizer,
      shape(config.eval_batch_size),
      limit=config.eval_expressions or None,
    )

  samples = loader.num_refs(data_dir, config.dataset, "train", on_error)
  if _means_nothing(config, data_dir) and not config.model.no_target and processes.is_main():
    print(
      f"warning: some expressions of {config.dataset} mean nothing, and this model can only say so by an empty mask; "
      "--config.model.no_target=True gives it an output for that",
      flush=True,
    )
  return Data(
    tokenizer, train_batches, eval_batches if config.eval_split else None, samples, describe
  )


def _means_nothing(config: ConfigDict, data_dir: str) -> bool:
  """Whether some expressions of the training data mean nothing; data of a user's own says so itself."""
  said = (storage.read_metadata(data_dir, config.dataset) or {}).get("no_targets", {})
  return config.dataset in NO_TARGET or said.get("train", 0) > 0
