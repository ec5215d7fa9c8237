r"""Makes a table of results on the RefCOCO family beside the published ones, from the raw files:

python -m mail_jax.reproduce --root DATA --out runs/paper --recipe refcoco --dry_run
python -m mail_jax.reproduce --root DATA --out runs/paper --recipe refcoco_beit3 --seeds 3 \
    --budget 100h --config.init=beit3:beit3_base.safetensors

Makes instance masks, prepares the data sets, trains what is missing, evaluates it on all splits
with every protocol, and writes OUT/table.html, table.md and table.json. Run the same command again
after an interruption: it resumes. DATA holds refer/ and train2014/.
"""

import argparse
import os
import pathlib
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import jax

from input_pipeline.common import buckets
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce
from input_pipeline.prepare import download
from input_pipeline.proposals import propose
from input_pipeline.proposers import leakage, ranking, registry
from mail_jax.config import parse_overrides
from mail_jax.evaluate.protocols import PROTOCOLS
from mail_jax.reproduce import budget, forecast, raw_files, runs, stages, state, table, timing
from mail_jax.reproduce.budget import Length
from mail_jax.reproduce.raw_files import Contents
from mail_jax.reproduce.runs import Run
from mail_jax.reproduce.stages import MASKS, Stage, Table
from mail_jax.sweep import jobs

# Segment Anything (Kirillov et al., ICCV 2023) was trained on SA-1B, without COCO's photos.
_CLEAN, _CLEAN_TRAINED_ON, _CLEAN_RANK = "huggingface:facebook/sam-vit-huge", "other", "distinct"
# Images whose masks are made before the start, to time the rest.
_FIRST_IMAGES = 8
# Seconds between lines on how far a stage is: they take hours.
_LINE_INTERVAL = 300.0


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  words = sys.argv[1:] if argv is None else argv
  if timing.OPTION in words:
    timing.main(words)
    return
  args, overrides = _parse(words)
  # The devices are for the commands that this one starts.
  jax.config.update("jax_platforms", "cpu")
  models = tuple(word.strip() for word in args.train.split(","))
  made = runs.make(args.recipe, models, args.seeds, overrides, args.across)
  place = _open_table(args, made)
  settings = _settings(args, place, overrides)
  if args.dry_run:
    _run(args, place, made, state.read(place.out, settings))
    return
  with state.alone(place.out):
    state.end_orphan(place.out)
    kept = state.read(place.out, settings)
    kept.command = shlex.join(words)
    _run(args, place, made, kept)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = command_parser("mail_jax.reproduce", __doc__)
  parser.add_argument("--root", required=True, help="folder with refer/ and train2014/")
  parser.add_argument("--refer_root", help="folder of the refs (default: ROOT/refer)")
  parser.add_argument("--images", help="folder of COCO's train2014 (default: ROOT/train2014)")
  parser.add_argument(
    "--annotations", help="COCO file with the refs' objects (default: instances.json beside them)"
  )
  parser.add_argument(
    "--download", action="store_true", help="first fetch raw files that are missing"
  )
  parser.add_argument("--out", required=True, help="folder of the table and of all it is made from")
  parser.add_argument("--data_dir", help="folder or bucket of the records (default: OUT/data)")
  parser.add_argument("--workdir", help="folder or bucket of the runs (default: OUT/runs)")
  parser.add_argument(
    "--recipe",
    default="refcoco",
    metavar="RECIPE[:ARGUMENT]",
    help="as for train, {set} in ARGUMENT is the model's name (default: refcoco, which is "
    "refcoco:{set}). --config.KEY=VALUE changes a value for all runs",
  )
  parser.add_argument(
    "--train",
    default=",".join(runs.ALONE),
    metavar="MODELS",
    help=f"with commas: {', '.join(runs.MODELS)} (default: all but mixed)",
  )
  parser.add_argument("--seeds", type=int, default=1, help="runs of each model (default: 1)")
  parser.add_argument(
    "--across", action="store_true", help="evaluate each model on all data sets, not only its own"
  )
  _add_evaluation(parser)
  parser.add_argument(
    "--budget",
    metavar="TIME",
    help="of all training together, such as 90m, 4h or 2d: fewer seeds, then fewer steps of every "
    "run; the table says so",
  )
  parser.add_argument(
    "--topology",
    metavar="CHIP:SIDES",
    help="estimate the time for these chips, as plan does (default: time steps on this machine)",
  )
  parser.add_argument(
    "--mfu", type=float, metavar="SHARE", help="with --topology: at this share of the chips' peak"
  )
  parser.add_argument(
    "--launch",
    default="",
    metavar="COMMAND",
    help="what starts train and evaluate on all hosts, such as srun; {command} in it stands for "
    "the command, which otherwise comes last",
  )
  parser.add_argument(
    "--dry_run", action="store_true", help="print the commands and how long they take, and stop"
  )
  args, overrides = parse_overrides(parser, argv)
  if args.mfu is not None and not args.topology:
    raise InputError("--mfu: needs --topology, whose peak it is a share of")
  return args, overrides


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--instances",
    default=_CLEAN,
    metavar="NAME[:ARG]",
    help=f"the proposer, as for prepare (default: {_CLEAN}, which has not seen COCO)",
  )
  parser.add_argument(
    "--trained_on", metavar="DATA", help="what the proposer has seen, as for prepare"
  )
  parser.add_argument(
    "--rank",
    choices=sorted(ranking.RANKS),
    help=f"order of its masks (default: {_CLEAN_RANK} for {_CLEAN}, else score)",
  )
  parser.add_argument(
    "--masks",
    default=",".join(MASKS),
    help=f"instance masks to evaluate with (default: {','.join(MASKS)})",
  )
  parser.add_argument(
    "--protocols",
    default=",".join(PROTOCOLS),
    help=f"to evaluate by (default: {','.join(PROTOCOLS)})",
  )


def _open_table(args: argparse.Namespace, made: Sequence[Run]) -> Table:
  """Checks the options and returns the places of the table."""
  if buckets.is_remote(args.out):
    raise InputError(f"--out {args.out}: must be a folder on this machine")
  if args.launch and shutil.which(program := shlex.split(args.launch)[0]) is None:
    raise InputError(f"--launch {args.launch}: there is no program {program} here")
  most = {run.config.max_instances for run in made}
  clean = args.instances == _CLEAN
  return Table(
    refer_root=args.refer_root or os.path.join(args.root, "refer"),
    images=args.images or os.path.join(args.root, "train2014"),
    out=pathlib.Path(args.out),
    data_dir=args.data_dir or os.path.join(args.out, "data"),
    workdir=args.workdir or os.path.join(args.out, "runs"),
    instances=args.instances,
    trained_on=args.trained_on or (_CLEAN_TRAINED_ON if clean else _own_word(args.instances)),
    rank=args.rank or (_CLEAN_RANK if clean else "score"),
    max_instances=max(1, *most) if most else 1,
    masks=stages.parse_list(args.masks, MASKS, "--masks"),
    protocols=stages.parse_list(args.protocols, tuple(PROTOCOLS), "--protocols"),
    annotations=args.annotations or "",
    launch=args.launch,
  )


def _own_word(spec: str) -> str:
  """Returns what a proposer says that it was trained on, of `leakage.TRAINED_ON`."""
  own = getattr(registry.find_class(spec), "trained_on", "")
  if spec.partition(":")[0] in stages.DIRECT:
    return ""
  return own if own in leakage.TRAINED_ON else ""


def _run(args: argparse.Namespace, place: Table, made: Sequence[Run], kept: state.State) -> None:
  names = stages.data_sets(made)
  if args.download and not args.dry_run:
    for name in names:
      download.fetch_missing(name, place.refer_root, place.images)
  contents = raw_files.read(place, names)
  for run in made:
    raw_files.check_trained(run, contents, place)
  if args.dry_run:
    with tempfile.TemporaryDirectory() as folder:
      _find_speeds(args, place, made, kept, pathlib.Path(folder))
  else:
    _find_speeds(args, place, made, kept, place.out)
  lengths = _decide(args, made, contents, kept)
  if not args.dry_run:
    kept.decide(lengths)
    state.write(place.out, kept)
  planned = stages.make(place, lengths)
  todo = [stage for stage in planned if not stage.is_done()]
  print(f"{len(todo)} of {len(planned)} steps to do")
  if args.dry_run:
    for stage in planned:
      print(stage.text + ("" if stage in todo else "  # done"))
  elif place.proposes and planned[0] in todo:
    _start_proposing(place, names)
  for line in state.remarks(kept, lengths, made):
    print(line)
  print(forecast.text(forecast.left(place, lengths, kept.speeds, contents, todo)), flush=True)
  if args.dry_run:
    return
  _Runner(place.out).run_all(todo, lambda: _write(place, lengths, kept, made))
  for path in _write(place, lengths, kept, made):
    print(f"wrote {path}")


def _start_proposing(place: Table, names: Sequence[str]) -> None:
  """Makes the masks of the first images, which shows how long the others take."""
  registry.find_class(place.instances)  # its packages may be missing
  if not propose.images_done(str(place.proposals)):
    print(f"making the masks of the first {_FIRST_IMAGES} images", flush=True)
    _Runner(place.out).run(stages.propose(place, names, limit=_FIRST_IMAGES))


def _write(
  place: Table, lengths: Sequence[Length], kept: state.State, made: Sequence[Run]
) -> list[pathlib.Path]:
  """Writes the table of the runs that are evaluated so far."""
  done = [
    length
    for length in lengths
    if all(stages.evaluate(place, length, *key).is_done() for key in stages.evaluations(place))
  ]
  return table.write(place, done, kept, made) if done else []


def _settings(
  args: argparse.Namespace, place: Table, overrides: Sequence[str]
) -> dict[str, object]:
  """Returns what one table has one of."""
  fixed: dict[str, object] = {
    "recipe": args.recipe,
    "overrides": list(overrides),
    "instances": place.instances,
    "trained_on": place.trained_on,
    "rank": place.rank,
    "max_instances": place.max_instances,
    "budget": args.budget or "",
  }
  if args.budget:
    fixed |= {"train": args.train, "seeds": args.seeds}
  return fixed


def _find_speeds(
  args: argparse.Namespace,
  place: Table,
  made: Sequence[Run],
  kept: state.State,
  folder: pathlib.Path,
) -> None:
  """Adds the speeds of runs that are not known yet: measured here, or estimated for other chips."""
  for run in made:
    key = timing.key_of(run.config)
    if key in kept.speeds:
      continue
    if args.mfu is not None:
      kept.speeds[key] = timing.at_utilisation(run.config, args.topology, args.mfu)
      continue
    out = folder / "speed.json"
    out.unlink(missing_ok=True)
    stage = forecast.time_command(place, run, out)
    if args.topology:
      stage = forecast.plan_command(run, args.topology, out)
    print(f"timing a step of {run.spec}", flush=True)
    _Runner(folder).run(stage)
    kept.speeds[key] = forecast.read_speed(run, out, planned=bool(args.topology))
    out.unlink()


def _decide(
  args: argparse.Namespace,
  made: Sequence[Run],
  contents: Mapping[str, Contents],
  kept: state.State,
) -> list[Length]:
  """Returns the length of every run: as it was decided at the first start, or now."""
  whole = [
    forecast.make_length(run, contents, kept.speeds[timing.key_of(run.config)]) for run in made
  ]
  if not args.budget:
    return whole
  if kept.decided:
    return kept.as_decided(whole)
  return budget.fit(whole, budget.parse(args.budget))


class _Runner:
  """Runs stages as processes, one after the other."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def run_all(self, todo: Sequence[Stage], evaluated: Callable[[], object]) -> None:
    """Runs stages in their order, and a function after the last evaluation of each run."""
    for number, stage in enumerate(todo, 1):
      print(f"[{number}/{len(todo)}] {stage.name}", flush=True)
      self.run(stage)
      if any(following.name.startswith("train") for following in todo[number : number + 1]):
        evaluated()

  def run(self, stage: Stage) -> None:
    """Runs a stage.

    Raises:
      InputError: it failed; the message is its own.
    """
    log = self._folder / "logs" / f"{stage.name.replace('/', ' ')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with jobs.end_on_sigterm():
      process = jobs.start_words(stage.words, log, self._folder)
      try:
        state.note_running(self._folder, process)
        with announce(lambda: f"  {jobs.last_line(log)}", every=_LINE_INTERVAL):
          code = process.wait()
      except KeyboardInterrupt:
        jobs.end([process])
        raise
      finally:
        state.note_running(self._folder, None)
        seconds = time.monotonic() - began
        state.note(self._folder, stage.name, seconds, process.poll() or 0)
    stages.best_step.cache_clear()
    print(f"  {budget.describe(seconds)}", flush=True)
    if code or not (stage.is_done() or "--limit" in stage.words):
      problem = jobs.last_line(log).removeprefix("error: ")
      raise InputError(f"{stage.name} failed: {problem} ({log}); `{stage.text}`")
