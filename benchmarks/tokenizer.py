r"""Measures how many expressions are too long for a model, and the speed of tokenizers:

  python -m benchmarks.tokenizer --vocab vocab.txt \
      --expressions refcoco_val.json.gz refcocog_umd_val.json.gz

Expressions are JSON files, gzipped or not, as RefCOCO's toolkits export them ({"refs": [{"sent":
...}, ...]}), or text files with one expression per line. If `transformers` is installed, its two
BertTokenizers are timed in the same run, and must return the same ids.
"""

import argparse
import gzip
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline.common.errors import InputError, run_command
from input_pipeline.preprocess.tokenizer import (
  SentencePieceTokenizer,
  Tokenizer,
  WordPieceTokenizer,
)

LENGTHS = (15, 20, 30, 40)
REPEATS = 5


def read(path: pathlib.Path) -> list[str]:
  """Reads the expressions of a file; empty ones are left out.

  Raises:
    InputError: no such file, or one of another form.
  """
  try:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    is_json = ".json" in path.suffixes
    texts = [row["sent"] for row in json.loads(text)["refs"]] if is_json else text.splitlines()
  except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'--expressions {path}: neither {{"refs": [{{"sent": ...}}]}} nor text ({error})'
    ) from error
  return [text for text in texts if text.strip()]


def cut_table(tokenizers: dict[str, Tokenizer], files: dict[str, list[str]]) -> list[str]:
  """Formats a table of the fraction of each file's expressions that lose tokens at each length."""
  cuts = " | ".join(f"cut at {n}" for n in LENGTHS)
  lines = [
    f"| expressions | number | tokenizer | longest | {cuts} |",
    f"| --- | ---: | --- | ---: |{' ---: |' * len(LENGTHS)}",
  ]
  for name, texts in files.items():
    for kind, tokenizer in tokenizers.items():
      lengths = np.array([len(pieces) + 2 for pieces in tokenizer.encode(texts)])
      shares = " | ".join(f"{100 * (lengths > n).mean():.2f} %" for n in LENGTHS)
      lines.append(f"| {name} | {len(texts):,} | {kind} | {lengths.max()} | {shares} |")
  return lines


def rate(run: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
  """Returns expressions per second: the median of a few passes, after a warm-up."""
  seconds = []
  for _ in range(REPEATS + 1):
    began = time.perf_counter()
    run(texts)
    seconds.append(time.perf_counter() - began)
  return len(texts) / statistics.median(seconds[1:])


def references(vocab: str, max_tokens: int) -> dict[str, Callable[[Sequence[str]], np.ndarray]]:
  """Returns `transformers`' tokenizers with the same vocabulary, if it is installed."""
  if not importlib.util.find_spec("transformers"):
    return {}
  import transformers  # pyright: ignore[reportMissingImports]

  options = {"padding": "max_length", "truncation": True, "max_length": max_tokens}
  made = {
    f"transformers.{kind.__name__}": kind(vocab)
    for kind in (transformers.BertTokenizerFast, transformers.BertTokenizer)
  }
  return {
    name: lambda texts, model=model: np.array(model(list(texts), **options)["input_ids"])
    for name, model in made.items()
  }


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--vocab", required=True, metavar="VOCAB.txt", help="BERT's vocabulary")
  parser.add_argument("--expressions", required=True, nargs="+", type=pathlib.Path, metavar="FILE")
  parser.add_argument("--vocab_size", type=int, default=8000, help="of SentencePiece")
  parser.add_argument(
    "--max_tokens", type=int, default=40, help="length of the rows that are timed"
  )
  args = parser.parse_args(argv)
  files = {path.name.partition(".")[0]: read(path) for path in args.expressions}
  everything = [text for texts in files.values() for text in texts]
  tokenizers: dict[str, Tokenizer] = {
    "wordpiece": WordPieceTokenizer(pathlib.Path(args.vocab).read_bytes(), args.vocab),
    "sentencepiece": SentencePieceTokenizer.train(everything, args.vocab_size),
  }
  print("\n".join(cut_table(tokenizers, files)) + "\n")

  rates = {}
  ids = tokenizers["wordpiece"](everything, args.max_tokens)[0]
  for name, tokenizer in tokenizers.items():
    rates[name] = rate(lambda texts, t=tokenizer: t(texts, args.max_tokens), everything)
  for name, reference in references(args.vocab, args.max_tokens).items():
    assert (reference(everything) == ids).all(), f"{name} gives other ids"
    rates[name] = rate(reference, everything)
  print(
    "| tokenizer | expressions per second | speed of wordpiece, relative |\n| --- | ---: | ---: |"
  )
  for name, value in rates.items():
    print(f"| {name} | {value:,.0f} | {rates['wordpiece'] / value:.2f} |")


if __name__ == "__main__":
  run_command(main)
