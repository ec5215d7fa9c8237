"""The training loop: one run, from its first step or its last checkpoint to its end."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mail_jax.checkpoints import checkpoint
from mail_jax.config import to_json
from mail_jax.distributed import processes, sharding
from mail_jax.evaluate import dataset_metrics
from mail_jax.evaluate.segmentation import SegmentationEvaluator
from mail_jax.hardware import chips, flops
from mail_jax.pretrained import initialise
from mail_jax.train import workdir_lock
from mail_jax.train.data import Batch, Data
from mail_jax.train.goodput import Goodput, Rate
from mail_jax.train.guards import Skipped
from mail_jax.train.length import Budget, steps_from
from mail_jax.train.logging import final_table, sinks, step_line
from mail_jax.train.logging.progress import Progress
from mail_jax.train.optim import learning_rate_from
from mail_jax.train.preemption import Preemption
from mail_jax.train.program import build_program
from mail_jax.train.resume import check_same
from mail_jax.train.step import TrainState


class Trainer:
  """A run: its compiled step, its state and its checkpoints."""

  def __init__(self, config: ConfigDict, workdir: str, data: Data):
    """Builds or resumes the run.

    Args:
      config: a whole config.
      workdir: where checkpoints and `metrics.jsonl` go.
      data: what to train on.

    Raises:
      InputError: the workdir holds a run with another config or tokenizer, or is in use by one, or the config asks
        for what cannot be.
    """
    sinks.check(config)
    self.goodput, self.preemption = Goodput(), Preemption()
    self.rate = Rate(self.goodput, config.batch_size)
    self.config, self.data = config, data
    self.program = build_program(
      config, data.tokenizer.vocab_size, sharding.make_mesh(**config.mesh)
    )
    self.peak_rate = peak_rate(config)
    steps = steps_from(config.steps, config.epochs, data.samples, config.batch_size)
    self.budget = Budget(steps, config.minutes, config.optimizer.warmup_steps)
    learning_rate_from(config, config.optimizer.warmup_steps, self.budget.steps)
    shapes = self.program.shapes
    new = not processes.broadcast_from_main(checkpoint.exists(workdir))
    loaded = initialise.load(config, shapes.variables["params"]) if config.init and new else {}
    # Up to here, whatever is wrong with the config has been refused and nothing was written.
    with contextlib.ExitStack() as stack:
      stack.enter_context(workdir_lock.held(workdir))
      self._open(workdir, shapes, loaded)
      self._held = stack.pop_all()  # until `run` ends

  def _open(self, workdir: str, shapes: TrainState, loaded: dict[str, np.ndarray]) -> None:
    """Opens the checkpoints and the log, and makes or restores the state."""
    config, data = self.config, self.data
    self.checkpoints = checkpoint.Checkpoints(workdir, config.best_metric)
    latest = self.checkpoints.latest()
    # What a line of the log will be the mean of; a run that ends within one leaves it to the next.
    self.window: list[dict[str, jax.Array | float]] = []
    # The update that was started last, and whether it is skipped.
    self.waiting: tuple[int, jax.Array] | None = None
    skipped: dict[str, int] = {}
    if latest is None:
      self.state = self.program.create()
    else:
      meta = self.checkpoints.meta(latest)
      check_same(meta, config, data.tokenizer, workdir)
      self.budget.steps, self.window = meta["steps"], meta["window"]
      skipped = meta.get("skipped", {})
      self.state = self.checkpoints.restore(latest, shapes)
    self.skipped = Skipped(workdir, config.max_nonfinite_steps, skipped)
    self.start_step = latest or 0
    self.progress = Progress(workdir, self.start_step)
    if not self._is_finished():
      sinks.open_sinks(config, workdir, self.start_step, self.progress)
    self.samples = sinks.fixed(config, self.program) if data.evaluate else None
    self.workdir = workdir
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
    """Trains to the end, or until it is asked to end; returns the last evaluation."""
    with self._held:
      return self._run()

  def _run(self) -> dict[str, int | float]:
    with self.preemption.watch(), self.progress:
      step, metrics = self.start_step, self._catch_up()
      if self.budget.steps and step >= self.budget.steps:
        self.progress.line(f"finished already: {self.budget.steps} steps")
      elif not self.preemption.asked:
        self._announce()
        step, metrics = self._train(metrics)
      with self.goodput.spend("checkpoint"):
        self.checkpoints.close()
      if self.preemption.asked:
        self.progress.line(f"ended on SIGTERM at step {step}; the same command goes on from there")
      elif step > self.start_step:
        self.progress.line(f"done: {step} steps")
    if step > self.start_step:
      self.progress.line(f"{self.workdir}\n{self._final_table(step)}")
    return metrics or {}

  def _catch_up(self) -> dict[str, int | float] | None:
    """Evaluates where the run ended before it could."""
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
    done = self.budget.steps > 0 and self.start_step >= self.budget.steps
    return done and not self._owes_evaluation()

  def _is_due(self, step: int) -> bool:
    """Whether the run is evaluated after so many steps."""
    return self.data.evaluate is not None and (
      step == self.budget.steps or step % self.config.eval_every == 0
    )

  def _train(self, metrics: dict | None) -> tuple[int, dict[str, int | float] | None]:
    """Trains from the start; returns how many steps are done, and the last evaluation."""
    config, budget = self.config, self.budget
    batches = self.data.train(self.start_step)
    with self.goodput.spend("data"):
      first = next(batches)  # whatever is read or cached before training belongs to no step
    batches = itertools.chain([first], batches)
    budget.start()
    self.rate.start(self.start_step)
    for step in itertools.count(self.start_step):
      with self.goodput.spend("data"):
        batch = next(batches)
      lr = learning_rate_from(config, step, budget.steps)
      with self.goodput.spend("step"):
        self._step(step, batch, lr)
      if budget.after(step):
        self.progress.line(f"{budget.steps} steps fit into {config.minutes:g} minutes")
      self.progress.at(step + 1, budget.steps, self._epoch(step + 1))
      done = budget.steps > 0 and step + 1 >= budget.steps
      if done or (step + 1) % config.log_every == 0:
        self._log(step + 1, lr)
      stop = self.preemption.reached()
      evaluated = None if stop or not self._is_due(step + 1) else self._evaluate(step + 1)
      metrics, stop = evaluated or metrics, self.preemption.asked
      # The number of steps is part of what is saved.
      if done or stop or (budget.steps and (evaluated or (step + 1) % config.save_every == 0)):
        self._save(step + 1, evaluated)
      if done or stop:
        return step + 1, metrics
    raise AssertionError("a count does not end")

  def _step(self, step: int, batch: Batch, lr: float) -> None:
    """Starts one update, and waits for the one before."""
    spread = sharding.global_batch(self.program.mesh, batch)
    self.state, new = self.program.step(self.state, spread, np.float32(lr))
    if self.waiting:  # one step ahead of the device, no more
      self._count_skipped()
    self.window.append(new)
    self.waiting = (step + 1, new["skipped_steps"])

  def _count_skipped(self) -> None:
    """Waits for the last update, and looks whether it was made."""
    if self.waiting:
      (step, skipped), self.waiting = self.waiting, None
      self.skipped.after(step, bool(skipped), self._describe)

  def _describe(self, steps: list[int]) -> list[Any]:
    """Which samples were in the batches of these steps, of all processes."""
    own = self.data.describe(steps) if self.data.describe else [{"step": step} for step in steps]
    return [row for rows in processes.all_gather_object(own) for row in rows]

  def _announce(self) -> None:
    parameters = sum(x.size for x in jax.tree.leaves(self.state.variables["params"]))
    resumed = f", resumed at step {self.start_step}" if self.start_step else ""
    self.progress.line(
      f"{parameters / 1e6:.2f} M parameters, {jax.device_count()} {jax.devices()[0].platform} device(s){resumed}"
    )

  def _log(self, step: int, lr: float) -> None:
    with self.goodput.spend("step"):
      self._count_skipped()
      fetched, self.window = fetch(self.window), []
    values = summarise(fetched)
    rate, wait = self.rate.lap(step)
    values |= {"lr": lr, "samples_per_second": rate, "data_wait": wait}
    values |= {"mfu": rate / self.peak_rate} if self.peak_rate else {}
    self.progress.row(step, values | {"seconds": self.goodput.seconds()})
    self._tell(step, values)

  def _tell(self, step: int, values: dict[str, int | float]) -> None:
    """Says how training goes."""
    left = self._seconds_left(step, values["samples_per_second"])
    where = step_line.position(step, self.budget.steps)
    how = step_line.losses(values, sorted(self.config.loss)) + step_line.skipped(values)
    speed, wait = step_line.speed(values), step_line.data_wait(values)
    self.progress.trained(
      f"{where}  {how}  {speed}  {wait}  {step_line.left(left)}", f"{speed}  {how}  {wait}", left
    )

  def _seconds_left(self, step: int, rate: float) -> float:
    """Until the run ends, as fast as it is of late and with as many evaluations as there were."""
    if not self.budget.steps:
      return self.budget.seconds_left()
    spent = self.goodput.seconds()
    overhead, done = spent["evaluation"] + spent["checkpoint"], step - self.start_step
    return step_line.seconds_left(
      self.budget.steps - step, self.config.batch_size / rate, overhead, done
    )

  def _epoch(self, step: int) -> float | None:
    return step * self.config.batch_size / self.data.samples if self.data.samples else None

  def _final_table(self, step: int) -> str:
    return final_table.text(
      final_table.best_and_last(
        self.progress.rows(), self.config.eval_split, self.config.best_metric
      ),
      step=step,
      start_step=self.start_step,
      batch_size=self.config.batch_size,
      seconds=self.goodput.seconds(),
      spent=self.goodput.line(),
      places=final_table.places(self.workdir, self.config.log.tensorboard),
    )

  def _evaluate(self, step: int) -> dict[str, int | float] | None:
    """Judges the model; None where the run is asked to end meanwhile."""
    batches = functools.partial(self._evaluation_batches, step)
    evaluator = SegmentationEvaluator(self._measure, batches)
    with self.goodput.spend("evaluation"):
      try:
        metrics = dict(evaluator.run(eval_variables(self.state, self.config)))
      except _Interrupted:
        return None
    metrics = dataset_metrics.with_own(metrics, self.config.dataset, evaluator.rows)
    row = {f"{self.config.eval_split}/{k}": v for k, v in metrics.items()}
    self.progress.row(step, row | {"seconds": self.goodput.seconds()})
    self.progress.line(f"step {step}  {step_line.evaluation(self.config.eval_split, metrics)}")
    if self.samples:
      with self.goodput.spend("evaluation"):
        self.progress.pictures(step, self.samples.draw(eval_variables(self.state, self.config)))
    return metrics

  def _evaluation_batches(self, step: int) -> Iterator[Any]:
    assert self.data.evaluate is not None
    done = 0
    for batch in self.data.evaluate():
      if self.preemption.reached():
        raise _Interrupted
      if self.samples:
        self.samples.watch(batch)
      yield batch
      done += int((batch["index"] >= 0).sum()) * jax.process_count()
      self.progress.evaluating(
        step, self.config.eval_split, done, int(np.max(batch.get("total", done)))
      )

  def _save(self, step: int, metrics: dict[str, int | float] | None) -> None:
    with self.goodput.spend("checkpoint"):
      self._count_skipped()
      meta = {
        "config": to_json(self.config),
        "tokenizer": checkpoint.pack_bytes(self.data.tokenizer.to_bytes()),
        "steps": self.budget.steps,
        "data_position": step,
        "window": fetch(self.window),
        "skipped": self.skipped.meta(),
      }
      self.progress.flush()
      self.checkpoints.save(step, self.state, meta, metrics)
    self.progress.line(f"step {step}  checkpoint")


class _Interrupted(Exception):
  """The run was asked to end during an evaluation."""


def fetch(window: list[dict[str, Any]]) -> list[dict[str, float | None]]:
  """Metrics of the last steps as numbers of the host, which JSON keeps to the last bit; None is not finite."""

  def plain(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None

  return [{k: plain(v) for k, v in metrics.items()} for metrics in jax.device_get(window)]


def summarise(rows: list[dict[str, Any]]) -> dict[str, int | float]:
  """Means over the steps that were made, where there are any, and `skipped_steps`: how many were not."""
  made = [row for row in rows if not row.pop("skipped_steps")]
  means = {name: float(np.mean([row[name] for row in made])) for name in (made[0] if made else ())}
  return means | {"skipped_steps": len(rows) - len(made)}


def peak_rate(config: ConfigDict) -> float | None:
  """Samples a second if all devices did nothing but the products of the model, at their peak; None on unknown ones.

  What a run reaches of it is its MFU, model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B).
  """
  peak = chips.peak_flops_of(jax.devices()[0].device_kind, config.model.dtype)
  if peak is None:
    return None
  return peak * jax.device_count() * config.batch_size / flops.train_step_flops(config)


def eval_variables(state: TrainState, config: ConfigDict) -> Any:
  """What is judged and shared: the moving average where there is one."""
  return state.averaged if config.ema_decay else state.variables
