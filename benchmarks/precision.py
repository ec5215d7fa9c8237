r"""Compares a model's precisions with float32: masks, sizes, and latency in ONNX Runtime.

  python -m input_pipeline.prepare --dataset refcoco_unc --refer_root refer --images train2014 \
      --data_dir data
  python -m benchmarks.precision --checkpoint runs/demo --data_dir data --data refcoco_unc/val

Each precision is exported as safetensors and as ONNX and segments one expression per image, at the
size of the image. `IoU` is with the mask of float32. ONNX Runtime runs the models in turns
(A B A B), one image each; `time` is the median of the ratios to float32 within a turn. Needs onnx
and onnxruntime (`make extras`).
"""

import argparse
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks import paired
from input_pipeline import preprocess
from input_pipeline.common.errors import InputError, run_command
from mail_jax.evaluate import runner
from mail_jax.export import command as export
from mail_jax.export import folder, load
from mail_jax.export.precision import PRECISIONS
from mail_jax.models.build import INPUTS

Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], Mapping[str, np.ndarray]]


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", required=True, help="run, or exported model with parameters")
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--data", required=True, metavar="DATASET/SPLIT")
  parser.add_argument("--images", type=int, default=100, help="(default: 100)")
  parser.add_argument("--rounds", type=int, default=40, help="turns (default: 40)")
  parser.add_argument("--json", metavar="OUT")
  args = parser.parse_args(argv)
  model = load.load(args.checkpoint)
  images = list(itertools.islice(_images(model, args.data_dir, args.data), args.images))
  if not images:
    raise InputError(f"--data {args.data}: has no expressions")
  with tempfile.TemporaryDirectory() as place:
    rows = measure(args.checkpoint, pathlib.Path(place), images, args.rounds)
  print(f"{len(images)} images of {args.data}; {paired.machine()}\n")
  print(paired.table(rows))
  paired.write_json(args.json, {"data": args.data, "images": len(images), "rows": rows})


def _images(
  model: load.LoadedModel, data_dir: str, data: str
) -> Iterator[tuple[Inputs, tuple[int, int]]]:
  """Yields the inputs of the first expression of each image, and the size of the image."""
  seen = set()
  for batch in runner.open_batches(model, data_dir, data, alone=True):
    for i, row in enumerate(batch["meta"]):
      if row is not None and row["image_id"] not in seen:
        seen.add(row["image_id"])
        height, width = (int(n) for n in batch["original_size"][i])
        yield {name: np.asarray(batch[name][i : i + 1]) for name in INPUTS}, (height, width)


def measure(
  checkpoint: str, place: pathlib.Path, images: list[tuple[Inputs, tuple[int, int]]], rounds: int
) -> list[dict[str, Any]]:
  """Returns a row per format and precision."""
  rows, onnx, exact = [], {}, None
  for form, precision in itertools.product(("safetensors", "onnx"), PRECISIONS):
    out = place / f"{form}-{precision}"
    [size] = export.export(checkpoint, str(out), (form,), precision=precision).values()
    run = (_open_onnx if form == "onnx" else _open_safetensors)(out)
    masks = [_mask(run(inputs), size) for inputs, size in images]
    exact = exact or masks
    found = [_iou(a, b) for a, b in zip(masks, exact, strict=True)]
    rows.append({
      "format": form, "precision": precision, "MB": size / 1e6,
      "mean IoU": float(np.mean(found)), "5th percentile": float(np.quantile(found, 0.05)),
      "lowest": min(found), "equal masks": sum(value == 1 for value in found), "time": None,
    })  # fmt: skip
    if form == "onnx":
      onnx[precision] = run
  turn = {name: itertools.cycle(images) for name in onnx}
  runs = {name: functools.partial(_timed, onnx[name], turn[name]) for name in onnx}
  spent = paired.interleave(runs, rounds)
  for row in rows:
    if row["format"] == "onnx":
      row["time"] = paired.ratio(spent[row["precision"]], spent["float32"])
  return rows


def _timed(run: Run, images: Iterator[tuple[Inputs, Any]]) -> float:
  inputs, _ = next(images)
  return paired.seconds(lambda: run(inputs))


def _open_safetensors(out: pathlib.Path) -> Run:
  model = load.load(str(out))
  apply = jax.jit(model.apply)

  def run(inputs: Inputs) -> Mapping[str, np.ndarray]:
    output = jax.device_get(apply(model.on_one_device(), inputs))
    named = {"logits": np.asarray(output.logits)}
    return named if output.no_target is None else named | {"no_target": output.no_target}

  return run


def _open_onnx(out: pathlib.Path) -> Run:
  import onnxruntime  # pyright: ignore[reportMissingImports]

  session = onnxruntime.InferenceSession(str(out / folder.PLACES["onnx"]))
  names = [output.name for output in session.get_outputs()]
  return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _mask(outputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
  nothing = outputs["no_target"][0] if "no_target" in outputs else None
  return preprocess.mask_from_logits(outputs["logits"][0], *size, nothing)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
  union = (a | b).sum()
  return float((a & b).sum() / union) if union else 1.0


if __name__ == "__main__":
  run_command(main)
