#!/bin/bash
# A DINOv2-S/14 student on photographs, on one GPU: bootstrapped at 112 pixels, continued at 224, and measured beside its
# teacher on photographs that no setting was chosen on.
#   WEIGHTS=model.safetensors PHOTOS=imagenette OUT=runs/photographs train/scripts/photographs.sh
# WEIGHTS: timm's vit_small_patch14_dinov2. PHOTOS: train-00.tar to train-05.tar, val-00.tar (to watch the training) and
# val-01.tar (for the result), with CLASS/NAME.jpg. LAYER=-1 for weights whose last block is intact. BATCH, STEPS and
# STEPS224 are for a batch of 128 on a GPU; on a CPU add --use_cpu True, which takes hours. Further options of
# train.bootstrap may follow. Run it again to resume. What to expect: docs/results/photographs.md.
set -euo pipefail

clone="$(cd "$(dirname "$0")/../.." && pwd)"
export PYTHONPATH="$clone${PYTHONPATH:+:$PYTHONPATH}"
teacher="timm:vit_small_patch14_dinov2@$WEIGHTS"
layer="${LAYER:-10}"

bootstrap() { # DIRECTORY OPTIONS...
    local directory="$1"
    shift
    [ -f "$directory/config.json" ] || python -m train.bootstrap "$clone/train/configs/recipes/photographs/dinov2_s14.yaml" \
        --teacher "$teacher" \
        --teacher_layer "$layer" \
        --data_path "wds:$PHOTOS/train-{00..05}.tar" \
        --eval_data_path "wds:$PHOTOS/val-00.tar" \
        --per_device_train_batch_size "${BATCH:-128}" \
        --output_dir "$directory" \
        "$@"
}

bootstrap "$OUT/112" --image_size 112 --tokens 9-36 --default_tokens 16 --match_tokens True \
    --max_steps "${STEPS:-6000}" "$@"
bootstrap "$OUT/224" --image_size 224 --tokens 16-64 --default_tokens 16 --continue_from "$OUT/112" \
    --max_steps "${STEPS224:-6000}" --learning_rate 5e-4 "$@"
for measure in probe dense; do
    python -m "eval.encoders.$measure" \
        --teacher "$teacher" \
        --teacher_layer "$layer" \
        --image_size 224 \
        --encoder "$OUT/224" \
        --tokens 64 \
        --train_images "wds:$PHOTOS/train-{00..05}.tar" \
        --test_images "wds:$PHOTOS/val-01.tar" \
        --output "$OUT/$measure.json"
done
