#!/bin/bash
# LLaVA-1.5's second stage with its settings: train the projector and the language model on 665k conversations for one
# epoch, 128 per step.
#   MODEL=aligned DATA=llava_v1_5_mix665k.json IMAGES=images OUT=tuned GPUS=8 train/scripts/instruct.sh
# GPUS: 1, 2, 4 or 8. Further options of train.instruct may follow. Weights, gradients and AdamW's two moments take
# 16 bytes per parameter, so 112 GB for 7B, which ZeRO-3 divides among the GPUs; with less memory add
# --deepspeed train/configs/deepspeed/zero3_offload.json.
# LLaVA's data has conversations of more than 2048 tokens, which LLaVA's code truncates. Here they are left out, counted,
# and listed in OUT/skipped_samples.txt. To find them, the processes share the data and read it once before the first
# step; later runs find the result beside $DATA. With --check_samples while_reading, no image is read before.
# Hours and memory: docs/training.md.
set -euo pipefail

clone="$(cd "$(dirname "$0")/../.." && pwd)"
export PYTHONPATH="$clone${PYTHONPATH:+:$PYTHONPATH}"
exec deepspeed --num_gpus "${GPUS:-8}" --module train.instruct \
    --deepspeed "$clone/train/configs/deepspeed/zero3.json" \
    --num_processes "${GPUS:-8}" \
    --model_name_or_path "$MODEL" \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --output_dir "$OUT" \
    --bf16 True \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps "$((8 / ${GPUS:-8}))" \
    --learning_rate 2e-5 \
    --weight_decay 0 \
    --warmup_ratio 0.03 \
    --model_max_length 2048 \
    --on_bad_sample skip \
    --train_sampling_strategy group_by_length \
    --activation_checkpointing True \
    --dataloader_num_workers 4 \
    --save_steps 500 \
    "$@"
