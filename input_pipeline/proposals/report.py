"""How well the instance masks of prepared data sets cover what their refs mean: a table, JSON and a page of pictures.

python -m input_pipeline.proposals report --data_dir data --html report.html
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from input_pipeline import records, storage
from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.proposals import report_page, report_table
from input_pipeline.proposals.gallery import Gallery
from input_pipeline.proposals.oracle import CEILING, Ceiling, match_refs


def add_parser(subparsers: Any) -> None:
  """Adds `report` to the commands of `python -m input_pipeline.proposals`."""
  parser = add_subparser(
    subparsers,
    "report",
    "how well masks cover what is meant: the ceiling of methods that pick one",
    __doc__,
  )
  parser.add_argument(
    "--data_dir", required=True, help="where input_pipeline.prepare wrote records"
  )
  parser.add_argument(
    "--dataset", nargs="+", metavar="NAME", help="data sets (default: all that are prepared there)"
  )
  parser.add_argument("--json", metavar="OUT.json", help="write the figures as fractions")
  parser.add_argument("--html", metavar="OUT.html", help="write a page with 100 images drawn")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command.

  Raises:
    InputError: a data set is not there, or a file cannot be written where it is wanted.
  """
  names = _datasets(args.data_dir, args.dataset)
  for path in filter(None, (args.json, args.html)):
    atomic_files.check_folder(path)
  timing = {name: storage.read_timing(args.data_dir, name) for name in names}
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  from input_pipeline.tf import stored_records

  results, gallery = {}, Gallery()
  for name in names:
    for split, images in stored_records.splits(args.data_dir, name).items():
      label, stored = f"{name}/{split}", stored_records.read(args.data_dir, name, split)
      # disable=None: no progress bar where nobody watches.
      watched = iter(tqdm(stored, desc=label, total=images, unit=" images", disable=None))
      results[label] = measure(label, watched, gallery).figures(timing[name].get(split))
  print("\n".join([report_table.text(results), "", *report_table.origins(results)]))
  print(f"({report_table.LEGEND})\n{CEILING}")
  if args.json:
    text = json.dumps({"ceiling": CEILING, "splits": results}, indent=2)
    atomic_files.write_whole(args.json, text + "\n")
    print(f"wrote {args.json}")
  if args.html:
    page = report_page.page(results, gallery.worst(), gallery.random())
    atomic_files.write_whole(args.html, page)
    print(f"wrote {args.html}")


def _datasets(data_dir: str, wanted: list[str] | None) -> list[str]:
  """The data sets to report on; all must be there."""
  there = storage.prepared(data_dir)
  if not there:
    raise InputError(
      f"--data_dir {data_dir}: no data set is prepared there; run "
      "`python -m input_pipeline.prepare` first (docs/guides/datasets.md)"
    )
  for name in wanted or ():
    if name in there:
      continue
    if name not in storage.CONFIGS:
      raise storage.not_prepared(data_dir, name)
    raise InputError(
      f"--dataset {name}: not prepared in {data_dir}; prepared there: {', '.join(there)}"
    )
  return list(dict.fromkeys(wanted or there))


def measure(name: str, stored: Iterator[Mapping[str, Any]], gallery: Gallery) -> Ceiling:
  """Returns the figures of a split and shows its images to the gallery; holds one image at a time.

  Args:
    name: of the data set and split, as in refcoco_unc/val.
    stored: the fields of its records, undecoded.
    gallery: chooses what is drawn.
  """
  ceiling = Ceiling()
  for fields in stored:
    record = records.decode_record(fields)
    matches = match_refs(record)
    ceiling.add(record.instances, matches)
    gallery.add(name, fields, matches)
  return ceiling
