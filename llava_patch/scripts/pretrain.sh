#!/bin/bash
# LLaVA-1.5's first stage (projector only, 558K captions) with a SparseFormer. Run it in the directory that contains
# LLaVA's playground/data and scripts/. With transformers 4, set WARMUP="--warmup_ratio 0.03".
set -euo pipefail

exec "$(dirname "$0")/train.sh" \
    --deepspeed "${DEEPSPEED:-./scripts/zero2.json}" \
    --version plain \
    --data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json \
    --image_folder ./playground/data/LLaVA-Pretrain/images \
    --tune_mm_mlp_adapter True \
    --output_dir "${OUT:-./checkpoints/llava-v1.5-7b-sparseformer-pretrain}" \
    --per_device_train_batch_size 32 \
    --save_steps 24000 \
    --learning_rate 1e-3 \
    "$@"
