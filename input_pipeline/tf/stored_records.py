"""The records of a prepared data set one after the other, for those who look at them and do not train."""

from collections.abc import Iterator
from typing import Any

from input_pipeline.tf import builder, pipelines, record_reader


def splits(data_dir: str, name: str) -> dict[str, int]:
  """Returns how many images each split of a data set has.

  Raises:
    InputError: there is no such data set; the message names the command that makes it.
  """
  found = builder.open_dataset(data_dir, name).info.splits
  return {split: found[split].num_examples for split in found}


def read(data_dir: str, name: str, split: str) -> Iterator[dict[str, Any]]:
  """Yields the fields of every record as `records.encode_record` gave them, in the order in which they are stored.

  Holds a few records at a time, undecoded; `records.decode_record` makes them masks.

  Raises:
    InputError: the data set or the split is not there, or a file of it is damaged.
  """
  source = record_reader.open_source(data_dir, name, split)
  parse = builder.record_features().deserialize_example
  dataset = record_reader.read(source).map(parse).prefetch(1)
  try:
    for fields in dataset.with_options(pipelines.options(threads=1)):
      yield _plain(fields)
  except record_reader.DAMAGED as error:
    record_reader.raise_damaged(source, error, parse)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
  """Tensors to bytes, text, numbers and arrays, and a dict of columns to a list of refs."""
  plain = {key: value.numpy() for key, value in fields.items() if key != "refs"}
  for key in ("file_name", "instances_from", "instances_trained_on"):
    plain[key] = plain[key].decode()
  refs = fields["refs"]
  columns = {key: refs[key].numpy().tolist() for key in ("ref_id", "target")}
  columns |= {key: refs[key].to_list() for key in ("ann_ids", "sentences", "normalised")}
  rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
  for row in rows:
    row["sentences"] = [text.decode() for text in row["sentences"]]
    row["normalised"] = [text.decode() for text in row["normalised"]]
  return plain | {"refs": rows}
