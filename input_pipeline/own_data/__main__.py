"""Commands about data of your own (docs/your_own_data.md):

python -m input_pipeline.own_data validate mine.jsonl
python -m input_pipeline.own_data look mine.jsonl --out look.png
python -m input_pipeline.own_data convert --from cvat instances_default.json --images images --out mine.jsonl
python -m input_pipeline.own_data example --out example
"""

from input_pipeline import errors
from input_pipeline.command_line import command_parser
from input_pipeline.own_data import convert, example_command, look, validate

# Each has add_parser(subparsers), which sets `run` to a function of the parsed arguments.
COMMANDS = (validate, look, convert, example_command)


def main(argv: list[str] | None = None) -> None:
  """Runs the command that is named first.

  Raises:
    InputError: something is wrong with what was given.
  """
  parser = command_parser("input_pipeline.own_data", __doc__)
  subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
  for command in COMMANDS:
    command.add_parser(subparsers)
  args = parser.parse_args(argv)
  args.run(args)


if __name__ == "__main__":
  errors.run_command(main, interrupted="interrupted")
