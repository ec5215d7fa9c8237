#!/bin/bash
# Creates a v5e slice of 16 chips (4 hosts) and installs this checkout on all of them. Adapt these names.
# The runtime version depends on the generation: v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e.
PROJECT=my-project ZONE=us-west4-a NAME=mail-jax
set -e
gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --project="$PROJECT" --zone="$ZONE" \
  --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot
until [ "$(gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
  --format='value(state.state)')" = ACTIVE ]; do sleep 30; done

git archive --format=tar.gz --output=mail_jax.tar.gz HEAD
gcloud compute tpus tpu-vm scp mail_jax.tar.gz vilt_b32.safetensors "$NAME:" --project="$PROJECT" --zone="$ZONE" \
  --worker=all
gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all --command='
  set -e
  mkdir -p mail_jax && tar -xzf mail_jax.tar.gz -C mail_jax && cd mail_jax
  curl -LsSf https://astral.sh/uv/install.sh | sh
  ~/.local/bin/uv venv --clear --python 3.12
  ~/.local/bin/uv pip install -r requirements.txt -r requirements-tpu.txt gcsfs'
