"""Exported models run without mail_jax, and prepare images and text as it does."""

import ast
import importlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import exported_models
import jax
import numpy as np
import pytest
import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.preprocess import bit_planes, model_inputs, tokenizer
from mail_jax.export import scripts
from mail_jax.models.resize import resize_logits
from mail_jax.predict.segmenter import Segmenter

RESIZE = jax.jit(resize_logits, static_argnums=2)
WORDS = [
  "[PAD]",
  "[UNK]",
  "[CLS]",
  "[SEP]",
  "the",
  "left",
  "##most",
  "star",
  "cafe",
  "!",
  ",",
  "red",
  "##s",
  "a",
]
TEXTS = [
  "The LEFTMOST star!",
  "café, red stars",
  "\uff26\uff35\uff2c\uff2c\u3000\uff57ide",
  "a\u200bb\u00a0c",
  "日本 star",
  "İstanbul",
  "  two   spaces ",
  "ﬁne ① Ⅳ",
  "x" * 120,
  "emoji 🙂 star",
  "tab\tand\nline",
]


class Shipped(NamedTuple):
  """The preprocessing as it is shipped, imported from a copy."""

  preprocess: ModuleType
  model_inputs: ModuleType
  tokenizer: ModuleType


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Iterator[Shipped]:
  """A copy, imported under a name of its own."""
  folder = tmp_path_factory.mktemp("shipped")
  scripts.copy_preprocessing(folder / "shipped_code")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(folder))
    names = ("preprocess", "preprocess.model_inputs", "preprocess.tokenizer")
    yield Shipped(*(importlib.import_module(f"shipped_code.{name}") for name in names))


@pytest.fixture(scope="module")
def tokenizers(exported) -> dict[str, tokenizer.Tokenizer]:
  """A tokenizer of each kind."""
  return {
    "wordpiece": tokenizer.WordPieceTokenizer("\n".join(WORDS).encode()),
    "sentencepiece": tokenizer.SentencePieceTokenizer((exported / "tokenizer.model").read_bytes()),
  }


@pytest.fixture(scope="module", params=["wordpiece", "sentencepiece"])
def pair(request, tokenizers, shipped) -> tuple[Any, Any]:
  """A tokenizer of each kind, ours and the shipped one."""
  ours = tokenizers[request.param]
  return ours, shipped.tokenizer.from_file_bytes(request.param, ours.file_bytes(), "vocabulary")


def test_what_is_shipped_imports_only_numpy_and_pillow_and_the_rest_where_it_is_used(tmp_path):
  scripts.copy_preprocessing(tmp_path / "shipped")
  for path in (tmp_path / "shipped").rglob("*.py"):
    inside, everywhere = set(), set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      names = set()
      if isinstance(node, ast.Import):
        names = {alias.name.partition(".")[0] for alias in node.names}
      if isinstance(node, ast.ImportFrom) and not node.level:
        names = {(node.module or "").partition(".")[0]}
      everywhere |= names - sys.stdlib_module_names
      inside |= set() if node in tree.body else names - sys.stdlib_module_names
    assert everywhere - inside <= {"numpy", "PIL"}, path
    assert inside <= {*scripts.TOKENIZER_PACKAGES.values(), "jaxtyping"}, path


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
def test_what_is_shipped_runs_with_numpy_pillow_and_the_package_of_its_tokenizer(
  tokenizers, tmp_path, kind
):
  scripts.copy_preprocessing(tmp_path / "shipped")
  (tmp_path / "vocabulary").write_bytes(tokenizers[kind].file_bytes())
  missing = {*scripts.TOKENIZER_PACKAGES.values(), "jaxtyping", "jax", "tensorflow"}
  missing.remove(scripts.TOKENIZER_PACKAGES[kind])
  program = f"""
import sys
sys.modules |= dict.fromkeys({sorted(missing)})
import numpy as np
from shipped.preprocess.model_inputs import prepare
from shipped.preprocess.tokenizer import from_file_bytes
tokenizer = from_file_bytes({kind!r}, open("vocabulary", "rb").read(), "vocabulary")
pixels, masks = np.zeros((6, 8, 3), np.uint8), np.ones((2, 6, 8), bool)
inputs, _ = prepare(
  pixels, ["the red star"], masks, tokenizer, image_size=16, max_instances=4, max_tokens=8
)
print(inputs["num_tokens"][0])
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
  )
  expected = tokenizers[kind](["the red star"], 8)[1][0]
  assert (done.stdout.strip(), done.stderr) == (str(expected), "")


@given(
  size=st.integers(1, 90),
  height=st.integers(1, 90),
  count=st.integers(0, 20),
  seed=st.integers(0, 9),
)
def test_shipped_code_prepares_what_ours_prepares(shipped, pair, size, height, count, seed):
  ours, theirs = pair
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (height, size, 3), np.uint8)
  masks = rng.random((count, height, size)) < 0.5
  arguments = {"image_size": 32, "max_instances": 18, "max_tokens": 8}
  expected, cut = model_inputs.prepare(pixels, TEXTS, masks, ours, **arguments)
  actual, also_cut = shipped.model_inputs.prepare(pixels, TEXTS, masks, theirs, **arguments)
  assert set(actual) == set(expected)
  for name, value in expected.items():
    assert actual[name].dtype == value.dtype
    np.testing.assert_array_equal(actual[name], value)
  np.testing.assert_array_equal(also_cut, cut)


def test_a_photo_is_prepared_by_the_functions_of_the_loader():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (45, 70, 3), np.uint8)
  masks = rng.random((3, 45, 70)) < 0.5
  word_pieces = tokenizer.WordPieceTokenizer("\n".join(WORDS).encode())
  batch, cut = model_inputs.prepare(
    pixels, ["The red star"], masks, word_pieces, image_size=32, max_instances=17, max_tokens=4
  )
  np.testing.assert_array_equal(batch["image"][0], preprocess.resize_image(pixels, 32))
  planes = preprocess.resize_planes(masks, 32)
  np.testing.assert_array_equal(bit_planes.unpackbits(batch["instances"][0], 3), planes)
  assert batch["instances"].shape == (1, 2, 32, 32)
  assert batch["num_instances"].tolist() == [3] and cut.tolist() == [True]
  assert batch["tokens"].tolist() == [[2, 4, 11, 3]]


@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_masks_are_those_of_the_device_at_the_size_of_the_photo(height, width, seed):
  logits = np.random.default_rng(seed).normal(size=(16, 16)).astype(np.float32)
  tiles, size = logits[None, ..., None], np.array([[height, width]])
  resized = RESIZE(tiles, size, (72, 80))[0, :height, :width]
  actual = preprocess.mask_from_logits(logits, height, width)
  wrong = actual != (np.asarray(resized) > 0)
  assert not (wrong & (np.abs(resized) > exported_models.MARGIN)).any()
  assert actual.any() or (resized < exported_models.MARGIN).all()


def test_a_model_that_sees_no_target_gives_an_empty_mask():
  logits = np.ones((4, 4), np.float32)
  assert preprocess.mask_from_logits(logits, 5, 6, -0.1).all()
  assert not preprocess.mask_from_logits(logits, 5, 6, 0.1).any()


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    ("flat.npy", r"\[k, height, width\]"),
    ("text.npy", "NumPy can read"),
    ("other.png", "the masks are 4 x 4"),
  ],
)
def test_masks_that_do_not_fit_are_told(tmp_path, kind, message):
  path = tmp_path / kind
  if kind == "flat.npy":
    np.save(path, np.zeros((4, 4), bool))
  elif kind == "text.npy":
    path.write_text("masks")
  else:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
  with pytest.raises(ValueError, match=message):
    preprocess.read_masks([str(path)], 8, 8)


def _check_script(folder: pathlib.Path, tmp_path: pathlib.Path, form: str) -> None:
  """Compares the script of a format with our prediction, with instance masks and without."""
  pixels = exported_models.save_photo(tmp_path / "photo.png")
  masks = tiny_model.random_boxes(np.random.default_rng(1), 4, 61)
  masks = np.pad(masks, ((0, 0), (0, 0), (0, 29)))
  np.save(tmp_path / "masks.npy", masks)
  for i, mask in enumerate(masks):
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{i}.png")
  segmenter = Segmenter.load(str(folder))
  script = folder / scripts.SCRIPTS[form][0]
  cases = {"masks.npy": masks, "": None, "0.png 1.png 2.png 3.png": masks}
  count = len(cases) if form == "onnx" else 1  # It starts fast.
  for given_masks, instances in list(cases.items())[:count]:
    printed = exported_models.run_script(
      script, "photo.png", "The leftmost STAR", "mask.png", *given_masks.split(), cwd=tmp_path
    )
    expected = segmenter(pixels, "The leftmost STAR", instances)
    with Image.open(tmp_path / "mask.png") as image:
      actual = np.asarray(image)
    assert set(np.unique(actual)) <= {0, 255}
    exported_models.assert_same_mask(actual > 0, expected.probability)
    selected = "no instance" if expected.selected is None else f"instance {expected.selected + 1}"
    assert f"{selected} of {0 if instances is None else 4} selected" in printed
  assert len(script.read_text().splitlines()) <= 45


@pytest.mark.parametrize("form", ["stablehlo", "saved_model"])
def test_the_script_of_a_format_runs_without_us(exported, tmp_path, form):
  _check_script(exported, tmp_path, form)


@pytest.mark.extras
def test_the_script_of_onnx_runs_without_us(exported_onnx, tmp_path):
  _check_script(exported_onnx, tmp_path, "onnx")


def test_real_sentences_become_the_same_tokens_and_real_photos_the_same_pixels(
  realdata, shipped, pair
):
  ours, theirs = pair
  refs = json.loads((realdata / "refcocos" / "refcocos.json").read_text())
  texts = sorted({text for text in _strings(refs) if text.strip()})[:400]
  assert len(texts) >= 50
  for actual, expected in zip(theirs(texts, 12), ours(texts, 12), strict=True):
    np.testing.assert_array_equal(actual, expected)
  for path in sorted((realdata / "coco/train2014").glob("*.jpg"))[:12]:
    pixels = preprocess.open_image(str(path))
    np.testing.assert_array_equal(shipped.preprocess.open_image(str(path)), pixels)
    np.testing.assert_array_equal(
      shipped.preprocess.resize_image(pixels, 96), preprocess.resize_image(pixels, 96)
    )


def _strings(data: object) -> list[str]:
  """Returns all strings in a JSON value."""
  if isinstance(data, str):
    return [data]
  inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
  return [text for value in inner for text in _strings(value)]
