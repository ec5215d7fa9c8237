"""Coverage-guided fuzzing of everything that reads untrusted files.

    pip install -r requirements-fuzz.txt
    python tests/fuzzing/run.py segmentations --seconds 600
    python tests/fuzzing/run.py refs --replay

The corpus is kept (--corpus) and gone on with. A finding ends the run: its bytes lie there as
crash-*, and become a test with small bytes. The last line counts executions, and the lines of the
code under test that the corpus reaches.
"""

import argparse
import importlib
import os
import pathlib
import re
import subprocess
import sys

_HERE = pathlib.Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
TARGETS = (
  "refs",
  "segmentations",
  "records",
  "lines",
  "pictures",
  "predictions",
  "coco_files",
  "coco_exports",
  "label_studio_exports",
  "mdetr",
  "parquet_rows",
  "tool_formats",
  "image_lists",
)


def main(argv: list[str] | None = None) -> None:
  """Fuzzes a target, or runs its corpus once."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("target", choices=TARGETS)
  parser.add_argument("--seconds", type=int, default=600)
  parser.add_argument("--corpus", type=pathlib.Path, default=_ROOT / ".fuzzing")
  parser.add_argument("--realdata", type=pathlib.Path, default=_ROOT.parent / "shared/realdata")
  parser.add_argument(
    "--replay", action="store_true", help="counts the lines that the corpus reaches, and ends"
  )
  parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  sys.path[:0] = [str(_ROOT), str(_HERE.parent / "support"), str(_HERE)]
  folder = args.corpus / args.target
  if args.replay:
    _replay(args.target, folder)
  elif args.inside:
    _fuzz(args.target, folder, args.seconds)
  else:
    _write_seeds(args.target, folder, args.realdata)
    _watch(args, folder)


def _write_seeds(target: str, folder: pathlib.Path, realdata: pathlib.Path) -> None:
  (folder / "corpus").mkdir(parents=True, exist_ok=True)
  for number, data in enumerate(importlib.import_module(target).seeds(realdata)):
    (folder / "corpus" / f"seed-{number:03}").write_bytes(data)


def _watch(args: argparse.Namespace, folder: pathlib.Path) -> None:
  """Runs the fuzzer in another process, which C code may crash, and summarises its output."""
  own = [sys.executable, str(_HERE / "run.py"), args.target, "--corpus", str(args.corpus)]
  log = folder / "log"
  with log.open("wb") as file:
    command = [*own, "--inside", "--seconds", str(args.seconds)]
    code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
  text = log.read_text(errors="replace")
  ran = re.findall(r"stat::number_of_executed_units:\s*(\d+)", text) or re.findall(
    r"^#(\d+)", text, re.M
  )
  rss = re.findall(r"stat::peak_rss_mb:\s*(\d+)", text)
  reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
  cov, features, files = reached[-1] if reached else ("?", "?", "?")
  print(
    f"{args.target}: {int(ran[-1] if ran else 0):,} executions in {args.seconds} s, "
    f"{cov} branches, {features} features, {files} inputs kept, {rss[-1] if rss else '?'} MB",
    flush=True,
  )
  if code:
    findings = ", ".join(sorted(p.name for p in folder.glob("*-*") if p.is_file()))
    print(f"{args.target}: a finding, {findings}; {log}")
    print("\n".join(text.splitlines()[-30:]))
  subprocess.run([*own, "--replay"], check=False)
  sys.exit(1 if code else 0)


def _fuzz(target: str, folder: pathlib.Path, seconds: int) -> None:
  import atheris  # pyright: ignore[reportMissingImports]

  ours = ["input_pipeline", "mail_jax.evaluate", "PIL"]
  with atheris.instrument_imports(include=ours):
    module = importlib.import_module(target)
  limits = [
    f"-max_total_time={seconds}",
    f"-max_len={module.MAX_BYTES}",
    "-timeout=10",
    "-rss_limit_mb=1024",
  ]
  places = [f"-artifact_prefix={folder}/", str(folder / "corpus")]
  atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", *places], module.one_input)
  atheris.Fuzz()


def _replay(target: str, folder: pathlib.Path) -> None:
  """Runs every input of the corpus once and measures line coverage."""
  import coverage  # pyright: ignore[reportMissingImports]

  module = importlib.import_module(target)
  covered = [str(_ROOT / path) for path in module.COVERED]
  # Imports have been executed: only the lines of functions count from here.
  measured = coverage.Coverage(include=covered, branch=False, data_file=None, config_file=False)
  measured.start()
  for path in covered:
    importlib.reload(sys.modules[_module_name(path)])
  module = importlib.reload(module)
  for path in sorted((folder / "corpus").iterdir()):
    module.one_input(path.read_bytes())
  measured.stop()
  for path in covered:
    _, lines, _, missing, text = measured.analysis2(path)
    share = 1 - len(missing) / max(1, len(lines))
    print(
      f"  {os.path.relpath(path, _ROOT)}: {share:.0%} of {len(lines)} lines; not {text}", flush=True
    )


def _module_name(path: str) -> str:
  return os.path.relpath(path, _ROOT).removesuffix(".py").replace(os.sep, ".")


if __name__ == "__main__":
  main()
