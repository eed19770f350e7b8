#!/usr/bin/env bash
# Stage 2: mixed pretraining of the whole model, sharded by ZeRO-3.
# usage: scripts/train_stage2.sh [--key value ...]   (variables: see scripts/train_stage.sh)
ZERO=${ZERO-3} exec "$(dirname "$0")/train_stage.sh" "${RECIPE:-stage2_pretrain}" "$@"
