#!/bin/bash
# Arguments that both stages of LLaVA-1.5 share. Run pretrain.sh or finetune.sh, which add the others.
set -euo pipefail

exec deepspeed --module llava_patch llava.train.train_mem \
    --model_name_or_path "${LLM:-lmsys/vicuna-7b-v1.5}" \
    --vision_tower "${TOWER:-sparseformer-clip-l}" \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --bf16 True \
    --num_train_epochs 1 \
    --gradient_accumulation_steps 1 \
    --save_strategy steps \
    --save_total_limit 1 \
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
