r"""Trains a SentencePiece model on a data set's expressions:

python -m input_pipeline.tokenizer --train_from refcoco_unc --data_dir data --vocab_size 8000 \
    --out refcoco.model
"""

import pathlib

import numpy as np

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce, counted
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer


def _read_expressions(train_from: str, data_dir: str | None) -> list[str]:
  """Returns the training expressions of a data set, or the lines of a text file."""
  if data_dir:
    # TensorFlow takes seconds to import.
    from input_pipeline.tf import loader

    return loader.train_expressions(data_dir, train_from)
  try:
    text = pathlib.Path(train_from).read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise InputError(f"--train_from {train_from}: not a UTF-8 text file") from error
  except OSError as error:
    raise InputError(
      f"--train_from {train_from}: {error.strerror}; for a data set add --data_dir"
    ) from error
  return [line for line in text.splitlines() if line.strip()]


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = command_parser("input_pipeline.tokenizer", __doc__)
  parser.add_argument(
    "--train_from",
    required=True,
    metavar="DATA",
    help="a data set in --data_dir, for its training expressions, or a text file with one "
    "expression per line",
  )
  parser.add_argument("--data_dir", help="folder that input_pipeline.prepare wrote to")
  parser.add_argument("--vocab_size", type=int, required=True, help="ids, 260 of which are fixed")
  parser.add_argument("--out", required=True, metavar="F.model", help="model to write")
  args = parser.parse_args(argv)

  with announce(f"reading {args.train_from}"):
    expressions = _read_expressions(args.train_from, args.data_dir)
  with announce(f"training on {counted(len(expressions), 'expression')}"):
    tokenizer = SentencePieceTokenizer.train(expressions, args.vocab_size)
  atomic_files.write_whole(args.out, tokenizer.file_bytes())
  lengths = np.array([len(row) + 2 for row in tokenizer.encode(expressions)])
  print(
    f"wrote {args.out}: {tokenizer.vocab_size} ids from {len(expressions)} expressions; "
    f"99 % have at most {int(np.percentile(lengths, 99, method='higher'))} tokens, the longest "
    f"{lengths.max()}"
  )
  print(f"use it with --config.tokenizer=sentencepiece:{args.out}")
