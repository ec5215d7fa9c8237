#!/usr/bin/env bash
# `pip install .` in an environment of its own, and every command from an empty folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/clone" "$folder/empty"
git ls-files -z | xargs -0 tar -cf - | tar -xf - -C "$folder/clone"

"${PYTHON:-python3}" -m venv "$folder/venv"
bin=$folder/venv/bin
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$folder/clone"
"$bin/python" -m pip check --disable-pip-version-check
rm -r "$folder/clone"

cd "$folder/empty"
"$bin/mail-jax" --version
commands=$("$bin/python" -c 'from input_pipeline.common.command_line import COMMANDS; print(*COMMANDS)')
for command in $commands; do
  "$bin/mail-jax" "$command" --help >"$folder/help"
  grep -q "^usage: mail-jax $command " "$folder/help"
done
# The way from nothing to a mask, by the model that comes with it.
"$bin/mail-jax" predict --demo | grep -q "^demo.png: .* of the image; instance "
rm demo.png
# The way from nothing to a run, and to what a user has typed wrongly.
"$bin/mail-jax" prepare --dataset shapes --data_dir data --train_scenes 8 --eval_scenes 2 --workers 2
if "$bin/mail-jax" train --config demos --data_dir data --workdir run 2>"$folder/error"; then exit 1; fi
grep -q "^error: --config demos: not a file and not a recipe of mail_jax; the recipes are demo, " "$folder/error"
# Compiled in a hurry.
XLA_FLAGS=--xla_backend_optimization_level=0 "$bin/mail-jax" train --config demo --config.minutes=0.0 --config.steps=2 --config.model.depth=1 \
  --config.batch_size=8 --config.vocab_size=300 --data_dir data --workdir run
test "$(ls)" = "$(printf 'data\nrun')"
echo "installed: mail-jax and its $(wc -w <<<"$commands") commands work"
