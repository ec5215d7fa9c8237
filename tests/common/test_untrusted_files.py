"""Paths to anything are read, or refused by name, at once."""

import os

import numpy as np
import pytest

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files, untrusted_json, untrusted_pickle
from input_pipeline.common.errors import InputError
from input_pipeline.custom import image_files
from input_pipeline.custom.schema import LineError
from input_pipeline.sources import annotated_images

READERS = {
  "a file": lambda path: untrusted_files.read(path, path, 1000),
  "JSON": untrusted_json.load_file,
  "a pickle": untrusted_pickle.load,
  "a photo": preprocess.open_image,
  "a photo of a data set": lambda path: annotated_images.read_image(path, (4, 4)),
  "a mask": lambda path: preprocess.read_masks([path], 4, 4),
}


@pytest.fixture(
  params=["nothing", "folder", "pipe", "device", "nul", "surrogate", "loop", "long name"]
)
def no_file(request, tmp_path) -> str:
  path = tmp_path / "it.npy"
  if request.param == "folder":
    path.mkdir()
  elif request.param == "pipe":
    os.mkfifo(path)
  elif request.param == "loop":
    path.symlink_to(path)
  odd = {
    "device": "/dev/zero",
    "nul": "a\0.npy",
    "surrogate": "\ud800.npy",
    "long name": "a" * 5000,
  }
  return odd.get(request.param, str(path))


@pytest.mark.parametrize("reader", READERS)
def test_anything_but_a_regular_file_is_refused_at_once(no_file, reader):
  with pytest.raises(InputError) as caught:
    READERS[reader](no_file)
  str(caught.value).encode()  # can be printed


def test_custom_images_that_are_not_files_are_problems(no_file):
  with pytest.raises(LineError):
    image_files.read_header(no_file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path):
  path = tmp_path / "a.json"
  path.write_text("{}")
  path.chmod(0)
  with pytest.raises(InputError, match=r"a\.json: Permission denied"):
    untrusted_json.load_file(path)


def test_the_limit_of_bytes_is_exact(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"12345")
  assert untrusted_files.read(path, "a", 5) == b"12345"
  with pytest.raises(InputError, match="a: 5 bytes; the limit is 4"):
    untrusted_files.read(path, "a", 4)


def _npy(shape: str, kind: str = "|b1", more: bytes = b"") -> bytes:
  head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
  return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + more


@pytest.mark.parametrize(
  "data",
  [
    b"",
    _npy("(1000000, 1000000, 4)"),
    _npy("(1, 4, 4)", more=b"\1" * 15),
    _npy("(-1, 4, 4)", more=b"\1" * 16),
    _npy("(1, 4, 4)", "|O", b"\x80\x02]." * 32),
    _npy("(" * 200),
    b"PK\x05\x06" + b"\0" * 18,
  ],
  ids=["empty", "terabytes", "cut", "negative", "pickled", "deep", "archive"],
)
def test_invalid_masks_of_numpy_are_refused_before_memory_is_allocated(tmp_path, data):
  path = tmp_path / "m.npy"
  path.write_bytes(data)
  with pytest.raises(InputError, match=r"m\.npy"):
    preprocess.read_masks([str(path)], 4, 4)
  path.write_bytes(_npy("(1, 4, 4)", more=b"\1" * 16))
  assert preprocess.read_masks([str(path)], 4, 4).all()
  assert np.load(path).shape == (1, 4, 4)
