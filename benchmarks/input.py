r"""Measures the training samples per second of the loader and of an equal PyTorch DataLoader:

  python -m input_pipeline.prepare --dataset refcoco_unc ... --instances coco:instances.json \
      --data_dir data
  python -m benchmarks.input --data_dir data --dataset refcoco_unc --vocab vocab.txt \
      --annotations instances.json

`--dataset shapes` reads generated scenes; with `--mixture A,B,C` our loaders read that, too, in
turns with the data set. The peer is `benchmarks/torch_input.py`; it needs torch,
opencv-python-headless and transformers, and without them only our loader is measured. It reads the
same images as files, targets as polygons of --annotations or as run lengths, and instance masks as
run lengths. Before the measurement the two must agree: exactly in tokens, and in masks and targets
of the original size; resized, except for MASK_TOLERANCE of the pixels, where a centre falls between
two pixels; images within an average of PHOTO_TOLERANCE levels of 255, because OpenCV's bilinear
filter is not antialiased. Then they take turns.
"""

import argparse
import importlib.util
import itertools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import psutil

from benchmarks import paired
from input_pipeline import records
from input_pipeline.common import parallel
from input_pipeline.common.errors import run_command
from input_pipeline.preprocess import bit_planes

PHOTO_TOLERANCE = 10.0
"""Mean difference of a photo that is allowed, in levels."""
MASK_TOLERANCE = 0.01
"""Share of the pixels of masks and target that may be their neighbours."""
WARM_UP = 5
"""Batches read before each measurement: more than any of them prepares in advance."""
PEER = "PyTorch DataLoader"
MIXED = ", mixture"


def cpu_seconds() -> float:
  """Returns the CPU seconds of this process and its children."""
  process = psutil.Process()
  times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
  return sum(t.user + t.system for t in times)


def measure(batches: Iterable[Any], count: int, batch_size: int) -> tuple[float, float]:
  """Returns samples per second and ms of CPU per sample, over `count` batches after the warm-up."""
  rest = iter(batches)
  for _ in itertools.islice(rest, WARM_UP):
    pass
  cpu, began = cpu_seconds(), time.perf_counter()
  for _ in itertools.islice(rest, count):
    pass
  seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
  return count * batch_size / seconds, 1e3 * cpu / (count * batch_size)


def ours(args: argparse.Namespace) -> dict[str, Iterator[Any]]:
  """Returns our loaders, endless pipelines that wait while others are measured."""
  from input_pipeline.preprocess.tokenizer import WordPieceTokenizer
  from input_pipeline.tf import loader

  tokenizer = WordPieceTokenizer(pathlib.Path(args.vocab).read_bytes(), args.vocab)
  found = {
    name: loader.open_training_set(args.data_dir, name)
    for name in (args.dataset, args.mixture)
    if name
  }
  shape = loader.BatchShape(args.batch_size, args.image_size, args.max_instances, args.max_tokens)

  def make(name: str, **chosen: Any) -> Iterator[Any]:
    options = loader.TrainOptions(seed=0, threads=args.workers, **chosen)
    return loader.train_batches(found[name], tokenizer, shape, options)

  plain, most = {"flip": False, "jitter": 0.0}, args.refs_per_image
  options: dict[str, dict[str, Any]] = {
    "ours": plain,
    f"ours, {most} expressions per image": plain | {"refs_per_image": most},
    f"ours, {most} expressions, flip and jitter": {"refs_per_image": most, "jitter": 0.2},
  }
  if not args.no_cache:
    options["ours, cache"] = plain | {"cache": True}
  loaders = {name: make(args.dataset, **option) for name, option in options.items()}
  if args.mixture:
    loaders |= {name + MIXED: make(args.mixture, **option) for name, option in options.items()}
  return loaders


def stored(args: argparse.Namespace, folder: pathlib.Path) -> Iterator[tuple[dict, Any]]:
  """Yields refs from our loader without augmentation, each with its row for the peer."""
  import transformers  # pyright: ignore[reportMissingImports]
  from pycocotools import mask as mask_api

  from benchmarks import torch_input
  from input_pipeline.tf import builder

  polygons = _polygons(args.annotations)
  bert = transformers.BertTokenizer(args.vocab)
  padded = {"padding": "max_length", "truncation": True, "max_length": args.max_tokens}

  def runs(masks: np.ndarray) -> list[Any]:
    return list(mask_api.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))))

  opened: Any = builder.open_dataset(args.data_dir, args.dataset)
  dataset = opened.as_dataset(split="train")
  for record in dataset:
    height, width = int(record["height"]), int(record["width"])
    path = folder / record["file_name"].numpy().decode()
    path.write_bytes(record["image"].numpy())
    count = len(record["instance_score"])
    planes = bit_planes.decode_png(record["instances"].numpy(), height)
    instances = runs(bit_planes.unpackbits(planes, count)) if count else []
    refs = record["refs"]
    for n, target in enumerate(refs["target"].numpy()):
      texts = [text.decode() for text in refs["normalised"][n].numpy()]
      ids = bert(texts, **padded)["input_ids"]
      ann_ids = refs["ann_ids"][n].numpy().tolist()
      segmentation = polygons.get(ann_ids[0]) if len(ann_ids) == 1 else None
      yield (
        {"record": record, "ref": n, "texts": texts},
        torch_input.Row(
          path=str(path),
          size=(height, width),
          target=segmentation or runs(records.decode_target(target)[None])[0],
          instances=instances,
          tokens=list(np.array(ids, np.int32)),
        ),
      )


def _polygons(annotations: str | None) -> dict[int, list]:
  if not annotations:
    return {}
  rows = json.loads(pathlib.Path(annotations).read_text(encoding="utf-8"))["annotations"]
  return {row["id"]: row["segmentation"] for row in rows if isinstance(row["segmentation"], list)}


def peer(args: argparse.Namespace, folder: pathlib.Path) -> tuple[Any, float]:
  """Returns the PyTorch loader, after a comparison with ours, and the difference of the images."""
  from benchmarks import torch_input

  pairs = list(stored(args, folder))
  samples = torch_input.Samples([row for _, row in pairs], args.image_size, args.max_instances)
  apart = [_compare(mine, samples, n, args) for n, (mine, _) in enumerate(pairs[: args.compare])]
  return torch_input.loader(samples, args.batch_size, args.workers, seed=0), statistics.mean(apart)


def _compare(mine: dict, samples: Any, index: int, args: argparse.Namespace) -> float:
  """Compares two samples; returns the difference of the images, in levels."""
  import tensorflow as tf

  from input_pipeline import preprocess
  from input_pipeline.preprocess.tokenizer import WordPieceTokenizer
  from input_pipeline.tf import record_reader, train_samples

  tokenizer = WordPieceTokenizer(pathlib.Path(args.vocab).read_bytes(), args.vocab)
  record, shape = (
    mine["record"],
    record_reader.Shape(args.image_size, bit_planes.num_planes(args.max_instances)),
  )
  refs = record["refs"]
  fields = {key: record[key] for key in ("image", "instances", "height", "width")} | {
    "num_instances": len(record["instance_score"]),
    "target": refs["target"],
    "count": refs["normalised"].row_lengths(),
    "normalised": refs["normalised"].flat_values,
  }
  sample = train_samples.decode(fields, tf.constant(mine["ref"]), shape)
  theirs = samples.sample(index, 0)
  count = theirs["num_instances"]
  assert count == min(len(record["instance_score"]), args.max_instances)
  planes = sample["instances"].numpy()
  masks = np.concatenate([bit_planes.unpackbits(planes, count), sample["target"].numpy()[None]])
  whole = samples.masks(index)
  assert (masks == preprocess.resize_planes(whole, args.image_size)).all(), (
    f"masks of sample {index} differ"
  )
  moved = (masks != np.concatenate([theirs["masks"][:count], theirs["target"][None]])).mean()
  assert moved <= MASK_TOLERANCE, f"{moved:.2%} of the mask pixels of sample {index} differ"
  tokens = tokenizer(mine["texts"][:1], args.max_tokens)[0][0]
  assert (tokens == theirs["tokens"]).all(), f"tokens of sample {index} differ"
  apart = np.abs(sample["image"].numpy().astype(int) - theirs["image"]).mean()
  assert apart <= PHOTO_TOLERANCE, f"photos of sample {index} are {apart:.1f} levels apart"
  return float(apart)


def compare(args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
  """Measures all in turns; returns the record."""
  loaders: dict[str, Iterable[Any]] = dict(ours(args))
  apart = None
  missing = [
    name for name in ("torch", "cv2", "transformers") if not importlib.util.find_spec(name)
  ]
  if missing:
    print(f"only ours is measured: the peer needs {', '.join(missing)}")
  else:
    loaders[PEER], apart = peer(args, folder)
    print(
      f"{args.compare} samples agree: masks and tokens are the same, photos {apart:.2f} levels "
      "apart on average"
    )
  cpu: dict[str, list[float]] = {name: [] for name in loaders}
  resident: list[float] = []

  def run(name: str) -> Callable[[], float]:
    def rate() -> float:
      samples, milliseconds = measure(loaders[name], args.batches, args.batch_size)
      cpu[name].append(milliseconds)
      resident.append(psutil.Process().memory_info().rss / 1e6)
      return samples

    return rate

  rates = paired.interleave({name: run(name) for name in loaders}, args.rounds)
  loaders.clear()  # the workers of the peer end before the program does
  rows = [
    {
      "loader": name,
      "samples per second": statistics.median(values),
      "CPU ms per sample": statistics.median(cpu[name]),
      "times the peer": None if missing else paired.ratio(values, rates[PEER]),
      "times the single data set": _times_single(name, rates),
    }
    for name, values in rates.items()
  ]
  settings = {key: value for key, value in vars(args).items() if key not in _PATHS}
  return {
    "settings": settings,
    "rows": rows,
    "rates": rates,
    "cpu_ms": cpu,
    "resident_mb": resident[len(rates) - 1 :: len(rates)],
    "photos_apart": apart,
  }


def _times_single(name: str, rates: dict[str, list[float]]) -> float | None:
  """Returns the rate of a mixture as a multiple of that of a single data set."""
  single = name.removesuffix(MIXED)
  return paired.ratio(rates[name], rates[single]) if single != name else None


_PATHS = ("data_dir", "vocab", "annotations", "json")


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data_dir", required=True, help="folder that prepare wrote")
  parser.add_argument("--dataset", required=True, help="such as refcoco_unc or shapes")
  parser.add_argument("--mixture", default="", help="as config.dataset; measured in turns with it")
  parser.add_argument("--vocab", required=True, metavar="VOCAB.txt", help="BERT's vocabulary")
  parser.add_argument("--annotations", metavar="FILE", help="COCO's instances.json: polygons")
  parser.add_argument("--image_size", type=int, default=480)
  parser.add_argument("--max_instances", type=int, default=16)
  parser.add_argument("--max_tokens", type=int, default=20)
  parser.add_argument("--refs_per_image", type=int, default=4)
  parser.add_argument("--batch_size", type=int, default=16)
  parser.add_argument("--batches", type=int, default=32, help="batches per turn")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--compare", type=int, default=64, help="samples that must agree")
  parser.add_argument("--workers", type=int, default=parallel.available_cores())
  parser.add_argument("--no_cache", action="store_true", help="leave out the loader that caches")
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    result = compare(args, pathlib.Path(folder))
  print(f"{paired.machine()}; {args.image_size} pixels, {args.max_instances} instances\n")
  print(paired.table(result["rows"]))
  rounds = ", ".join(f"{megabytes:,.0f}" for megabytes in result["resident_mb"])
  print(f"\nresident memory after each round, MB: {rounds}")
  paired.write_json(args.json, result)


if __name__ == "__main__":
  run_command(main)
