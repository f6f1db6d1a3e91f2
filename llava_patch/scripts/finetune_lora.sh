#!/bin/bash
# LLaVA-1.5's second stage with LoRA: finetune.sh with the hyperparameters of LLaVA's own LoRA script.
set -euo pipefail

export OUT="${OUT:-./checkpoints/llava-v1.5-7b-sparseformer-lora}"
exec "$(dirname "$0")/finetune.sh" \
    --lora_enable True \
    --lora_r 128 \
    --lora_alpha 256 \
    --mm_projector_lr 2e-5 \
    --learning_rate 2e-4 \
    "$@"
