#!/usr/bin/env bash
# Stage 1: align the projector. Frozen weights need no optimizer, so plain data parallel does, or ZERO=3 on small GPUs.
# usage: scripts/train_stage1.sh [--key value ...]   (variables: see scripts/train_stage.sh)
exec "$(dirname "$0")/train_stage.sh" "${RECIPE:-stage1_projector}" "$@"
