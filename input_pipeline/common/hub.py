"""Downloads files of repositories on the Hugging Face Hub.

huggingface_hub does the work: it resumes, checks sizes, and knows the cache (HF_HOME), the token
(HF_TOKEN, or a login) and offline mode (HF_HUB_OFFLINE) as its users do.
"""

import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from input_pipeline.common import atomic_files
from input_pipeline.common.errors import InputError

PAUSES = (1.0, 5.0, 25.0)
"""Seconds to wait after each attempt that brought nothing; then a download ends with an error."""
CHUNK = 1 << 16
"""Bytes that are written at a time: an interrupted chunk is lost; huggingface_hub's have 10 MB."""


def endpoint() -> str | None:
  """Returns the address of the Hub if `HF_ENDPOINT` names one, else None."""
  return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def check_installed(needed_by: str) -> None:
  """Checks that huggingface_hub is installed.

  Args:
    needed_by: the option or the address that needs it, for the message.

  Raises:
    InputError: it is not.
  """
  try:
    import huggingface_hub  # noqa: F401
  except ImportError as error:
    raise InputError(
      f"{needed_by} needs the package huggingface-hub; pip install huggingface-hub"
    ) from error


def snapshot(
  repository: str,
  patterns: Sequence[str],
  *,
  kind: str = "model",
  revision: str | None = None,
  folder: pathlib.Path | None = None,
) -> pathlib.Path:
  """Downloads files of a repository; resumes as long as each attempt brings something.

  Without the network, files in the cache are enough.

  Args:
    repository: `owner/name`.
    patterns: of the names; others are not downloaded.
    kind: `model` or `dataset`.
    revision: a branch, a tag or a commit; None for the main branch.
    folder: where to; None for the cache.

  Returns:
    The folder with the files: of a commit in the cache, or `folder`.

  Raises:
    Exception: any of huggingface_hub, requests or httpx; `first_line` shortens its message.
  """
  import huggingface_hub
  from huggingface_hub import constants, file_download

  def transfer() -> str:
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    return huggingface_hub.snapshot_download(
      repository,
      repo_type=kind,
      revision=revision,
      local_dir=folder,
      allow_patterns=list(patterns),
      endpoint=endpoint(),
    )

  if folder is not None:
    return pathlib.Path(keep_trying(transfer, folder))
  name = file_download.repo_folder_name(repo_id=repository, repo_type=kind)
  return pathlib.Path(keep_trying(transfer, pathlib.Path(constants.HF_HUB_CACHE, name), ()))


def keep_trying(
  transfer: Callable[[], Any], path: pathlib.Path, pauses: Sequence[float] | None = None
) -> Any:
  """Transfers until it succeeds, or until several attempts in a row bring nothing.

  Args:
    transfer: to do; its last error is raised.
    path: of the file or folder that grows.
    pauses: seconds to wait after each attempt that brought nothing; `PAUSES` for None.

  Returns:
    What `transfer` returns.
  """
  all_pauses = PAUSES if pauses is None else pauses
  left = list(all_pauses)
  while True:
    before = atomic_files.size_of(path)
    try:
      return transfer()
    except Exception as error:
      status = getattr(getattr(error, "response", None), "status_code", None)
      refused = status is not None and 400 <= status < 500 and status not in (408, 416, 429)
      if refused or (isinstance(error, OSError) and error.errno in atomic_files.FULL):
        raise
      if atomic_files.size_of(path) > before:
        left = list(all_pauses)
      elif not left:
        raise
      else:
        time.sleep(left.pop(0))


def first_line(error: Any) -> str:
  """Returns the first line of an error's message, or what kind of error it is."""
  text = str(error).strip()
  return text.splitlines()[0].rstrip(".") if text else type(error).__name__
