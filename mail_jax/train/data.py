"""The data of a run: the records of a config's data sets, or another source of batches."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from input_pipeline import mixture, storage
from input_pipeline.common.errors import InputError
from input_pipeline.image_hashes import ImageSet
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer, Tokenizer, open_tokenizer
from input_pipeline.proposers import mask_recipe
from input_pipeline.proposers.mask_recipe import MaskRecipe
from mail_jax.distributed import processes, sharding
from mail_jax.models.build import HostBatch
from mail_jax.train import start

if TYPE_CHECKING:
  from input_pipeline.tf.loader import BatchShape, TrainingSet


@dataclasses.dataclass(frozen=True)
class Data:
  """The interface of a source of training data.

  Attributes:
    tokenizer: of the tokens.
    train: yields batches without end, from a step on; batch n depends on n alone.
    evaluate: starts one pass over the expressions of an evaluation, by the names of
      `mixture.evaluated`; empty for no evaluation.
    samples: per epoch; needed by configs with `epochs`.
    describe: returns the samples of this process in the batches of steps, which count from 1; None
      if they are unknown.
    images: hashes of the images, by DATASET/SPLIT; None if they are unknown.
    fingerprint: of the training data; empty if it is unknown.
    exact_order: whether the order is the same for any number of processes.
    left_out: of `left_out.note`; None if nothing is to be said.
    mask_recipes: how the instance masks were made; None if it is unknown.
    notes: lines about the data, to print at the start.
  """

  tokenizer: Tokenizer
  train: Callable[[int], Iterator[HostBatch]]
  evaluate: Mapping[str, Callable[[], Iterable[Any]]] = dataclasses.field(default_factory=dict)
  samples: int = 0
  describe: Callable[[list[int]], list[dict[str, Any]]] | None = None
  images: Mapping[str, ImageSet] | None = None
  fingerprint: str = ""
  exact_order: bool = False
  left_out: Mapping[str, Any] | None = None
  mask_recipes: Sequence[MaskRecipe] | None = None
  notes: Sequence[str] = ()

  def about(self) -> dict[str, Any]:
    """Returns what a checkpoint notes of the training data."""
    return {
      "fingerprint": self.fingerprint,
      "samples": self.samples,
      "left_out": self.left_out,
      mask_recipe.KEY: mask_recipe.all_to_json(self.mask_recipes),
    }


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
  # Other sources of data do not need it.
  with processes.announce("importing TensorFlow"):
    from input_pipeline.tf import loader

  _check_options(config)
  with processes.announce(f"reading the records of {config.dataset}"):
    found = loader.open_training_set(
      data_dir,
      config.dataset,
      on_error=config.loader.on_error,
      exclude=config.exclude,
      temperature=config.mixture_temperature,
    )
    samples = found.refs
  if found.on_error == "skip" and processes.is_main():
    for name in found.names:
      for line in loader.describe_damage(data_dir, name):
        print(f"warning: {line}", file=sys.stderr, flush=True)
  with processes.announce("opening the tokenizer; without one, it is trained"):
    tokenizer = tokenizer or make_tokenizer(config, found.expressions)
  records = _Records(config, data_dir, tokenizer, found)
  evaluated = mixture.evaluated(config.dataset, config.eval_split)
  for name in evaluated.values():
    dataset, _, split = name.rpartition("/")
    loader.num_refs(data_dir, dataset, split)  # checks the name
  if processes.is_main():
    for line in _lacking_targets(config, data_dir):
      print(f"warning: {line}", flush=True)
  return Data(
    records.tokenizer,
    records.train,
    {label: functools.partial(records.evaluate, name) for label, name in evaluated.items()},
    samples,
    records.describe,
    found.images(),
    found.fingerprint(),
    exact_order=records.exact_order,
    left_out=found.note(),
    mask_recipes=mask_recipe.of_data_sets(data_dir, found.names),
    notes=list(found.describe()),
  )


class _Records:
  """Yields batches of the records of a config's data sets, for this process.

  Attributes:
    tokenizer: of the tokens.
    exact_order: whether the order is the same for any number of processes.
  """

  def __init__(self, config: ConfigDict, data_dir: str, tokenizer: Tokenizer, found: "TrainingSet"):
    from input_pipeline.tf import loader

    self.tokenizer = tokenizer
    self.exact_order = config.loader.refs_per_image == 1
    self._loader = loader
    self._config, self._data_dir, self._found = config, data_dir, found
    self._mesh = sharding.make_mesh(**config.mesh)
    reading = {name: value for name, value in config.loader.items() if name != "on_error"}
    self._options = loader.TrainOptions(
      seed=config.seed,
      flip=config.augment.flip,
      jitter=config.augment.jitter,
      scale=tuple(config.augment.scale),
      mask_noise=config.augment.mask_noise,
      **reading,
    )

  def _shape(self, batch_size: int) -> "BatchShape":
    config, local = self._config, sharding.local_batch_size(self._mesh, batch_size)
    return self._loader.BatchShape(
      local, config.image_size, config.max_instances, config.max_tokens
    )

  def train(self, start_step: int, with_meta: bool = False) -> Iterator[HostBatch]:
    """Yields batches of training from a step on; see `loader.train_batches`."""
    return self._loader.train_batches(
      self._found,
      self.tokenizer,
      self._shape(self._config.batch_size),
      self._options,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      start_step=start_step,
      with_meta=with_meta,
    )

  def describe(self, steps: list[int]) -> list[dict[str, Any]]:
    """Returns the samples of steps; see `Data.describe`."""
    rows = []
    batches = self.train(steps[0] - 1, with_meta=True)
    for step, batch in zip(range(steps[0], steps[-1] + 1), batches, strict=False):
      # With groups each process numbers its own samples; otherwise all of them share one order.
      before = step - 1
      if self.exact_order:
        before = before * jax.process_count() + jax.process_index()
      first = before * len(batch["meta"])
      samples = [{"position": first + row} | sample for row, sample in enumerate(batch["meta"])]
      rows.append({"step": step, "process": jax.process_index(), "samples": samples})
    return rows

  def evaluate(self, name: str) -> Iterator[HostBatch]:
    """Yields batches of one pass over DATASET/SPLIT; see `loader.eval_batches`."""
    dataset, _, split = name.rpartition("/")
    return self._loader.eval_batches(
      self._loader.Split(self._data_dir, dataset, split, jax.process_index(), jax.process_count()),
      self.tokenizer,
      self._shape(self._config.eval_batch_size),
      limit=self._config.eval_expressions or None,
      multiple=len(self._mesh.local_devices),
    )


def _check_options(config: ConfigDict) -> None:
  """Checks that the model has what the data sets of a mixture ask for."""
  model = config.model
  able = {"multi": model.selection == "multi", "no_target": model.no_target}
  ways = {"multi": "model.selection='multi'", "no_target": "model.no_target=True"}
  for part in mixture.parse(config.dataset):
    for option in sorted(part.options):
      if not able[option]:
        raise InputError(
          f"config.dataset: {part.name} has the option {option}, which needs {ways[option]}"
        )


def _lacking_targets(config: ConfigDict, data_dir: str) -> Iterator[str]:
  """Yields the data sets with training expressions without a target that teach no output for it."""
  parts = mixture.parse(config.dataset)
  for part in parts:
    counts = (storage.read_metadata(data_dir, part.name) or {}).get("no_targets", {})
    if not counts.get("train", 0):
      continue
    if not config.model.no_target:
      yield (
        f"{part.name} has expressions without a target; this model can only output an empty mask "
        "for them. --config.model.no_target=True adds an output for them"
      )
    elif len(parts) > 1 and "no_target" not in part.options:
      yield (
        f"{part.name} has expressions without a target; they teach the output for them only with "
        "the option no_target in config.dataset"
      )
