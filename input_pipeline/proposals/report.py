"""Reports how well the instances of prepared data sets cover the targets: a table, JSON and a page.

python -m input_pipeline.proposals report --data_dir data --html report.html
"""

import argparse
import dataclasses
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import preprocess, records, storage
from input_pipeline.common import atomic_files, drawing, html
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.common.html import escape
from input_pipeline.common.terminal import text_table, with_progress
from input_pipeline.proposals import oracle
from input_pipeline.proposals.oracle import Match

GALLERY_SIZE = 50
"""Number of worst and of random images that are drawn."""
_SEED = 0
_SIDE = 480
"""Longer side of a drawn image, in pixels."""
_TITLE = "How well instance masks cover the targets"


def add_parser(subparsers: Any) -> None:
  """Adds `report`."""
  parser = add_subparser(
    subparsers,
    "report",
    "measure how well instances cover the targets: the upper bound of methods that select one",
    __doc__,
  )
  parser.add_argument("--data_dir", required=True, help="folder with prepared data sets")
  parser.add_argument(
    "--dataset", nargs="+", metavar="NAME", help="data sets (default: all that are prepared)"
  )
  parser.add_argument("--json", metavar="OUT.json", help="write the metrics as fractions")
  parser.add_argument("--html", metavar="OUT.html", help="write a page with 100 images drawn")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command.

  Raises:
    InputError: a data set does not exist, or an output cannot be written.
  """
  names = _datasets(args.data_dir, args.dataset)
  for path in filter(None, (args.json, args.html)):
    atomic_files.check_folder(path)
  timing = {name: storage.read_timing(args.data_dir, name) for name in names}
  from input_pipeline.tf import record_reader

  results, gallery = {}, Gallery()
  for name in names:
    for split, images in record_reader.split_sizes(args.data_dir, name).items():
      label = f"{name}/{split}"
      stored = record_reader.read_records(record_reader.Split(args.data_dir, name, split))
      encoded = with_progress(stored, label, images, "images")
      results[label] = measure(label, encoded, gallery).metrics(timing[name].get(split))
  rows = [oracle.HEADER, *oracle.table_rows(results)]
  print("\n".join([text_table(rows), "", *oracle.describe_origins(results)]))
  print(f"({oracle.LEGEND})\n{oracle.NOTE}")
  if args.json:
    text = json.dumps({"oracle": oracle.NOTE, "splits": results}, indent=2)
    atomic_files.write_whole(args.json, text + "\n")
    print(f"wrote {args.json}")
  if args.html:
    html = page(results, gallery.worst(), gallery.random())
    atomic_files.write_whole(args.html, html)
    print(f"wrote {args.html}")


def _datasets(data_dir: str, wanted: list[str] | None) -> list[str]:
  """Returns the data sets to report on, all of which exist."""
  prepared = storage.prepared(data_dir)
  if not prepared:
    raise InputError(
      f"--data_dir {data_dir}: no data set is prepared there; run "
      "`python -m input_pipeline.prepare` first (docs/guides/datasets.md)"
    )
  for name in wanted or ():
    if name in prepared:
      continue
    if name not in storage.CONFIGS:
      raise storage.not_prepared(data_dir, name)
    raise InputError(
      f"--dataset {name}: not prepared in {data_dir}, which has {', '.join(prepared)}"
    )
  return list(dict.fromkeys(wanted or prepared))


@dataclasses.dataclass(frozen=True)
class GalleryItem:
  """A ref to be drawn."""

  name: str
  """Data set and split, as in refcoco_unc/val."""
  fields: Mapping[str, Any]
  """The encoded record: a hundred of these are kept while a data set is read."""
  ref: int
  """Index of the ref in the record."""
  match: Match


class Gallery:
  """Chooses the images to draw as they are read: the worst ones, and random ones.

  The same images in the same order give the same choice.
  """

  def __init__(self, count: int = GALLERY_SIZE):
    """Starts without images.

    Args:
      count: the number of worst images, and of random ones.
    """
    self._worst, self._random = _Smallest(count), _Smallest(count)
    self._seen = 0

  def add(self, name: str, fields: Mapping[str, Any], matches: list[Match]) -> None:
    """Considers an image by its worst ref, the first of equals; ignores one without targets.

    Args:
      name: data set and split.
      fields: the encoded record.
      matches: one per ref.
    """
    candidates = [i for i, match in enumerate(matches) if match.area]
    if not candidates:
      return
    worst = min(candidates, key=lambda i: matches[i].iou)
    order, position = np.random.default_rng((_SEED, self._seen)).random(2)
    random = candidates[int(position * len(candidates))]
    self._worst.add(matches[worst].iou, GalleryItem(name, fields, worst, matches[worst]))
    self._random.add(order, GalleryItem(name, fields, random, matches[random]))
    self._seen += 1

  def worst(self) -> list[GalleryItem]:
    """Returns the images with the lowest IoU, lowest first; ties in the order they were added."""
    return self._worst.items()

  def random(self) -> list[GalleryItem]:
    """Returns random images, drawn uniformly."""
    return self._random.items()


class _Smallest:
  """Keeps the items with the smallest keys; of ties, the earliest ones."""

  def __init__(self, count: int):
    self._count, self._added = count, 0
    self._heap: list[tuple[float, int, GalleryItem]] = []

  def add(self, key: float, item: GalleryItem) -> None:
    # The top of the heap is dropped first: the largest key, and of ties the latest.
    entry = (-key, -self._added, item)
    self._added += 1
    if len(self._heap) < self._count:
      heapq.heappush(self._heap, entry)
    else:
      heapq.heappushpop(self._heap, entry)

  def items(self) -> list[GalleryItem]:
    return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def measure(
  name: str, encoded: Iterator[Mapping[str, Any]], gallery: Gallery
) -> oracle.OracleMetrics:
  """Returns the metrics of a split and offers its images to the gallery, one at a time.

  Args:
    name: data set and split, as in refcoco_unc/val.
    encoded: the encoded records.
    gallery: chooses what is drawn.
  """
  metrics = oracle.OracleMetrics()
  for fields in encoded:
    record = records.decode_record(fields)
    matches = oracle.match_refs(record)
    metrics.add(record.instances, matches)
    gallery.add(name, fields, matches)
  return metrics


def page(
  results: Mapping[str, Mapping[str, Any]],
  worst: Sequence[GalleryItem],
  random: Sequence[GalleryItem],
) -> str:
  """Returns the page as HTML; the same arguments give the same text.

  Args:
    results: what `OracleMetrics.metrics` returned, by data set and split.
    worst: the worst images, in this order.
    random: random images.

  Raises:
    InputError: an image cannot be decoded.
  """
  body = [*_head(results), *_section("worst", worst), *_section("random", random)]
  return html.document(_TITLE, "", ["<main>", *body, "</main>"])


def _head(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
  yield f"<h1>{_TITLE}</h1>\n<p>{escape(oracle.NOTE)}</p>"
  for line in oracle.describe_origins(results):
    yield f"<p>{escape(line)}.</p>"
  yield from html.table("metrics", oracle.HEADER, oracle.table_rows(results))
  yield f'<p class="small">{escape(oracle.LEGEND)}.</p>'


def _section(heading: str, items: Sequence[GalleryItem]) -> Iterator[str]:
  explanation = {
    "worst": "Images whose best instance has the lowest IoU, lowest first; each with its worst ref",
    "random": "Images drawn uniformly, each with one of its refs; the same ones on every run",
  }[heading]
  yield f"<h2>{len(items)} {heading} images</h2>\n<p>{explanation}. Every mask has its own colour."
  yield '<br><span class="mark target"></span> outline of the target'
  yield '<br><span class="mark selected"></span> outline of the best instance</p>'
  yield '<div class="pictures">'
  for item in items:
    yield _figure(item)
  yield "</div>"


def _figure(item: GalleryItem) -> str:
  record = records.decode_record(item.fields)
  ref, match = record.refs[item.ref], item.match
  image = html.picture(draw(item), f"{record.file_name} with its instance masks")
  best = _describe_match(match.instance, len(record.instances.masks))
  expressions = "".join(f'<li dir="auto">{escape(text)}</li>' for text in ref.sentences)
  return (
    f"<figure>{image}<figcaption><p><strong>IoU {match.iou:.2f}</strong>, {best}</p>"
    f'<p class="small">{escape(item.name)}, image {record.image_id}, ref {ref.ref_id}; target of '
    f"{match.area:,} pixels ({records.object_size(match.area)})</p><ul>{expressions}</ul>"
    "</figcaption></figure>"
  )


def _describe_match(instance: int | None, count: int) -> str:
  if not count:
    return "the image has no instances"
  if instance is None:
    return f"none of {count} instances overlaps the target"
  return f"the best of {count} instances is number {instance + 1}"


def draw(item: GalleryItem) -> np.ndarray:
  """Returns the image with its masks as uint8 [h, w, 3], 480 pixels on its longer side.

  Raises:
    InputError: the image cannot be decoded.
  """
  record = records.decode_record(item.fields)
  size = drawing.fitting_size(record.height, record.width, _SIDE)
  pixels = preprocess.decode_image(record.image, record.file_name, upright=False)
  shape = (len(record.instances.masks), size[1], size[0])
  masks = [drawing.stretch(mask, size) for mask in record.instances.masks]
  return drawing.instance_overlay(
    np.array(Image.fromarray(pixels).resize(size)),
    np.array(masks, bool).reshape(shape),
    drawing.stretch(record.refs[item.ref].target, size),
    item.match.instance,
  )
