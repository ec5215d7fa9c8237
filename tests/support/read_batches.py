"""The loader's batches by keyword arguments alone, which are options of several dataclasses."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from input_pipeline.preprocess.tokenizer import Tokenizer
from input_pipeline.tf import loader, record_reader


def train(
  data_dir: str, dataset: str, tokenizer: Tokenizer, split: str = "train", **options: Any
) -> Iterator[dict[str, Any]]:
  """Yields batches of training; options are fields of BatchShape and TrainOptions too."""
  opening = {k: options.pop(k) for k in ("on_error", "exclude", "temperature") if k in options}
  found = loader.open_training_set(data_dir, dataset, split=split, **opening)
  shape = loader.BatchShape(**_pop(options, loader.BatchShape))
  train_options = loader.TrainOptions(**_pop(options, loader.TrainOptions))
  return loader.train_batches(found, tokenizer, shape, train_options, **options)


def evaluation(
  data_dir: str, dataset: str, split: str, tokenizer: Tokenizer, **options: Any
) -> Iterator[dict[str, Any]]:
  """Yields batches of evaluation; options are fields of Split and BatchShape too."""
  share = record_reader.Split(data_dir, dataset, split, **_pop(options, record_reader.Split))
  shape = loader.BatchShape(**_pop(options, loader.BatchShape))
  return loader.eval_batches(share, tokenizer, shape, **options)


def _pop(options: dict[str, Any], cls: type) -> dict[str, Any]:
  names = [field.name for field in dataclasses.fields(cls) if field.name in options]
  return {name: options.pop(name) for name in names}
