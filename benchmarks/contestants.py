"""Compares programs that compute the same network; each is a process, and they take turns.

A contestant starts from the `variables.npz` in a folder, which our program writes, and answers
commands, one line of JSON each. While one works the others wait and use no core.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import paired
from input_pipeline.common import parallel
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes
from mail_jax.config import load_config, parse_overrides
from mail_jax.hardware import chips
from mail_jax.plan import costs, hlo

VOCAB = 30522  # BERT's word pieces
OURS, PEERS = "mail_jax", ("eager", "compiled", "oneDNN")


@dataclasses.dataclass(frozen=True)
class Contest:
  """A comparison of programs that compute the same.

  Attributes:
    module: of the command, such as `benchmarks.train_step`.
    describe: help of the command.
    work: unit of the rate, such as `samples`.
    flops: operations of a config, at its batch size.
    tolerance: largest difference of two answers to `start`, by the dtype of the model.
    serve_ours: runs our program: (config, folder).
    serve_peer: runs a peer: (name, config, folder).
  """

  module: str
  describe: str | None
  work: str
  flops: Callable[[ConfigDict], float]
  tolerance: dict[str, float]
  serve_ours: Callable[[ConfigDict, str], None]
  serve_peer: Callable[[str, ConfigDict, str], None]

  def main(self, argv: list[str] | None = None) -> None:
    """Runs the command: measures every contestant and prints the table, or acts as one of them."""
    parser = argparse.ArgumentParser(
      description=self.describe, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args, config = parse(parser, argv)
    if args.peers:
      _check_peers(config)
    rows = []
    for batch_size in args.batch_size:
      with config.unlocked():
        config.batch_size = batch_size
      if args.contestant == OURS:
        self.serve_ours(config, args.folder)
      elif args.contestant:
        self.serve_peer(args.contestant, config, args.folder)
      else:
        rows += self._compare(args, config, sys.argv[1:] if argv is None else argv)
    if rows:
      print(f"{paired.machine()}\n\n{paired.table(rows)}")
      paired.write_json(args.json, {"config": config.to_dict(), "rows": rows})

  def _compare(self, args: Any, config: ConfigDict, argv: list[str]) -> list[dict[str, Any]]:
    """Yields the rows of the table for a batch size.

    Raises:
      RuntimeError: the values of a program differ from ours.
    """
    names, started = [OURS, *args.peers], []
    limit = self.tolerance[config.model.dtype]
    with tempfile.TemporaryDirectory() as folder:
      try:
        answers = []
        for name in names:
          started.append(Contestant(self.module, name, folder, config.batch_size, argv))
          answers.append(np.array(started[-1].ask("start")))
          apart = np.abs(answers[-1] - answers[0]).max()
          if not apart <= limit:
            raise RuntimeError(f"{name} is up to {apart} from ours: not the same network")
        runs = {c.name: functools.partial(c.ask, "run", repeats=args.repeats) for c in started}
        times = paired.interleave(runs, args.rounds)
        memory = {c.name: c.ask("memory") for c in started}
        planned = started[0].ask("plan")
      finally:
        for contestant in started:
          contestant.close()
    products = self.flops(config)
    peak = chips.peak_flops_of(jax.devices()[0].device_kind, config.model.dtype)
    medians = {name: statistics.median(times[name]) for name in names}
    return [
      {
        "batch": config.batch_size,
        "program": name,
        "ms": seconds * 1e3,
        f"{self.work}/s": config.batch_size / seconds,
        "TFLOP/s": products / seconds / 1e12,
        "MFU": f"{products / seconds / peak:.1%}" if peak else None,
        "peak GB": memory[name] / 1e9,
        **(planned if name == OURS else dict.fromkeys(planned)),
        "ours is so many times as fast": 1 / paired.ratio(times[OURS], times[name]),
      }
      for name, seconds in medians.items()
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of all comparisons; others are `--config.KEY=VALUE`."""
  parser.add_argument("--config", default="configs/refcoco.py:unc", metavar="FILE.py[:ARGUMENT]")
  parser.add_argument("--batch_size", type=int, nargs="+", required=True)
  parser.add_argument("--peers", nargs="*", choices=PEERS, default=["eager", "compiled"])
  parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
  parser.add_argument("--repeats", type=int, default=3, help="runs per turn")
  parser.add_argument("--json", metavar="FILE")
  parser.add_argument("--contestant", help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple[Any, ConfigDict]:
  """Parses the arguments and the config, without instance dropout, which the peers lack."""
  args, rest = parse_overrides(parser, argv)
  still = ["augment.instance_dropout=0.0", "augment.all_instances_dropout=0.0"]
  return args, load_config(args.config, [*still, *rest])


def _check_peers(config: ConfigDict) -> None:
  missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
  if missing:
    raise InputError(
      f"--peers needs {' and '.join(missing)}: pip install -r requirements-extras.txt, "
      "or --peers without a name"
    )
  model = config.model
  other = model.mask_tokens != "instance" or model.experts != "shared"
  if other or model.scan or not config.max_instances:
    raise InputError(
      "--peers: the twin is the `instance` preset with shared experts, without `model.scan`; for "
      "others write --peers without a name"
    )


class Contestant:
  """A process that measures one program."""

  def __init__(self, module: str, name: str, folder: str, batch_size: int, arguments: list[str]):
    """Starts `python -m module --contestant name` with the arguments of this process."""
    cores = str(parallel.available_cores())
    environment = {**os.environ, "OMP_NUM_THREADS": cores, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-m", module, *arguments, "--batch_size", str(batch_size)]
    self.name = name
    self._process = subprocess.Popen(
      [*command, "--contestant", name, "--folder", folder],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip

  def ask(self, command: str, **arguments: Any) -> Any:
    """Sends a command and waits for the answer.

    Raises:
      RuntimeError: the process ended; its messages are on stderr.
    """
    assert self._process.stdin and self._process.stdout
    try:
      self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass
    answer = self._process.stdout.readline()
    if not answer:
      raise RuntimeError(f"{self.name} ended with exit code {self._process.wait()}")
    return json.loads(answer)

  def close(self) -> None:
    """Ends the process."""
    assert self._process.stdin
    self._process.stdin.close()
    try:
      self._process.wait(20)
    except subprocess.TimeoutExpired:
      self._process.kill()


class PeakMemory:
  """The peak memory since `reset`, of the accelerator or of this process."""

  def __init__(self, accelerator: Callable[[], int] | None = None):
    """Measures an accelerator, or without one this process.

    Args:
      accelerator: returns the peak bytes of the accelerator.
    """
    self._accelerator = accelerator

  def reset(self) -> None:
    """Resets the peak of this process; that of an accelerator cannot be reset."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")

  def bytes(self) -> int:
    """Returns the peak bytes."""
    if self._accelerator:
      return self._accelerator()
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def open_peer(name: str, config: ConfigDict, folder: str) -> tuple[Any, Any, str, PeakMemory]:
  """Returns the twin with our variables, its batch, their device, and its peak memory."""
  import torch  # pyright: ignore[reportMissingImports]

  from benchmarks import torch_twin, torch_weights

  on_gpu = torch.cuda.is_available()
  device = "cuda" if on_gpu else "cpu"
  twin = torch_twin.Twin(config, VOCAB)
  torch_weights.load(twin, read_variables(folder))
  if name == "oneDNN":
    torch_twin.use_onednn(twin)
  arrays = make_batch(config, config.batch_size)
  batch = torch_twin.to_torch(arrays, config.max_instances, device)
  memory = PeakMemory(torch.cuda.max_memory_allocated if on_gpu else None)
  return twin.to(device), batch, device, memory


def plan_of(compiled: jax.stages.Compiled, dtype: str) -> dict[str, float | None]:
  """Returns what `mail_jax.plan` says of a program that is compiled for the device at hand.

  Args:
    compiled: the program.
    dtype: `config.model.dtype`.

  Returns:
    Columns of the table: memory, and the least times that the traffic and the products take, None
    where the peaks of the device are unknown.
  """
  memory: Any = compiled.memory_analysis()
  module = hlo.parse(compiled.as_text() or "")
  moved, done = costs.memory_bytes(module), costs.product_flops(module)
  chip = chips.chip_of(jax.devices()[0].device_kind)
  kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
    "planned GB": (kept + memory.temp_size_in_bytes) / 1e9,
    "of them temporary": memory.temp_size_in_bytes / 1e9,
    "traffic GB": moved / 1e9,
    "traffic ms": moved / chip.bandwidth * 1e3 if chip else None,
    "products ms": done / chips.peak_flops(chip, dtype) * 1e3 if chip else None,
  }


def serve(
  start: Callable[[], Any],
  run: Callable[[], Any],
  finish: Callable[[Any], Any],
  memory: PeakMemory,
  plan: Callable[[], dict[str, float | None]] = dict,
) -> None:
  """Answers the commands of a `Contest`.

  `start` returns the values to compare, `run` is timed, `finish` waits for it, and `plan` returns
  what was predicted, see `plan_of`.
  """

  def first() -> Any:
    answer = start()
    memory.reset()
    return answer

  answer_commands({
    "start": first,
    "run": lambda repeats: time_repeats(run, finish, repeats),
    "memory": memory.bytes,
    "plan": plan,
  })  # fmt: skip


def answer_commands(commands: dict[str, Callable[..., Any]]) -> None:
  """Answers commands until the end of stdin; all other output goes to stderr."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  for line in sys.stdin:
    command = json.loads(line)
    answers.write(json.dumps(commands[command.pop("command")](**command)) + "\n")
    answers.flush()


def time_repeats(run: Callable[[], Any], finish: Callable[[Any], Any], repeats: int) -> float:
  """Returns the seconds per run of several in a row, and waits for the last.

  One more run comes first and is not counted: during the turns of others the system reclaimed the
  freed memory of this program, which does not happen in training or serving.
  """
  finish(run())
  began = time.perf_counter()
  last = run()
  for _ in range(repeats - 1):
    last = run()
  finish(last)
  return (time.perf_counter() - began) / repeats


def jax_memory() -> PeakMemory:
  """Returns the peak memory of JAX's first device."""
  device = jax.devices()[0]
  if device.platform == "cpu":
    return PeakMemory()
  return PeakMemory(lambda: device.memory_stats()["peak_bytes_in_use"])


def make_batch(config: ConfigDict, batch_size: int) -> dict[str, np.ndarray]:
  """Makes a batch like the loader's.

  Images are noise, instances are boxes, one of which is the target, expressions have full length.
  """
  rng, size = np.random.default_rng(0), config.image_size
  groups = bit_planes.num_planes(config.max_instances)
  planes = np.zeros((batch_size, groups, size, size), np.uint16)
  for row, k in np.ndindex(batch_size, config.max_instances):
    (top, left), (tall, wide) = rng.integers(0, size // 2, 2), rng.integers(size // 8, size // 2, 2)
    planes[row, k // 16, top : top + tall, left : left + wide] |= np.uint16(1 << k % 16)
  return {
    "image": rng.integers(0, 256, (batch_size, size, size, 3), np.uint8),
    "instances": planes,
    "num_instances": np.full(batch_size, config.max_instances, np.int32),
    "tokens": rng.integers(1, VOCAB, (batch_size, config.max_tokens), np.int32),
    "num_tokens": np.full(batch_size, config.max_tokens, np.int32),
    "target": (planes[:, 0] >> 3 & 1).astype(bool),
    "weight": np.ones(batch_size, np.float32),
  }


def write_variables(folder: str, variables: Any) -> None:
  """Writes our variables for the other contestants."""
  flat = {"/".join(path): np.asarray(x) for path, x in _flatten(variables)}
  np.savez(pathlib.Path(folder) / "variables.npz", **flat)  # pyright: ignore[reportArgumentType]


def read_variables(folder: str) -> dict[str, Any]:
  """Reads the variables of `write_variables`."""
  tree: dict[str, Any] = {}
  with np.load(pathlib.Path(folder) / "variables.npz") as arrays:
    for name in arrays.files:
      *parents, leaf = name.split("/")
      node = tree
      for part in parents:
        node = node.setdefault(part, {})
      node[leaf] = arrays[name]
  return tree


def _flatten(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _flatten(value, (*path, name))
    else:
      yield (*path, name), value
