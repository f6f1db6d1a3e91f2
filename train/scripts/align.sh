#!/bin/bash
# LLaVA-1.5's first stage with its settings: train the projector on 558k captions for one epoch, 256 images per step.
#   sparse-vlm build ENCODER_DIR lmsys/vicuna-7b-v1.5 built --chat_template llava_v1     (Qwen2.5: its own template)
#   MODEL=built DATA=blip_laion_cc_sbu_558k.json IMAGES=images OUT=aligned GPUS=8 train/scripts/align.sh
# GPUS: 1, 2, 4 or 8. Further options of train.align may follow. Vicuna-7B's frozen weights take 14 GB on each GPU
# (bf16); with less memory add --deepspeed train/configs/deepspeed/zero3.json.
# Hours and memory: docs/training.md.
set -euo pipefail

clone="$(cd "$(dirname "$0")/../.." && pwd)"
export PYTHONPATH="$clone${PYTHONPATH:+:$PYTHONPATH}"
exec deepspeed --num_gpus "${GPUS:-8}" --module train.align \
    --deepspeed "$clone/train/configs/deepspeed/zero2.json" \
    --num_processes "${GPUS:-8}" \
    --model_name_or_path "$MODEL" \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --output_dir "$OUT" \
    --version plain \
    --bf16 True \
    --num_train_epochs 1 \
    --per_device_train_batch_size 32 \
    --gradient_accumulation_steps "$((8 / ${GPUS:-8}))" \
    --learning_rate 1e-3 \
    --weight_decay 0 \
    --warmup_ratio 0.03 \
    --model_max_length 2048 \
    --dataloader_num_workers 4 \
    --save_steps 500 \
    "$@"
