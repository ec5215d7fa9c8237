"""What a run tells, to Weights & Biases: only where it is asked for, and never at the cost of the run."""

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
"""Keeps in the workdir which run it is there, so that a resumed one goes on as the same."""
# Seconds that the service is waited for: when a run begins, and when it ends with something not sent yet.
_BEGIN, _END = 60, 120
# Where several processes end together, the others do not wait for longer.
_END_TOGETHER = processes.SHUTDOWN - 10


def check_installed() -> None:
  """Looks whether the package is there.

  Raises:
    InputError: it is not.
  """
  if importlib.util.find_spec("wandb") is None:
    raise InputError('config.log.wandb needs the package wandb: pip install "mail_jax[wandb]"')


class WandbRun:
  """A run there; what fails there is said once, and the training goes on."""

  def __init__(
    self, project: str, workdir: str, config: Mapping[str, Any], say: Callable[[str], None]
  ):
    """Begins or continues the run.

    Args:
      project: PROJECT or ENTITY/PROJECT.
      workdir: of the training run, on a disk or in a bucket.
      config: of the run, plain data.
      say: prints a line.
    """
    self._say = say
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
      self._say(f"wandb: {self._where()}")
    except Exception as error:  # theirs to fail in any way
      self._give_up(error)

  def _begin(self, options: dict[str, Any]) -> Any:
    """Online, or where that fails offline, to be sent later."""
    assert self._wandb is not None
    settings = self._wandb.Settings(
      silent=True,  # the terminal is ours,
      console="off",  # and what is printed no part of the run
      init_timeout=_BEGIN,
      login_timeout=_BEGIN,
      finish_timeout=_END if jax.process_count() == 1 else _END_TOGETHER,
    )
    try:
      return self._wandb.init(**options, settings=settings)
    except Exception as error:
      self._say(f"wandb: {_first_line(error)}; this start is kept offline")
      return self._wandb.init(**options, settings=settings, mode="offline")

  def _where(self) -> str:
    if not self._run.offline:
      return self._run.url
    return f"offline, in {pathlib.Path(self._run.dir).parent}; `wandb sync` sends it"

  def row(self, step: int, values: Mapping[str, Any]) -> None:
    """Sends a row of the log; of a step that the service has already it drops what comes again."""
    self._send(dict(scalars(values)), step)

  def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
    """Sends the pictures, with their captions."""
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
    """Their process writes by itself."""

  def close(self, failed: bool = False) -> None:
    """Ends the run there."""
    run, self._run = self._run, None
    if run is None:
      return
    try:
      run.finish(exit_code=1 if failed else 0)
    except Exception as error:
      self._give_up(error)

  def _give_up(self, error: Exception) -> None:
    self._run = None
    self._say(f"wandb: {_first_line(error)}; it is told nothing more, the training goes on")


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
