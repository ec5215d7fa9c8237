"""Trains a model: `python -m mail_jax.train --config configs/demo.py --data_dir data --workdir runs/demo`.

Start the same command again after any interruption: it goes on from the last checkpoint.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.errors import InputError, run_command
from input_pipeline.tokenizer import (
  SentencePieceTokenizer,
  Tokenizer,
  WordPieceTokenizer,
  open_tokenizer,
)
from mail_jax import checkpoint, sharding
from mail_jax.budget import Budget, steps_from
from mail_jax.config import load_config, to_json
from mail_jax.evaluators.segmentation import SegmentationEvaluator
from mail_jax.optim import learning_rate_from
from mail_jax.pretrained import initialise
from mail_jax.program import build_program
from mail_jax.progress import Progress, duration
from mail_jax.train_step import TrainState

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Data:
  """What training reads; any source that keeps these promises will do.

  Attributes:
    tokenizer: made the tokens.
    train: gives the endless batches from a step on; batch n depends on n alone.
    evaluate: starts one pass over the sentences that judge the model; None for no evaluation.
    samples: of one epoch; needed where the config counts in epochs.
  """

  tokenizer: Tokenizer
  train: Callable[[int], Iterator[Batch]]
  evaluate: Callable[[], Iterable[Any]] | None = None
  samples: int = 0


class Trainer:
  """A run: its compiled step, its state and its checkpoints."""

  def __init__(self, config: ConfigDict, workdir: str, data: Data):
    """Builds or resumes the run.

    Args:
      config: a whole config.
      workdir: where checkpoints and `metrics.jsonl` go.
      data: what to train on.

    Raises:
      InputError: the workdir holds a run with another config or tokenizer, or the config asks for what cannot be.
    """
    self.config, self.data = config, data
    self.program = build_program(
      config, data.tokenizer.vocab_size, sharding.make_mesh(**config.mesh)
    )
    steps = steps_from(config.steps, config.epochs, data.samples, config.batch_size)
    self.budget = Budget(steps, config.minutes, config.optimizer.warmup_steps)
    learning_rate_from(config, config.optimizer.warmup_steps, self.budget.steps)
    shapes = self.program.shapes
    new = not checkpoint.exists(workdir)
    loaded = initialise.load(config, shapes.variables["params"]) if config.init and new else {}
    # Up to here, whatever is wrong with the config has been refused and nothing was written.
    self.checkpoints = checkpoint.Checkpoints(workdir, config.best_metric)
    latest = self.checkpoints.latest()
    if latest is None:
      self.state = self.program.create()
    else:
      meta = self.checkpoints.meta(latest)
      check_same(meta, config, data.tokenizer, workdir)
      self.budget.steps = meta["steps"]
      self.state = self.checkpoints.restore(latest, shapes)
    self.start_step = latest or 0
    self.progress = Progress(workdir, self.start_step)
    if loaded:
      self._start_from(loaded)
    self._measure = lambda variables, batch: self.program.measure(
      variables, sharding.global_batch(self.program.mesh, batch)
    )

  def _start_from(self, values: dict[str, np.ndarray]) -> None:
    """Puts pretrained weights into the new state."""
    params = initialise.place(self.state.variables["params"], values)
    variables = {**self.state.variables, "params": params}
    self.state = dataclasses.replace(
      self.state, variables=variables, averaged=jax.tree.map(jnp.copy, variables)
    )
    self.progress.line(f"{self.config.init}: {initialise.summary(params, values)}")

  def run(self) -> dict[str, int | float]:
    """Trains to the end; returns the last evaluation."""
    config, budget = self.config, self.budget
    if budget.steps and self.start_step >= budget.steps:
      self.progress.line(f"finished already: {budget.steps} steps")
      self.checkpoints.close()
      self.progress.close()
      return {}
    self._announce()
    batches = self.data.train(self.start_step)
    first = next(batches)  # whatever is read or cached before training belongs to no step
    batches = itertools.chain([first], batches)
    self.budget.start()
    window: list[dict[str, jax.Array]] = []
    clock, metrics = Clock(), {}
    for step in itertools.count(self.start_step):
      started = time.monotonic()
      batch = next(batches)
      clock.data += time.monotonic() - started
      lr = learning_rate_from(config, step, budget.steps)
      self.state, new = self.program.step(
        self.state, sharding.global_batch(self.program.mesh, batch), np.float32(lr)
      )
      if window:
        jax.block_until_ready(window[-1])  # one step ahead of the device, no more
      window.append(new)
      if budget.after(step):
        self.progress.line(f"{budget.steps} steps fit into {config.minutes:g} minutes")
      done = budget.steps > 0 and step + 1 >= budget.steps
      if done or (step + 1) % config.log_every == 0:
        self._log(step + 1, lr, window, clock)
        window = []
      evaluated = self._evaluate(step + 1) if done or (step + 1) % config.eval_every == 0 else None
      metrics = evaluated or metrics
      # The number of steps is part of what is saved.
      if done or (budget.steps and (evaluated or (step + 1) % config.save_every == 0)):
        self._save(step + 1, evaluated)
      if done:
        break
    self.checkpoints.close()
    self.progress.line(f"done: {budget.steps} steps in {duration(clock.total())}")
    self.progress.close()
    return metrics

  def _announce(self) -> None:
    parameters = sum(x.size for x in jax.tree.leaves(self.state.variables["params"]))
    resumed = f", resumed at step {self.start_step}" if self.start_step else ""
    self.progress.line(
      f"{parameters / 1e6:.2f} M parameters, {jax.device_count()} {jax.devices()[0].platform} device(s){resumed}"
    )

  def _log(self, step: int, lr: float, window: list, clock: "Clock") -> None:
    fetched = jax.device_get(window)
    values = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}
    if not np.isfinite(values["loss"]):
      raise FloatingPointError(
        f"the loss is {values['loss']} at step {step}; lower config.optimizer.lr"
      )
    rate, wait = clock.lap(len(window) * self.config.batch_size)
    values |= {"lr": lr, "samples_per_second": rate, "data_wait": wait}
    self.progress.row(step, values)
    steps = self.budget.steps
    left = duration((steps - step) * self.config.batch_size / rate) if steps else "?"
    of = f"/{steps}" if steps else ""
    self.progress.line(
      f"step {step}{of}  loss {values['loss']:.4f}  {rate:.0f} samples/s  data wait {wait:.1%}  {left} left"
    )

  def _evaluate(self, step: int) -> dict[str, int | float] | None:
    if self.data.evaluate is None:
      return None
    evaluator = SegmentationEvaluator(self._measure, self.data.evaluate)
    metrics = dict(evaluator.run(eval_variables(self.state, self.config)))
    self.progress.row(step, {f"{self.config.eval_split}/{k}": v for k, v in metrics.items()})
    shown = "  ".join(
      f"{k} {metrics[k]:.3f}" for k in ("mIoU", "oIoU", "P@0.5", "selection_accuracy")
    )
    self.progress.line(f"step {step}  {self.config.eval_split}: {shown}")
    return metrics

  def _save(self, step: int, metrics: dict[str, int | float] | None) -> None:
    meta = {
      "config": to_json(self.config),
      "tokenizer": checkpoint.pack_bytes(self.data.tokenizer.to_bytes()),
      "steps": self.budget.steps,
      "data_position": step,
    }
    self.progress.flush()
    self.checkpoints.save(step, self.state, meta, metrics)


class Clock:
  """Wall time of the run, and of each stretch between two lines of the log."""

  def __init__(self):
    self.began = self._lap = time.monotonic()
    self.data = 0.0

  def lap(self, samples: int) -> tuple[float, float]:
    """Samples a second and the share of the time that waited for data, since the last call."""
    now = time.monotonic()
    seconds, waited = now - self._lap, self.data
    self._lap, self.data = now, 0.0
    return samples / seconds, waited / seconds

  def total(self) -> float:
    """Seconds since the start."""
    return time.monotonic() - self.began


def eval_variables(state: TrainState, config: ConfigDict) -> Any:
  """What is judged and shared: the moving average where there is one."""
  return state.averaged if config.ema_decay else state.variables


def check_same(
  meta: dict[str, Any], config: ConfigDict, tokenizer: Tokenizer, workdir: str
) -> None:
  """Refuses to go on with a run under another config, or on text that is tokenized otherwise.

  Raises:
    InputError: names the first key that differs.
  """
  before, after = _flat(meta["config"]), _flat(to_json(config))
  for key in sorted(before.keys() | after.keys()):
    if before.get(key) != after.get(key):
      raise InputError(
        f"--workdir {workdir} holds a run with config.{key} = {before.get(key)!r}, not {after.get(key)!r}; "
        "choose another --workdir, or add --move_old to move it aside"
      )
  if checkpoint.unpack_bytes(meta["tokenizer"]) != tokenizer.to_bytes():
    raise InputError(
      f"--workdir {workdir} holds a run whose tokenizer came of other training sentences; "
      "choose another --workdir, or add --move_old to move it aside"
    )


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in data.items():
    flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


def move_old(workdir: str, config: ConfigDict, tokenizer: Tokenizer) -> None:
  """Moves a run with another config or tokenizer aside, to WORKDIR.1, .2, ...; nothing is deleted."""
  if not checkpoint.exists(workdir):
    return
  checkpoints = checkpoint.Checkpoints(workdir, config.best_metric)
  latest = checkpoints.latest()
  assert latest is not None
  meta = checkpoints.meta(latest)
  checkpoints.close()
  try:
    check_same(meta, config, tokenizer, workdir)
  except InputError:
    new = checkpoint.move_aside(workdir)
    if jax.process_index() == 0:
      print(f"{workdir} held a run with other settings: moved to {new}", flush=True)


def make_tokenizer(config: ConfigDict, sentences: Callable[[], Iterable[str]]) -> Tokenizer:
  """Makes the tokenizer that a whole config describes.

  Args:
    config: `tokenizer` names a file; else the vocabulary comes with the weights of `init`; else it is trained.
    sentences: gives the training sentences.
  """
  if config.tokenizer:
    return open_tokenizer(config.tokenizer)
  if config.init:
    return WordPieceTokenizer(
      initialise.read_vocab(config.init), f"the vocabulary of {config.init}"
    )
  return SentencePieceTokenizer.train(sentences(), config.vocab_size)


def open_data(config: ConfigDict, data_dir: str) -> Data:
  """Opens the records that `input_pipeline.prepare` wrote, with the tokenizer that the config asks for."""
  # The only import that needs more than this package's own requirements.
  from input_pipeline import loader

  tokenizer = make_tokenizer(config, lambda: loader.train_sentences(data_dir, config.dataset))
  if config.eval_split:
    loader.num_refs(data_dir, config.dataset, config.eval_split)  # a wrong name is told now
  hosts = jax.process_count()
  shared: dict[str, Any] = {k: config[k] for k in ("image_size", "max_instances", "max_tokens")}
  shared |= {"process_index": jax.process_index(), "process_count": hosts}

  def train_batches(start_step: int) -> Iterator[Batch]:
    return loader.train_batches(
      data_dir,
      config.dataset,
      tokenizer,
      batch_size=config.batch_size // hosts,
      seed=config.seed,
      start_step=start_step,
      flip=config.augment.flip,
      jitter=config.augment.jitter,
      cache=config.loader.cache,
      shuffle_buffer=config.loader.shuffle_buffer,
      threads=config.loader.threads,
      **shared,
    )

  def eval_batches() -> Iterator[Batch]:
    return loader.eval_batches(
      data_dir,
      config.dataset,
      config.eval_split,
      tokenizer,
      batch_size=config.eval_batch_size // hosts,
      limit=config.eval_sentences or None,
      **shared,
    )

  samples = loader.num_refs(data_dir, config.dataset, "train")
  return Data(tokenizer, train_batches, eval_batches if config.eval_split else None, samples)


def main(argv: list[str] | None = None) -> None:
  """The command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--config", required=True, metavar="FILE.py[:ARGUMENT]", help="a recipe of configs/"
  )
  parser.add_argument(
    "--data_dir", required=True, help="where input_pipeline.prepare wrote the records"
  )
  parser.add_argument("--workdir", required=True, help="checkpoints and logs; the same one resumes")
  parser.add_argument(
    "--move_old", action="store_true", help="move a run with other settings aside to WORKDIR.1"
  )
  args, rest = parser.parse_known_args(argv)
  for extra in rest:
    if not extra.startswith("--config."):
      parser.error(f"unrecognized argument: {extra}")
  config = load_config(args.config, rest)
  data = open_data(config, args.data_dir)
  if args.move_old:
    move_old(args.workdir, config, data.tokenizer)
  Trainer(config, args.workdir, data).run()


if __name__ == "__main__":
  run_command(main)
