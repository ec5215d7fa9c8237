"""Validates, draws and converts custom data (docs/guides/custom-data.md):

python -m input_pipeline.custom validate mine.jsonl
python -m input_pipeline.custom draw mine.jsonl --out draw.png
python -m input_pipeline.custom convert --from cvat instances_default.json --out mine.jsonl
python -m input_pipeline.custom example --out example
"""

from input_pipeline.common.command_line import command_parser
from input_pipeline.custom import convert, draw, example, validate

# Each has add_parser(subparsers), which sets `run` to a function of the parsed arguments.
COMMANDS = (validate, draw, convert, example)


def main(argv: list[str] | None = None) -> None:
  """Runs the subcommand.

  Raises:
    InputError: an argument or a file is invalid.
  """
  parser = command_parser("input_pipeline.custom", __doc__)
  subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
  for command in COMMANDS:
    command.add_parser(subparsers)
  args = parser.parse_args(argv)
  args.run(args)
