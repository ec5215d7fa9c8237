"""What the data sets of a table hold, and whether their raw files are there."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from input_pipeline import storage
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.preprocess.tokenizer import open_tokenizer
from input_pipeline.sources import refer
from input_pipeline.sources.refer import Published
from mail_jax.checkpoints import checkpoint
from mail_jax.reproduce.runs import Run
from mail_jax.reproduce.stages import MASKS, PROPOSED, Table
from mail_jax.train import start


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a data set holds.

  Attributes:
    splits: refs and expressions of each split that has any.
    image_ids: of all splits; None where records are prepared and nobody asks for them.
  """

  splits: Mapping[str, Published]
  image_ids: frozenset[int] | None = None

  def expressions(self) -> int:
    """Returns the number of expressions of all evaluation splits."""
    return sum(count.expressions for split, count in self.splits.items() if split != "train")


def read(table: Table, names: Sequence[str]) -> dict[str, Contents]:
  """Returns what data sets hold, and checks those that are not prepared.

  Raises:
    InputError: raw files of a data set are missing or damaged; it names those of all data sets.
  """
  found, problems = {}, {}
  for name in names:
    try:
      found[name] = _of_records(table, name) or _of_raw_files(table, name)
    except InputError as error:
      problems[name] = str(error)
  if problems:
    lines = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    raise InputError(
      f"the raw files of {counted(len(problems), 'data set')} cannot be used: {lines}. To fetch "
      f"what is missing, add --download, or run {download_command(table, next(iter(problems)))}"
    )
  return found


def download_command(table: Table, name: str) -> str:
  """Returns the command that fetches the raw files of a data set."""
  return (
    f"`python -m input_pipeline.prepare --download --dataset {name} --refer_root "
    f"{table.refer_root} --images {table.images} --instances none --data_dir "
    f"{os.path.join(table.data_dir, 'none')}`"
  )


def _of_records(table: Table, name: str) -> Contents | None:
  """Returns what the records hold; None unless they are prepared with all masks."""
  needed = {PROPOSED, *table.masks} & {*MASKS}
  all_metadata = [storage.read_metadata(table.records(masks), name) for masks in sorted(needed)]
  counts = [metadata["counts"] for metadata in all_metadata if metadata is not None]
  if len(counts) < len(needed):
    return None
  return Contents(
    {split: Published(of["refs"], of["expressions"]) for split, of in counts[0].items()}
  )


def _of_raw_files(table: Table, name: str) -> Contents:
  reader = refer.RefReader(name, table.refer_root, table.annotations or None)
  image_ids = frozenset(i for ids in reader.splits.values() for i in ids)
  errors = []
  for image_id in sorted(image_ids):
    try:
      reader.image_path(table.images, image_id)
    except InputError as error:
      errors.append(error)
  if errors:
    raise InputError(f"{errors[0]} ({len(errors):,} of {len(image_ids):,} images)")
  return Contents({split: reader.count(split) for split in reader.splits}, image_ids)


def check_trained(run: Run, contents: Mapping[str, Contents], table: Table) -> None:
  """Checks that a run has something to train on, and weights to start from if it is a new one.

  Raises:
    InputError: a train split has no refs, or the weights or their tokenizer are missing.
  """
  for name in run.datasets:
    if "train" not in contents[name].splits:
      raise InputError(
        f"--train {run.model}: {name} has no refs in its train split; leave {run.model} out of "
        "--train (--across evaluates the other models on it)"
      )
  if checkpoint.exists(table.run_dir(run)):
    return
  if run.config.tokenizer:
    open_tokenizer(run.config.tokenizer)
  elif run.config.init:
    try:
      start.open_tokenizer(run.config.init)
    except InputError as error:
      raise InputError(f"{error}; or set another start with --config.init") from error
