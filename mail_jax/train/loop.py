"""The training loop: one run, from its first step or its last checkpoint to its end."""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import image_hashes, left_out, mixture
from input_pipeline.common.terminal import announce
from mail_jax.checkpoints import checkpoint
from mail_jax.config import to_json
from mail_jax.distributed import processes, sharding
from mail_jax.evaluate import dataset_metrics
from mail_jax.evaluate.segmentation import SegmentationEvaluator
from mail_jax.hardware import chips, flops
from mail_jax.models.build import HostBatch, Variables
from mail_jax.train import resume
from mail_jax.train.data import Data
from mail_jax.train.early_stop import EarlyStop
from mail_jax.train.goodput import Goodput, Rate
from mail_jax.train.guards import NonFiniteGuard, Preemption
from mail_jax.train.length import TrainingLength, count_steps
from mail_jax.train.logging import picture, progress, terminal
from mail_jax.train.logging.progress import Progress
from mail_jax.train.logging.samples import FixedSamples
from mail_jax.train.optim import learning_rate_from, warmup_problem
from mail_jax.train.program import build_program
from mail_jax.train.start import Start, load_start
from mail_jax.train.step import TrainState


class Trainer:
  """A run: its compiled step, its state and its checkpoints."""

  def __init__(
    self, config: ConfigDict, workdir: str, data: Data, accept_changed_data: bool = False
  ):
    """Builds or resumes the run.

    Args:
      config: a whole config.
      workdir: the folder of the checkpoints and `metrics.jsonl`.
      data: to train on.
      accept_changed_data: resumes a run that was trained on other data.

    Raises:
      InputError: the workdir holds a run with another config, tokenizer or data, or an exported
        model, or is in use by another run; or the config is invalid.
    """
    resume.check_workdir(workdir)
    progress.check(config)
    self.splits = mixture.evaluated(config.dataset, config.eval_split) if data.evaluate else {}
    self.judged = mixture.judged(self.splits)
    self.early_stop = EarlyStop(config.early_stop, self.judged, config.best_metric)
    self.goodput, self.preemption = Goodput(), Preemption()
    self.rate = Rate(self.goodput, config.batch_size)
    self.config, self.data, self._accept_changed_data = config, data, accept_changed_data
    self.program = build_program(
      config, data.tokenizer.vocab_size, sharding.make_mesh(**config.mesh)
    )
    self.peak_rate = peak_rate(config)
    steps = count_steps(config.steps, config.epochs, data.samples, config.batch_size)
    self.length = TrainingLength(steps, config.minutes, config.optimizer.warmup_steps)
    learning_rate_from(config, config.optimizer.warmup_steps, self.length.steps)
    shapes = self.program.shapes
    new = not processes.broadcast_from_main(checkpoint.exists(workdir))
    with processes.announce(f"loading {config.init}"):
      start = load_start(config, shapes.variables, data.tokenizer) if new else None
    # The config is valid, and nothing has been written yet.
    with contextlib.ExitStack() as stack:
      stack.enter_context(resume.lock(workdir))
      self._open(workdir, shapes, start)
      # Until `run` ends.
      self._locked = stack.pop_all()

  def _open(self, workdir: str, shapes: TrainState, start: Start | None) -> None:
    """Opens the checkpoints and the log, and creates or restores the state."""
    config, data = self.config, self.data
    self.checkpoints = checkpoint.Checkpoints(
      workdir, config.best_metric, judged_on=resume.judged_on(config)
    )
    latest = self.checkpoints.latest()
    # Metrics since the last row of the log. A checkpoint keeps them for the next start.
    self.window: list[dict[str, jax.Array | float]] = []
    # The last update, which may still run, and whether it is skipped.
    self.pending: tuple[int, jax.Array] | None = None
    skipped: dict[str, int] = {}
    trained_on, notes = data.images, []
    if latest is None:
      with processes.announce("creating the model"):
        self.state = self.program.create()
      if start:
        trained_on = image_hashes.union(start.images, trained_on)
        variables, averaged = start.put_into(self.state.variables, self.state.averaged)
        self.state = dataclasses.replace(self.state, variables=variables, averaged=averaged)
        notes = [start.line]
    else:
      meta = self.checkpoints.meta(latest)
      notes = self._adapt_to(meta, latest, workdir)
      self.window, skipped = meta["window"], meta["skipped"]
      trained_on = image_hashes.union(checkpoint.read_images(meta), trained_on)
      with processes.announce(f"restoring step {latest} of {workdir}"):
        self.state = self.checkpoints.restore(latest, shapes)
    self.images = checkpoint.pack_images(trained_on)
    self.nonfinite = NonFiniteGuard(workdir, config.max_nonfinite_steps, skipped)
    self.start_step = latest or 0
    self.progress = Progress(workdir, self.start_step)
    self.early_stop.update(self.progress.rows())
    if not self._is_finished():
      progress.open_sinks(config, workdir, self.start_step, self.progress)
    self.samples = progress.fixed_samples(config, self.program, list(self.splits))
    self.pictured = progress.pictured_samples(config, self.program, list(self.splits))
    self.score = ""
    self.workdir = workdir
    for note in filter(None, [*notes, *data.notes, *left_out.describe(data.left_out)]):
      self.progress.line(note)

  def _measure(self, variables: Variables, batch: HostBatch) -> dict[str, jax.Array]:
    with announce("evaluating a batch; the first of a size is compiled", self.progress.line):
      return self.program.measure(variables, sharding.global_batch(self.program.mesh, batch))

  def _adapt_to(self, meta: dict[str, Any], done: int, workdir: str) -> list[str]:
    """Takes over what a checkpoint says of the run, if it goes on here; returns lines about it."""
    config, data = self.config, self.data
    resume.check_resumable(meta, config, data.tokenizer, workdir)
    changed = resume.check_data(meta, data.about(), workdir, self._accept_changed_data)
    steps = self.length.steps
    self.length.steps, longer = resume.resumed_steps(meta, config, steps, done, workdir)
    return [changed, longer, *resume.changes(meta, config, data.exact_order)]

  def run(self) -> dict[str, int | float]:
    """Trains to the end, or until SIGTERM; returns the metrics of the last evaluation."""
    with self._locked:
      return self._run()

  def _run(self) -> dict[str, int | float]:
    with self.preemption.watch(), self.progress:
      step, metrics = self.start_step, self._catch_up()
      if self.length.steps and step >= self.length.steps:
        self.progress.line(f"already finished: {self.length.steps} steps")
      elif self.early_stop.reason:
        self.progress.line(
          f"already finished, at step {step}: {self.early_stop.reason}; a larger "
          "--config.early_stop goes on"
        )
      elif not self.preemption.asked:
        self._announce()
        step, metrics = self._train(metrics)
      with self.goodput.spend("checkpoint"), announce("writing checkpoints", self.progress.line):
        self.checkpoints.close()
      if self.preemption.asked:
        self.progress.line(
          f"stopped by SIGTERM at step {step}; run the same command again to resume"
        )
      elif step > self.start_step:
        why = f", ended early: {self.early_stop.reason}" if self.early_stop.reason else ""
        self.progress.line(f"done: {step} steps{why}")
    if step > self.start_step:
      self.progress.line(f"{self.workdir}\n{self._final_table(step)}")
    return metrics or {}

  def _catch_up(self) -> dict[str, int | float] | None:
    """Evaluates the resumed checkpoint, if the run ended before its evaluation."""
    step = self.start_step
    if not step or not self._owes_evaluation():
      return None
    metrics = self._evaluate(step)
    if metrics:
      self._save(step, metrics)
    return metrics

  def _owes_evaluation(self) -> bool:
    step = self.start_step
    return self._is_due(step) and not self.checkpoints.metrics(step)

  def _is_finished(self) -> bool:
    done = self.length.steps > 0 and self.start_step >= self.length.steps
    return (done or bool(self.early_stop.reason)) and not self._owes_evaluation()

  def _is_due(self, step: int) -> bool:
    """Returns whether an evaluation follows this many steps."""
    return bool(self.data.evaluate) and (
      step == self.length.steps or step % self.config.eval_every == 0
    )

  def _train(self, metrics: dict | None) -> tuple[int, dict[str, int | float] | None]:
    """Trains; returns the last step and the metrics of the last evaluation."""
    config, length = self.config, self.length
    length.start()
    batches = self._load()
    self.rate.start(self.start_step)
    for step in itertools.count(self.start_step):
      with self.goodput.spend("data"):
        batch = next(batches)
      lr = learning_rate_from(config, step, length.steps)
      with self.goodput.spend("step"):
        self._step(step, batch, lr)
      if length.update(step):
        self.progress.line(f"{length.steps:,} steps fit into {config.minutes:g} minutes")
      self.progress.at(step + 1, length.steps, self._epoch(step + 1))
      done = length.steps > 0 and step + 1 >= length.steps
      if done or (step + 1) % config.log_every == 0:
        self._log(step + 1, lr)
      stop = self.preemption.reached()
      evaluated = None if stop or not self._is_due(step + 1) else self._evaluate(step + 1)
      if self.pictured and (evaluated or (step + 1) % config.log.picture_every == 0):
        self._draw(step + 1, self.pictured)
      metrics, stop = evaluated or metrics, self.preemption.asked
      done = done or bool(self.early_stop.reason)
      # A checkpoint needs the number of steps.
      if done or stop or (length.steps and (evaluated or (step + 1) % config.save_every == 0)):
        self._save(step + 1, evaluated)
      if done or stop:
        return step + 1, metrics
    raise AssertionError("a count does not end")

  def _load(self) -> Iterator[HostBatch]:
    """Opens the training data, and waits for the first batch, which belongs to no step."""
    config, opening = self.config, announce("opening the training data", self.progress.line)
    with self.goodput.spend("load"), contextlib.ExitStack() as stack:
      # Filling the cache has a progress bar.
      if not config.loader.cache:
        stack.enter_context(opening)
      batches = self.data.train(self.start_step)
      first = next(batches)
    return itertools.chain([first], batches)

  def _step(self, step: int, batch: HostBatch, lr: float) -> None:
    """Starts one update, and waits for the previous one."""
    spread = sharding.global_batch(self.program.mesh, batch)
    with contextlib.ExitStack() as stack:
      if step == self.start_step:
        stack.enter_context(announce("compiling the training step", self.progress.line))
      self.state, new = self.program.step(self.state, spread, np.float32(lr))
    # At most one step ahead of the device.
    self._check_pending()
    self.window.append(new)
    self.pending = (step + 1, new["skipped_steps"])

  def _check_pending(self) -> None:
    """Blocks on the last update and records whether it was skipped."""
    if self.pending:
      (step, skipped), self.pending = self.pending, None
      self.nonfinite.update(step, bool(skipped), self._describe)

  def _describe(self, steps: list[int]) -> list[Any]:
    """Returns the samples in the batches of these steps, of all processes."""
    own = self.data.describe(steps) if self.data.describe else [{"step": step} for step in steps]
    return [row for rows in processes.all_gather_object(own) for row in rows]

  def _announce(self) -> None:
    parameters = sum(x.size for x in jax.tree.leaves(self.state.variables["params"]))
    resumed = f", resumed at step {self.start_step}" if self.start_step else ""
    self.progress.line(
      f"{parameters / 1e6:.2f} M parameters, {jax.device_count()} "
      f"{jax.devices()[0].platform} device(s){resumed}"
    )
    for line in self._plan():
      self.progress.line(line)
    if warning := warmup_problem(self.config, self.length.steps):
      self.progress.line(warning)

  def _plan(self) -> Iterator[str]:
    """Yields what will happen, for how long, and where its results will be."""
    config, steps = self.config, self.length.steps
    if steps:
      yield f"{steps - self.start_step:,} steps to do; how long they take is known after some"
    else:
      ends = time.strftime("%H:%M", time.localtime(time.time() + 60 * config.minutes))
      yield (
        f"training takes {config.minutes:g} min, until about {ends}; the number of steps follows "
        "from the speed"
      )
    places = terminal.places(self.workdir, config.log.tensorboard)
    if self.pictured:
      every = config.log.picture_every
      places |= {"pictures": f"{self.workdir}/{picture.FILE}, every {every:,} steps"}
    yield "; ".join(f"{name} in {place}" for name, place in places.items())

  def _log(self, step: int, lr: float) -> None:
    with self.goodput.spend("step"):
      self._check_pending()
      fetched, self.window = fetch(self.window), []
    values = summarise(fetched)
    rate, wait = self.rate.lap(step)
    values |= {"lr": lr, "samples_per_second": rate, "data_wait": wait}
    values |= {"mfu": rate / self.peak_rate} if self.peak_rate else {}
    self.progress.row(step, values | {"seconds": self.goodput.seconds()})
    self._print_progress(step, values)

  def _print_progress(self, step: int, values: dict[str, int | float]) -> None:
    left = self._seconds_left(step, values["samples_per_second"])
    position = terminal.position(step, self.length.steps)
    losses = terminal.losses(values, sorted(self.config.loss))
    losses += terminal.by_dataset(values) + terminal.skipped(values)
    speed, wait = terminal.speed(values), terminal.data_wait(values)
    self.progress.trained(
      f"{position}  {losses}  {speed}  {wait}  {terminal.time_left(left)}",
      f"{speed}  {losses}  {wait}",
      left,
    )

  def _seconds_left(self, step: int, rate: float) -> float:
    """Estimates the seconds until the run ends."""
    if not self.length.steps:
      return self.length.seconds_left()
    spent = self.goodput.seconds()
    overhead, done = spent["evaluation"] + spent["checkpoint"], step - self.start_step
    return terminal.seconds_left(
      self.length.steps - step, self.config.batch_size / rate, overhead, done
    )

  def _epoch(self, step: int) -> float | None:
    return step * self.config.batch_size / self.data.samples if self.data.samples else None

  def _final_table(self, step: int) -> str:
    parts = list(self.splits) if len(self.splits) > 1 else []
    return terminal.final_table(
      terminal.best_and_last(self.progress.rows(), self.judged, self.config.best_metric, parts),
      step=step,
      start_step=self.start_step,
      batch_size=self.config.batch_size,
      seconds=self.goodput.seconds(),
      spent=self.goodput.line(),
      places=terminal.places(self.workdir, self.config.log.tensorboard),
    )

  def _evaluate(self, step: int) -> dict[str, int | float] | None:
    """Evaluates the model; returns None if the run has to end before the evaluation does."""
    with self.goodput.spend("evaluation"):
      try:
        variables = self.program.to_evaluate(self.state)
        results = {split: self._evaluate_split(step, split, variables) for split in self.splits}
      except _Interrupted:
        return None
    metrics = dataset_metrics.mean(list(results.values()))
    results[self.judged] = metrics
    row = {f"{split}/{k}": v for split, of_split in results.items() for k, v in of_split.items()}
    self.progress.row(step, row | {"seconds": self.goodput.seconds()})
    note = left_out.heading(self.data.left_out)
    for split, of_split in results.items():
      self.progress.line(f"step {step}  {terminal.evaluation(split, of_split)}{note}")
    self.score = f"{self.judged} at step {step:,}: mIoU {metrics.get('mIoU', math.nan):.3f}"
    self.early_stop.update(self.progress.rows())
    if self.config.best_metric not in metrics:
      self.progress.line(
        f"warning: config.best_metric {self.config.best_metric!r} is not one of "
        f"{', '.join(metrics)}; no checkpoint is the best"
      )
    if self.samples:
      with self.goodput.spend("evaluation"):
        drawn = [picture for of in self.samples.values() for picture in of.draw(variables)]
        self.progress.pictures(step, drawn)
    return metrics

  def _draw(self, step: int, samples: FixedSamples) -> None:
    """Draws `progress.png`; on all processes."""
    with self.goodput.spend("evaluation"), announce("drawing", self.progress.line):
      if processes.is_main() and not samples.is_complete:
        samples.take(next(iter(self.data.evaluate.values()))())
      now = samples.predict(self.program.to_evaluate(self.state))
      if processes.is_main():
        picture.write(picture.draw(now, step, self.length.steps, self.score), self.workdir)

  def _evaluate_split(self, step: int, split: str, variables: Variables) -> dict[str, int | float]:
    batches = functools.partial(self._evaluation_batches, step, split)
    evaluator = SegmentationEvaluator(self._measure, batches)
    metrics = dict(evaluator.run(variables))
    return dataset_metrics.with_own(metrics, self.splits[split].rpartition("/")[0], evaluator.rows)

  def _evaluation_batches(self, step: int, split: str) -> Iterator[Any]:
    done = 0
    for batch in self.data.evaluate[split]():
      if self.preemption.reached():
        raise _Interrupted
      if self.samples:
        self.samples[split].watch(batch)
      yield batch
      done += int((batch["index"] >= 0).sum()) * jax.process_count()
      self.progress.evaluating(step, split, done, int(np.max(batch.get("total", done))))

  def _save(self, step: int, metrics: dict[str, int | float] | None) -> None:
    with self.goodput.spend("checkpoint"):
      self._check_pending()
      meta = {
        "config": to_json(self.config),
        "tokenizer": checkpoint.pack_bytes(self.data.tokenizer.to_bytes()),
        "steps": self.length.steps,
        "data_position": step,
        "window": fetch(self.window),
        "skipped": self.nonfinite.meta(),
        "images": self.images,
        "data": self.data.about(),
        "processes": jax.process_count(),
      }
      self.progress.flush()
      self.checkpoints.save(step, self.state, meta, metrics)
    self.progress.line(f"step {step}  checkpoint")


class _Interrupted(Exception):
  """The run has to end during an evaluation."""


def fetch(window: list[dict[str, Any]]) -> list[dict[str, float | None]]:
  """Fetches the metrics of steps as floats, which JSON keeps exactly; None if not finite."""

  def plain(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None

  return [{k: plain(v) for k, v in metrics.items()} for metrics in jax.device_get(window)]


def summarise(rows: list[dict[str, Any]]) -> dict[str, int | float]:
  """Returns the means over the steps that were not skipped, and the number of `skipped_steps`.

  The loss of a data set of a mixture, `loss/NAME`, is the mean over its examples, of which there
  were `samples/NAME`.
  """
  updates = [row for row in rows if not row.pop("skipped_steps")]
  names = updates[0] if updates else ()
  means = {
    name: float(np.mean([row[name] for row in updates])) for name in names if "/" not in name
  }
  for name in (key.partition("/")[2] for key in names if key.startswith("samples/")):
    samples = sum(row[f"samples/{name}"] for row in updates)
    if samples:
      means[f"loss/{name}"] = sum(row[f"loss/{name}"] for row in updates) / samples
    means[f"samples/{name}"] = round(samples)
  return means | {"skipped_steps": len(rows) - len(updates)}


def peak_rate(config: ConfigDict) -> float | None:
  """Returns the samples per second at the peak of all devices; None for unknown devices.

  The fraction that a run reaches is its MFU, model FLOPs utilisation (PaLM, arXiv 2204.02311,
  appendix B).
  """
  peak = chips.peak_flops_of(jax.devices()[0].device_kind, config.model.dtype)
  if peak is None:
    return None
  return peak * jax.device_count() * config.batch_size / flops.train_step_flops(config)
