#!/bin/bash
# LLaVA-1.5's second stage (full tuning, 665K conversations) on what pretrain.sh made. Run it where LLaVA's data and
# scripts/ lie; with transformers 4: WARMUP="--warmup_ratio 0.03".
set -euo pipefail

deepspeed --module llava_patch llava.train.train_mem \
    --deepspeed "${DEEPSPEED:-./scripts/zero3.json}" \
    --model_name_or_path "${LLM:-lmsys/vicuna-7b-v1.5}" \
    --version v1 \
    --data_path ./playground/data/llava_v1_5_mix665k.json \
    --image_folder ./playground/data \
    --vision_tower "${TOWER:-sparseformer-clip-l}" \
    --pretrain_mm_mlp_adapter "${PROJECTOR:-./checkpoints/llava-v1.5-7b-sparseformer-pretrain/mm_projector.bin}" \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --bf16 True \
    --output_dir "${OUT:-./checkpoints/llava-v1.5-7b-sparseformer}" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 \
    --save_strategy steps \
    --save_steps 50000 \
    --save_total_limit 1 \
    --learning_rate 2e-5 \
    --weight_decay 0. \
    ${WARMUP:---warmup_steps 0.03} \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --tf32 True \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers 4 \
    --lazy_preprocess True \
    --report_to "${REPORT_TO:-tensorboard}" \
    "$@"
