"""Trains a SentencePiece model on a data set's expressions:

python -m input_pipeline.tokenizer --train_from refcoco_unc --data_dir data --vocab_size 8000 --out refcoco.model
"""

import pathlib

import numpy as np

from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer


def _read_sentences(train_from: str, data_dir: str | None) -> list[str]:
  """The training sentences of a data set, or the lines of a text file."""
  if data_dir:
    from input_pipeline.tf import loader  # what reads records needs seconds to start

    return loader.train_sentences(data_dir, train_from)
  try:
    text = pathlib.Path(train_from).read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise InputError(f"--train_from {train_from}: it is not UTF-8 text") from error
  except OSError as error:
    raise InputError(
      f"--train_from {train_from}: {error.strerror}; for the sentences of a data set add --data_dir"
    ) from error
  return [line for line in text.splitlines() if line.strip()]


def main(argv: list[str] | None = None) -> None:
  """The command."""
  parser = command_parser("input_pipeline.tokenizer", __doc__)
  parser.add_argument(
    "--train_from",
    required=True,
    metavar="DATA",
    help="a data set in --data_dir, whose training sentences are taken, or a text file, one expression a line",
  )
  parser.add_argument("--data_dir", help="where input_pipeline.prepare wrote the records")
  parser.add_argument("--vocab_size", type=int, required=True, help="ids, 260 of them fixed")
  parser.add_argument("--out", required=True, metavar="F.model", help="the SentencePiece model")
  args = parser.parse_args(argv)

  sentences = _read_sentences(args.train_from, args.data_dir)
  tokenizer = SentencePieceTokenizer.train(sentences, args.vocab_size)
  atomic_files.write_whole(args.out, tokenizer.file_bytes())
  lengths = np.array([len(row) + 2 for row in tokenizer.encode(sentences)])
  print(
    f"wrote {args.out}: {tokenizer.vocab_size} ids from {len(sentences)} expressions; "
    f"99 % of them have at most {int(np.percentile(lengths, 99, method='higher'))} tokens, the longest {lengths.max()}"
  )
  print(f"use it with --config.tokenizer=sentencepiece:{args.out}")
