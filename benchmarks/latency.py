r"""Measures the latency from an image file to a mask of its size:

  python -m benchmarks.latency --checkpoint runs/demo
  python -m benchmarks.latency --config configs/refcoco.py:unc --config.model.dtype=float32 \
      --rounds 5

`Segmenter` and ONNX Runtime, with the same exported model and preprocessing, take turns on the same
images; their masks must agree before the measurement. With --config the weights are random; the
time does not depend on them. Needs onnx and onnxruntime (`make extras`).
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError, run_command
from input_pipeline.preprocess import model_inputs
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer
from input_pipeline.shapes import scenes
from mail_jax.config import load_config
from mail_jax.export import formats, load
from mail_jax.models.build import init_variables, make_model
from mail_jax.predict.segmenter import Segmenter

_TEXTS = tuple(f"the {size} {shape}" for size in ("large", "small") for shape in scenes.SHAPES)
_MORE = 8  # expressions that are asked of a photo beside the first
_CLOSE = 1e-3  # of the probability; pixels that are nearer to 0.5 may differ


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", help="run, or exported model with parameters")
  parser.add_argument("--config", help="recipe instead, with random weights")
  parser.add_argument("--width", type=int, default=640, help="of the images (default: 640)")
  parser.add_argument("--height", type=int, default=480, help="of the images (default: 480)")
  parser.add_argument("--rounds", type=int, default=15, help="turns (default: 15)")
  args, overrides = parser.parse_known_args(argv)
  if (args.checkpoint is None) == (args.config is None):
    raise InputError("give --checkpoint or --config")
  began = time.perf_counter()
  model = load.load(args.checkpoint) if args.checkpoint else _random(args.config, overrides)
  loaded = time.perf_counter() - began
  with tempfile.TemporaryDirectory() as folder:
    figures = measure(model, pathlib.Path(folder), args.width, args.height, args.rounds)
  print(json.dumps({"load_s": round(loaded, 2)} | figures))


def _random(path: str, overrides: list[str]) -> load.LoadedModel:
  config = load_config(path, overrides)
  tokenizer = SentencePieceTokenizer.train(list(_TEXTS), 300)
  model = make_model(config, tokenizer.vocab_size)
  variables = init_variables(model, config)
  return load.LoadedModel(config, model, jax.device_put(variables), tokenizer, 0)


def measure(
  model: load.LoadedModel, folder: pathlib.Path, width: int, height: int, rounds: int
) -> dict[str, Any]:
  """Returns milliseconds, medians of `rounds` turns, and the ratio of both within a turn."""
  photos = _photos(folder, width, height)
  segmenter, peer = Segmenter(model), _onnx(model, folder)
  masks = np.zeros((4, height, width), bool)
  for k in range(4):
    masks[k, 20 + 90 * k : 110 + 90 * k, 30 : width // 2] = True
  first = _seconds(lambda: segmenter(photos[0], _TEXTS[0], masks))
  _check(segmenter(photos[0], _TEXTS[0], masks), peer(photos[0], _TEXTS[0], masks))
  ours, theirs, more = [], [], []
  for turn in range(rounds):
    photo, text = photos[turn % len(photos)], _TEXTS[turn % len(_TEXTS)]
    ours.append(_seconds(lambda p=photo, t=text: segmenter(p, t, masks)))
    theirs.append(_seconds(lambda p=photo, t=text: peer(p, t, masks)))
    all_of_them = _seconds(lambda p=photo: segmenter(p, _TEXTS[: _MORE + 1], masks))
    more.append((all_of_them - ours[-1]) / _MORE)
  ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
  return {
    "first_ms": round(1e3 * first),
    "photo_ms": round(1e3 * statistics.median(ours), 1),
    "expression_ms": round(1e3 * statistics.median(more), 1),
    "onnx_ms": round(1e3 * statistics.median(theirs), 1),
    "times_as_fast": round(statistics.median(ratios), 2),
  }


def _seconds(run: Callable[[], Any]) -> float:
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def _photos(folder: pathlib.Path, width: int, height: int) -> list[str]:
  """Writes generated scenes as JPEGs of a size."""
  paths = []
  for index in range(4):
    scene = Image.fromarray(scenes.make_scene("val", 0, index, size=256).image)
    paths.append(str(folder / f"{index}.jpg"))
    scene.resize((width, height)).save(paths[-1], quality=92)
  return paths


def _onnx(model: load.LoadedModel, folder: pathlib.Path) -> Callable[..., np.ndarray]:
  """Opens the model in ONNX Runtime, like the `run_onnx.py` of an exported model."""
  import onnxruntime  # pyright: ignore[reportMissingImports]

  place = folder / "model.onnx"
  formats.write("onnx", place, model.config, model.model, jax.device_get(model.on_one_device()))
  session = onnxruntime.InferenceSession(place)
  names = [output.name for output in session.get_outputs()]
  sizes = {key: model.config[key] for key in ("image_size", "max_instances", "max_tokens")}

  def segment(photo: str, text: str, masks: np.ndarray) -> np.ndarray:
    pixels = preprocess.open_image(photo)
    inputs, _ = model_inputs.prepare(pixels, [text], masks, model.tokenizer, **sizes)
    outputs: dict[str, Any] = dict(zip(names, session.run(names, inputs), strict=True))
    height, width = pixels.shape[:2]
    nothing = outputs.get("no_target", [None])[0]
    return preprocess.mask_from_logits(outputs["logits"][0], height, width, nothing)

  return segment


def _check(ours: Any, theirs: np.ndarray) -> None:
  wrong = (ours.mask != theirs) & (np.abs(ours.probability - 0.5) > _CLOSE)
  if wrong.any():
    print(f"the masks differ in {wrong.sum()} pixels", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  run_command(main)
