#!/bin/bash
# What an accelerator needs to show, in under 9 minutes, without tensorflow: training and prediction beside the same
# network in PyTorch, the attention backends, and where the time of a step goes.
#
#   bash benchmarks/gpu.sh [OUT]              ViLT-B/32 at 480 px, bf16, on the accelerator
#   TINY=1 bash benchmarks/gpu.sh [OUT]       the same at a size for CPUs, to see that it runs to the end
#
# Needs jax, flax, optax, ml_collections, jaxtyping and etils; torch and transformers for the comparison. PYTHON is the
# interpreter. Each row of ours also has what `mail_jax.plan` says of the very program that was measured: its memory, and
# the least time that its traffic and its products take at the published peaks of the device. OUT (default: gpu_benchmark/) gets one JSON file a table and table.md with all of them.
set -u
PYTHON=${PYTHON:-python}
OUT=${1:-gpu_benchmark}
mkdir -p "$OUT"
if [ -n "${TINY:-}" ]; then
  model=(--config configs/demo.py --config.decode_every=1)
  train=(4); large=(8); predict=(1 4); backends=(xla); peers=(eager); turns=(--rounds 2 --repeats 2)
else
  model=(--config configs/refcoco.py:unc)
  train=(32); large=(64 128); predict=(1 32); backends=(xla cudnn); peers=(eager compiled)
  turns=(--rounds 5 --repeats 10)
fi
"$PYTHON" -c 'import torch, transformers' 2>/dev/null || { echo "no torch or no transformers: without a comparison"; peers=(); }
failed=0

# A table that fails or takes too long does not keep the others from being made.
measure() { # NAME SECONDS MODULE ARGUMENTS
  local name=$1 seconds=$2 module=$3
  shift 3
  echo "## $name" | tee -a "$OUT/table.md"
  if ! timeout "$seconds" "$PYTHON" -m "benchmarks.$module" "${model[@]}" "${turns[@]}" --json "$OUT/$name.json" "$@" \
    > "$OUT/$name.txt" 2> "$OUT/$name.log"; then
    failed=1
    tail -n 3 "$OUT/$name.log" | tee "$OUT/$name.txt"
  fi
  { cat "$OUT/$name.txt"; echo; } | tee -a "$OUT/table.md"
}

: > "$OUT/table.md"
measure training 180 train_step --batch_size "${train[@]}" --peers "${peers[@]}"
for backend in "${backends[@]}"; do
  measure "training_$backend" 75 train_step --batch_size "${large[@]}" --peers --config.model.backend="$backend"
done
measure prediction 120 predict --batch_size "${predict[@]}" --peers "${peers[@]}"
measure kernels 60 kernels --batch_size "${train[0]}"
exit $failed
