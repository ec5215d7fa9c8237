"""Logs to Weights & Biases; its failures never end a run."""

import importlib.util
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from mail_jax.distributed import processes
from mail_jax.train.logging.samples import Picture
from mail_jax.train.logging.tensorboard import scalars

FILE = "wandb.json"
"""Has the id of the run in the workdir, so that a resumed run keeps it."""
# Timeouts in seconds: of the beginning of a run, and of its end with data that is not sent yet.
_BEGIN, _END = 60, 120
# With several processes, the others do not wait longer than that for the end.
_END_TOGETHER = processes.SHUTDOWN - 10


def check_installed() -> None:
  """Checks that wandb is installed.

  Raises:
    InputError: it is not installed.
  """
  if importlib.util.find_spec("wandb") is None:
    raise InputError('config.log.wandb needs the package wandb: pip install "mail_jax[wandb]"')


class WandbRun:
  """A run of Weights & Biases; after a failure it logs nothing more, and training continues."""

  def __init__(
    self,
    project: str,
    workdir: str,
    config: Mapping[str, Any],
    print_line: Callable[[str], None],
    rows: Sequence[Mapping[str, Any]] = (),
  ):
    """Begins or resumes the run.

    Args:
      project: PROJECT or ENTITY/PROJECT.
      workdir: of the training run, on a disk or in a bucket.
      config: of the run, plain data.
      print_line: prints a line.
      rows: of the log so far. What is uploaded of an offline start replaces what earlier starts
        have uploaded (wandb#5865), so an offline start repeats them.
    """
    self._print_line = print_line
    self._run: Any = None
    self._wandb: Any = None
    file = buckets.folder(workdir, "--workdir") / FILE
    folder = tempfile.mkdtemp(prefix="wandb-") if buckets.is_remote(workdir) else workdir
    known = json.loads(file.read_text()) if file.exists() else {}
    ids = {"id": known["id"], "resume": "allow"} if known.get("project") == project else {}
    entity, _, name = project.rpartition("/")
    options = {
      "project": name,
      "entity": entity or None,
      "name": pathlib.PurePath(workdir).name,
      "dir": folder,
      "config": dict(config),
    } | ids
    try:
      import wandb  # pyright: ignore[reportMissingImports]

      self._wandb = wandb
      self._run = self._begin(options)
      file.write_text(json.dumps({"project": project, "id": self._run.id}) + "\n")
      self._print_line(f"wandb: {self._where()}")
      for row in rows if self._run.offline else ():
        self.row(row["step"], {key: value for key, value in row.items() if key != "step"})
    except Exception as error:
      self._give_up(error)

  def _begin(self, options: dict[str, Any]) -> Any:
    """Begins the run online, or if that fails offline, to be synced later."""
    assert self._wandb is not None
    settings = self._wandb.Settings(
      # The terminal is ours, and not part of the run.
      silent=True,
      console="off",
      init_timeout=_BEGIN,
      login_timeout=_BEGIN,
      finish_timeout=_END if jax.process_count() == 1 else _END_TOGETHER,
    )
    try:
      return self._wandb.init(**options, settings=settings)
    except Exception as error:
      self._print_line(f"wandb: {_first_line(error)}; logging this start offline")
      return self._wandb.init(**options, settings=settings, mode="offline")

  def _where(self) -> str:
    if not self._run.offline:
      return self._run.url
    return f"offline, in {pathlib.Path(self._run.dir).parent}; upload with `wandb sync`"

  def row(self, step: int, values: Mapping[str, Any]) -> None:
    """Sends a row of the log; the service ignores rows of steps that it already has."""
    self._send(dict(scalars(values)), step)

  def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
    """Sends the pictures with their captions."""
    if self._run is None or self._wandb is None:
      return
    try:
      images = {p.name: self._wandb.Image(p.pixels, caption=p.caption) for p in pictures}
    except Exception as error:
      self._give_up(error)
      return
    self._send(images, step)

  def _send(self, values: dict[str, Any], step: int) -> None:
    if self._run is None:
      return
    try:
      self._run.log(values, step=step)
    except Exception as error:
      self._give_up(error)

  def flush(self) -> None:
    """Does nothing; wandb's own process writes."""

  def close(self, failed: bool = False) -> None:
    """Ends the run."""
    run, self._run = self._run, None
    if run is None:
      return
    try:
      run.finish(exit_code=1 if failed else 0)
    except Exception as error:
      self._give_up(error)

  def _give_up(self, error: Exception) -> None:
    self._run = None
    self._print_line(f"wandb: {_first_line(error)}; W&B logging disabled, training continues")


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
