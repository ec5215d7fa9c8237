"""Ordered (regex, value) rules over the paths of parameters: learning rates, decay, placement."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from input_pipeline.common.errors import InputError
from mail_jax.models.build import Tree, path_name


def by_rule(tree: Tree, rules: Sequence[Any], key: str) -> Tree:
  """Returns, for every leaf, the value of the first rule whose regex is found in its path.

  Args:
    tree: of arrays, such as the parameters.
    rules: pairs (regex, value), in order.
    key: of the rules in the config, for errors.

  Raises:
    InputError: see `check_rules`; or no rule matches a leaf.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  check_rules((path_name(path) for path, _ in leaves), rules, key)

  def value(path, leaf):
    del leaf
    name = path_name(path)
    for pattern, result in rules:
      if re.search(pattern, name):
        return result
    raise InputError(f"config.{key}: no rule matches {name!r}; end the list with ('.*', value)")

  return jax.tree_util.tree_map_with_path(value, tree)


def check_rules(names: Iterable[str], rules: Sequence[Any], key: str) -> None:
  """Checks that every rule is one, and that it decides something.

  Args:
    names: paths of the arrays.
    rules, key: see `by_rule`.

  Raises:
    InputError: a rule is not a pair, its regex is none, matches nothing, or only what earlier rules
      match; a last rule for everything else may be left with nothing.
  """
  names = sorted(names)
  left = set(names)
  for number, rule in enumerate(rules, 1):
    if not isinstance(rule, tuple | list) or len(rule) != 2:
      raise InputError(
        f"config.{key}: rule {number} is {rule!r}, not a pair (regex, value); rules are written "
        "(('^encoder', value), ('.*', value))"
      )
    found = set(matching(names, rule[0], key))
    if not found:
      raise InputError(f"config.{key}: {rule[0]!r} matches no parameter; {parts(names)}")
    if not found & left and rule[0] != ".*":
      raise InputError(
        f"config.{key}: {rule[0]!r} decides nothing, for earlier rules match all that it matches; "
        "put it before them"
      )
    left -= found


def matching(names: Iterable[str], pattern: Any, key: str) -> list[str]:
  """Returns the names that a regex of the config is found in.

  Raises:
    InputError: it is not a regex.
  """
  try:
    compiled = re.compile(pattern)
  except (re.error, TypeError) as error:
    raise InputError(f"config.{key}: {pattern!r} is not a regular expression ({error})") from error
  return [name for name in names if compiled.search(name)]


def parts(names: Iterable[str]) -> str:
  """Returns the parts that names begin with, for errors."""
  return f"the parts are {', '.join(sorted({name.partition('/')[0] for name in names}))}"
