"""Gradio's fields for uploads, which give the file as it came: nothing of it is decoded, and nothing fetched."""

import abc
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.data_classes import FileData, ImageData  # pyright: ignore[reportMissingImports]

_FETCHES = ("http:", "https:")


class _Unwritten(type(gr.Image)):
  """Gradio's metaclass, but it writes no stub file into this package when a class is made."""

  def __new__(cls, name: str, bases: tuple, attrs: dict) -> Any:
    return abc.ABCMeta.__new__(cls, name, bases, attrs)


class _Uploaded:
  """Takes what was uploaded to this server; an address of somewhere else is not asked."""

  async def async_move_resource_to_block_cache(self, url_or_file_path: str | None) -> str | None:
    if str(url_or_file_path or "").lower().startswith(_FETCHES):
      raise gr.Error("Files are not fetched from other addresses: upload the file itself.")
    return await super().async_move_resource_to_block_cache(url_or_file_path)  # pyright: ignore


class Photo(_Uploaded, gr.Image, metaclass=_Unwritten):
  """A picture to upload; the function gets the path of the file, before anybody has decoded it."""

  data_model = ImageData

  def get_block_name(self) -> str:
    """The name of the part of Gradio's page that shows it."""
    return "image"

  def preprocess(self, payload) -> str | None:
    """Args: payload is where Gradio put the file. Returns its path."""
    return None if payload is None else payload.path


class MasksFile(_Uploaded, gr.File, metaclass=_Unwritten):
  """A file to upload; the function gets its path."""

  data_model = FileData

  def get_block_name(self) -> str:
    """The name of the part of Gradio's page that shows it."""
    return "file"

  def preprocess(self, payload) -> str | None:
    """Args: payload is where Gradio put the file. Returns its path."""
    return None if payload is None else payload.path
