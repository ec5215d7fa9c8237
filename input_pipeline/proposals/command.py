r"""Makes and measures proposals, and removes evaluation images from a detector's training data:

python -m input_pipeline.proposals report --data_dir data
python -m input_pipeline.proposals clean-split --annotations FILE --refer_root refer \
    --out clean.json
python -m input_pipeline.proposals propose --dataset refcoco_unc --refer_root refer \
    --images train2014 --instances huggingface:MODEL --out proposals.json
"""

from input_pipeline.common.command_line import command_parser
from input_pipeline.proposals import clean_split, propose, report

# Each has add_parser(subparsers), which sets `run` to a function of the parsed arguments.
COMMANDS = (propose, report, clean_split)


def main(argv: list[str] | None = None) -> None:
  """Runs the subcommand.

  Raises:
    InputError: an argument or a file is invalid.
  """
  parser = command_parser("input_pipeline.proposals", __doc__)
  subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
  for command in COMMANDS:
    command.add_parser(subparsers)
  args = parser.parse_args(argv)
  args.run(args)
