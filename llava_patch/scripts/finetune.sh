#!/bin/bash
# LLaVA-1.5's second stage (full tuning, 665K conversations) with the projector of pretrain.sh. Run it in the directory
# that contains LLaVA's playground/data and scripts/. With transformers 4, set WARMUP="--warmup_ratio 0.03".
set -euo pipefail

exec "$(dirname "$0")/train.sh" \
    --deepspeed "${DEEPSPEED:-./scripts/zero3.json}" \
    --version v1 \
    --data_path ./playground/data/llava_v1_5_mix665k.json \
    --image_folder ./playground/data \
    --pretrain_mm_mlp_adapter "${PROJECTOR:-./checkpoints/llava-v1.5-7b-sparseformer-pretrain/mm_projector.bin}" \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --output_dir "${OUT:-./checkpoints/llava-v1.5-7b-sparseformer}" \
    --per_device_train_batch_size 16 \
    --save_steps 50000 \
    --learning_rate 2e-5 \
    "$@"
