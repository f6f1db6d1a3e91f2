#!/bin/bash
# LLaVA-1.5's second stage with LoRA: instruct.sh with LLaVA's LoRA settings. The frozen weights are in bf16: 14 GB for
# 7B, which ZeRO-3 divides among the GPUs. For QLoRA add --bits 4 --deepspeed train/configs/deepspeed/zero2.json.
set -euo pipefail

exec "$(dirname "$0")/instruct.sh" \
    --lora_enable True \
    --lora_r 128 \
    --lora_alpha 256 \
    --mm_projector_lr 2e-5 \
    --learning_rate 2e-4 \
    "$@"
