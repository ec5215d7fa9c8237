"""Whether a folder holds the run that a command asks for."""

from typing import Any

from ml_collections import ConfigDict

from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import Tokenizer
from mail_jax.checkpoints import checkpoint
from mail_jax.config import MAY_CHANGE, flatten, to_json
from mail_jax.distributed import processes


def check_same(
  meta: dict[str, Any], config: ConfigDict, tokenizer: Tokenizer, workdir: str
) -> None:
  """Refuses to go on with a run under another config, or on text that is tokenized otherwise.

  Raises:
    InputError: names the first key that differs.
  """
  before, after = flatten(meta["config"]), flatten(to_json(config))
  for key in sorted(before.keys() | after.keys()):
    if before.get(key) != after.get(key) and not key.startswith(MAY_CHANGE):
      raise InputError(
        f"--workdir {workdir} holds a run with config.{key} = {before.get(key)!r}, not {after.get(key)!r}; "
        "choose another --workdir, or add --archive_existing to move it aside"
      )
  if checkpoint.unpack_bytes(meta["tokenizer"]) != tokenizer.to_bytes():
    raise InputError(
      f"--workdir {workdir} holds a run whose tokenizer came of other training sentences; "
      "choose another --workdir, or add --archive_existing to move it aside"
    )


def archive_existing(workdir: str, config: ConfigDict, tokenizer: Tokenizer) -> None:
  """Moves a run with another config or tokenizer aside, to WORKDIR.1, .2, ...; nothing is deleted."""
  if not checkpoint.exists(workdir):
    return
  checkpoints = checkpoint.Checkpoints(workdir, config.best_metric)
  latest = checkpoints.latest()
  assert latest is not None
  meta = checkpoints.meta(latest)
  checkpoints.close()
  try:
    check_same(meta, config, tokenizer, workdir)
  except InputError:
    new = checkpoint.move_aside(workdir)
    if processes.is_main():
      print(f"{workdir} held a run with other settings: moved to {new}", flush=True)
