"""Exported models on the Hugging Face Hub: `hf://USER/NAME[@REVISION]`."""

import os
import pathlib
import re
import urllib.parse
from typing import Any, NamedTuple

from etils import epath

from input_pipeline.common import atomic_files
from input_pipeline.common import hub as downloads
from input_pipeline.common.errors import InputError
from mail_jax.export import folder

SCHEME = "hf://"
_FORM = re.compile(
  r"hf://(?P<repository>[\w.-]+/[\w.-]+)"
  r"(@(?P<revision>refs/(pr|convert)/\w+|[^/@]+))?(/(?P<format>[^@]+?))?/?"
)
# Files of an earlier push, in place of which there may be none now.
_REPLACED = ("*.onnx", "*.data", "*.safetensors", "*.py", "pictures/*", "preprocess/*")
_REPLACED += ("model.stablehlo", "saved_model/*", *folder.TOKENIZERS.values())
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class Address(NamedTuple):
  """An address of a model.

  Attributes:
    repository: `USER/NAME`.
    revision: a branch, a tag or a commit; None for the main branch.
    format: the file or folder of one format; empty for the safetensors.
  """

  repository: str
  revision: str | None = None
  format: str = ""

  def __str__(self) -> str:
    revision = f"@{self.revision}" if self.revision else ""
    return f"{SCHEME}{self.repository}{revision}{self.format and f'/{self.format}'}"


def is_address(named: str) -> bool:
  """Returns whether this is an address on the Hub, well-formed or not."""
  return named.startswith(SCHEME)


def parse(named: str) -> Address:
  """Returns the parts of an address.

  Raises:
    InputError: it has another form.
  """
  match = _FORM.fullmatch(named)
  if match is None or ".." in named:
    raise InputError(f"{named}: expected hf://USER/NAME or hf://USER/NAME@REVISION")
  revision = match["revision"] and urllib.parse.unquote(match["revision"])
  return Address(match["repository"], revision, match["format"] or "")


def fetch(named: str) -> str:
  """Downloads an exported model to the cache of huggingface_hub, unless it is there.

  Only the files of one format are transferred, with the tokenizer. A file whose contents are not
  those that were exported is transferred again, once.

  Args:
    named: `hf://USER/NAME`, with `@REVISION` for a branch, a tag or a commit, and `/FORMAT`, such
      as `/model.onnx`, for another format than safetensors.

  Returns:
    The path of the folder in the cache, or of the format in it.

  Raises:
    InputError: the repository, the revision or a file is not there or may not be read, it is not a
      model of ours, or the Hub cannot be reached and the cache does not have it.
  """
  address = parse(named)
  downloads.check_installed(named)
  place = _download(address, [folder.ABOUT])
  if not (place / folder.ABOUT).is_file():
    raise InputError(f"{named}: not a model exported by mail_jax: it has no {folder.ABOUT}")
  try:
    about = folder.read_about(epath.Path(place))
  except InputError as error:
    reason = str(error).removeprefix(f"{place}{os.sep}")
    raise InputError(f"{named}: {reason}") from error
  names = _needed(address, about)
  # The same commit, even if there is a newer one by now.
  _download(address._replace(revision=place.name), names, str(address))
  _check(address, place, about, names)
  return str(place / address.format)


def _needed(address: Address, about: dict[str, Any]) -> list[str]:
  """Returns the names of the files of a format, of the tokenizer and of image hashes."""
  places = {place: form for form, place in folder.PLACES.items()}
  form = places.get(address.format.split("/")[0]) if address.format else "safetensors"
  model = folder.names_of(about, form) if form else []
  if not model:
    has = ", ".join(folder.PLACES[form] for form in folder.PLACES if folder.names_of(about, form))
    wanted = address.format or folder.PLACES["safetensors"]
    raise InputError(f"{address}: has no {wanted}, but {has or 'no model'}")
  others = [name for name in (about["tokenizer"]["file"], folder.IMAGES) if name in about["files"]]
  return [*model, *others]


def _check(address: Address, place: pathlib.Path, about: dict[str, Any], names: list[str]) -> None:
  """Checks that files are there and intact; downloads damaged ones again, once."""
  import huggingface_hub
  from huggingface_hub import constants

  missing = [name for name in names if not (place / name).is_file()]
  if missing and constants.HF_HUB_OFFLINE:
    raise InputError(
      f"{address}: HF_HUB_OFFLINE is set, and {' and '.join(missing)} is not in the cache ({place})"
    )
  if missing:
    raise InputError(
      f"{address}: has no {' and '.join(missing)}, which its {folder.ABOUT} lists; push the whole "
      "exported folder"
    )
  for name in names:
    if folder.is_intact(epath.Path(place), about, name):
      continue
    try:
      huggingface_hub.hf_hub_download(
        address.repository,
        name,
        revision=place.name,
        force_download=True,
        endpoint=downloads.endpoint(),
      )
    except Exception as error:  # of requests or httpx, by the version of huggingface_hub
      raise InputError(
        f"{address}: {name} in the cache ({place}) is damaged, and could not be downloaded again: "
        f"{_explain(error, address)}"
      ) from error
    if not folder.is_intact(epath.Path(place), about, name):
      raise InputError(f"{address}: {name} is not what was exported; export and push again")


def _download(address: Address, names: list[str], shown: str = "") -> pathlib.Path:
  """Returns the folder in the cache that has some files of a revision."""
  try:
    return downloads.snapshot(address.repository, names, revision=address.revision)
  except Exception as error:  # of requests or httpx, by the version of huggingface_hub
    raise InputError(f"{shown or address}: {_explain(error, address)}") from error


def _explain(error: BaseException, address: Address) -> str:
  """Returns why a request failed, and a way out."""
  from huggingface_hub import constants, errors

  site = downloads.endpoint() or constants.ENDPOINT
  status = getattr(getattr(error, "response", None), "status_code", None)
  if isinstance(error, errors.GatedRepoError):
    return f"gated: accept its terms at {site}/{address.repository}, and {_LOG_IN}"
  if isinstance(error, errors.RepositoryNotFoundError):
    return f"no such repository at {site}, or a private one; if it is private, {_LOG_IN}"
  if isinstance(error, errors.RevisionNotFoundError):
    return f"has no branch, tag or commit {address.revision}"
  if status in (401, 403):
    return f"refused ({status}: {_message(error)}); {_LOG_IN}, with a token that may do this"
  if _is_offline(error):
    return f"HF_HUB_OFFLINE is set, and it is not in the cache ({constants.HF_HUB_CACHE})"
  if isinstance(error, errors.LocalEntryNotFoundError):
    reason = downloads.first_line(error.__cause__ or error)
    return f"not in the cache ({constants.HF_HUB_CACHE}), and {site} cannot be reached ({reason})"
  if isinstance(error, OSError) and error.errno in atomic_files.FULL:
    return f"{atomic_files.describe_error(error, constants.HF_HUB_CACHE)}; set HF_HOME to elsewhere"
  return f"{_message(error)}; run the command again"


def _is_offline(error: BaseException | None) -> bool:
  """Returns whether an error, or one that led to it, is of offline mode."""
  from huggingface_hub import errors

  while error is not None:
    if isinstance(error, errors.OfflineModeIsEnabled):
      return True
    error = error.__cause__ or error.__context__
  return False


def _message(error: BaseException) -> str:
  """Returns the server's own message, or else the first line of the error's."""
  told = getattr(error, "server_message", None)
  return downloads.first_line(told or error)


def check_pushable(named: str) -> Address:
  """Checks what can be checked of an address to push to, before any work.

  Raises:
    InputError: it has another form, there is no token, or offline mode is on.
  """
  try:
    address = parse(named)
  except InputError as error:
    raise InputError(f"--push {error}") from error
  if address.format:
    raise InputError(f"--push {named}: expected hf://USER/NAME or hf://USER/NAME@BRANCH")
  downloads.check_installed(f"--push {named}")
  import huggingface_hub
  from huggingface_hub import constants

  if constants.HF_HUB_OFFLINE:
    raise InputError(f"--push {named}: HF_HUB_OFFLINE is set; unset it to push")
  if huggingface_hub.get_token() is None:
    raise InputError(f"--push {named}: no token; {_LOG_IN}")
  return address


def push(exported: pathlib.Path, address: Address, private: bool = False) -> str:
  """Uploads an exported folder in one commit; creates the repository or the branch if need be.

  Files of an earlier push that the folder does not have are removed.

  Args:
    exported: the folder.
    address: from `check_pushable`.
    private: of a repository that is created.

  Returns:
    The address of the commit for a browser.

  Raises:
    InputError: the Hub refuses or cannot be reached, or the repository holds something else.
  """
  import huggingface_hub

  api = huggingface_hub.HfApi(endpoint=downloads.endpoint())
  about = folder.read_about(epath.Path(exported))
  try:
    api.create_repo(address.repository, private=private or None, exist_ok=True)
    if address.revision:
      api.create_branch(address.repository, branch=address.revision, exist_ok=True)
    _check_ours(api, address)
    commit = api.upload_folder(
      repo_id=address.repository,
      folder_path=exported,
      revision=address.revision,
      commit_message=f"Model of mail_jax, step {about['step']}",
      delete_patterns=list(_REPLACED),
    )
  except InputError:
    raise
  except Exception as error:  # of requests or httpx, by the version of huggingface_hub
    # Of an upload, the reason is the cause.
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    raise InputError(f"--push {address}: {_explain(cause or error, address)}") from error
  return str(commit.commit_url)


def _check_ours(api: Any, address: Address) -> None:
  """Checks that a repository is empty or has an export of ours: no other one is replaced."""
  names = set(api.list_repo_files(address.repository, revision=address.revision))
  if not names - {".gitattributes", folder.README}:
    return
  if folder.ABOUT in names:
    place = _download(address, [folder.ABOUT])
    try:
      folder.read_about(epath.Path(place))
      return
    except InputError:
      pass
  raise InputError(
    f"--push {address}: the repository has other files than a model of mail_jax; name a new one"
  )
