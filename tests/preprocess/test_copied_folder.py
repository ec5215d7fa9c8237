"""The preprocessing that exported models ship: a copy of the folder runs without our packages."""

import pathlib
import shutil
import subprocess
import sys

import numpy as np

from input_pipeline.preprocess import model_inputs
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer

_PACKAGE = pathlib.Path(model_inputs.__file__).parents[1]
_SHARED = ("errors.py", "untrusted_files.py")
_PROGRAM = """
import sys
for name in ("jaxtyping", "input_pipeline", "mail_jax", "jax", "tokenizers"):
  sys.modules[name] = None  # as if it were not installed
import numpy as np
from shipped.preprocess import model_inputs, tokenizer
text = tokenizer.SentencePieceTokenizer(open("tokenizer.model", "rb").read())
sizes = {"image_size": 16, "max_instances": 20, "max_tokens": 8}
given = np.load("given.npz")
batch, cut = model_inputs.prepare(given["pixels"], ["A red STAR"], given["masks"], text, **sizes)
np.savez("batch.npz", cut=cut, **batch)
"""


def test_a_copy_computes_the_same_without_our_packages(tmp_path):
  shutil.copytree(_PACKAGE / "preprocess", tmp_path / "shipped" / "preprocess")
  common = tmp_path / "shipped" / "common"
  common.mkdir()
  for name in _SHARED:
    shutil.copy(_PACKAGE / "common" / name, common)
  tokenizer = SentencePieceTokenizer.train(["a red star", "a blue ring"], 300)
  (tmp_path / "tokenizer.model").write_bytes(tokenizer.file_bytes())
  rng = np.random.default_rng(0)
  pixels, masks = rng.integers(0, 256, (30, 40, 3), np.uint8), rng.random((18, 30, 40)) < 0.5
  np.savez(tmp_path / "given.npz", pixels=pixels, masks=masks)
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  expected, cut = model_inputs.prepare(
    pixels, ["A red STAR"], masks, tokenizer, image_size=16, max_instances=20, max_tokens=8
  )
  batch = np.load(tmp_path / "batch.npz")
  assert set(batch) == {"cut", *expected}
  np.testing.assert_array_equal(batch["cut"], cut)
  for name, value in expected.items():
    assert batch[name].dtype == value.dtype
    np.testing.assert_array_equal(batch[name], value)
