#!/bin/bash
# LLaVA-1.5's first stage (the projector alone, 558K captions) with a SparseFormer. Run it where LLaVA's data and
# scripts/ lie; with transformers 4: WARMUP="--warmup_ratio 0.03".
set -euo pipefail

deepspeed --module llava_patch llava.train.train_mem \
    --deepspeed "${DEEPSPEED:-./scripts/zero2.json}" \
    --model_name_or_path "${LLM:-lmsys/vicuna-7b-v1.5}" \
    --version plain \
    --data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json \
    --image_folder ./playground/data/LLaVA-Pretrain/images \
    --vision_tower "${TOWER:-sparseformer-clip-l}" \
    --mm_projector_type mlp2x_gelu \
    --tune_mm_mlp_adapter True \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --bf16 True \
    --output_dir "${OUT:-./checkpoints/llava-v1.5-7b-sparseformer-pretrain}" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 32 \
    --gradient_accumulation_steps 1 \
    --save_strategy steps \
    --save_steps 24000 \
    --save_total_limit 1 \
    --learning_rate 1e-3 \
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
