#!/usr/bin/env bash
# One fold of real photos from start to end: folds, training, out-of-fold prediction,
# score, submission. Prints the mean Dice at the photos' own size last.
#
#   CARVANA_DIR=/path/to/carvana ENCODER_WEIGHTS=/path/to/weights bash benchmarks/real_photos.sh [work folder]
#
# CARVANA_DIR holds train/ and train_masks/; ENCODER_WEIGHTS is the Keras 3 file of an
# ImageNet MobileNet without top, or the folder that holds it.
set -euo pipefail
: "${CARVANA_DIR:?set it to a folder with train/ and train_masks/}"
: "${ENCODER_WEIGHTS:?set it to the MobileNet encoder weights}"
CARVANA_DIR=$(realpath "$CARVANA_DIR")
ENCODER_WEIGHTS=$(realpath "$ENCODER_WEIGHTS")
work=$(realpath -m "${1:-runs/real_photos}")
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
encoder=$ENCODER_WEIGHTS
[ -d "$encoder" ] && encoder=$encoder/mobilenet_1_0_imagenet_notop.weights.h5
dataset=(--dataset_dir="$CARVANA_DIR" --folds_source="$work/folds.csv")
mkdir -p "$work"

"$python" make_folds.py "${dataset[@]}" --n_folds=3
"$python" train.py "${dataset[@]}" --models_dir="$work/models" --fold=0 \
  --network=mobilenet --weights="$encoder" --freeze_encoder_bn \
  --freeze_till_layer=decoder_stage1_up --bn_momentum=0.9 \
  --size_policy=resize --input_width=480 --input_height=320 \
  --learning_rate=0.004 --lr_schedule=cosine --warmup_steps=20 \
  --batch_size=4 --epochs="${EPOCHS:-8}" --validate_every=4
"$python" predict_multithreaded.py "${dataset[@]}" --fold=0 --predict_on_val \
  --weights="$work/models/mobilenet-fold_0/last.keras" --pred_mask_dir="$work/predicted_masks/fold_0"
"$python" generate_encoded_submission.py --pred_mask_dir="$work/predicted_masks/fold_0" \
  --pred_sample_csv= --submissions_dir="$work/submissions" --pred_threads=2
"$python" evaluate.py "${dataset[@]}" --fold=0 --pred_mask_dir="$work/predicted_masks/fold_0"
