"""Reports how well the instances of prepared data sets cover the targets: a table, JSON and a page.

python -m input_pipeline.proposals report --data_dir data --html report.html
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline import records, storage
from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import text_table, with_progress
from input_pipeline.proposals import oracle, report_page
from input_pipeline.proposals.report_page import Gallery


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
    page = report_page.page(results, gallery.worst(), gallery.random())
    atomic_files.write_whole(args.html, page)
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
