#!/usr/bin/env bash
# Three folds of two networks on real photos through train_and_predict.py: out-of-fold Dice of
# each and of their ensemble, with intervals, and what fitting threshold and weights is worth.
#
#   CARVANA_DIR=/path/to/carvana ENCODER_WEIGHTS=/path/to/weights bash benchmarks/out_of_fold.sh [work folder]
set -euo pipefail
: "${CARVANA_DIR:?set it to a folder with train/ and train_masks/}"
: "${ENCODER_WEIGHTS:?set it to the folder of the MobileNet encoder weights}"
CARVANA_DIR=$(realpath "$CARVANA_DIR")
encoder=$(realpath "$ENCODER_WEIGHTS")/mobilenet_1_0_imagenet_notop.weights.h5
work=$(realpath -m "${1:-runs/out_of_fold}")
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
mkdir -p "$work"
sed "s|ENCODER|$encoder|" benchmarks/out_of_fold.yaml > "$work/out_of_fold.yaml"
"$python" train_and_predict.py --recipe="$work/out_of_fold.yaml" --dataset_dir="$CARVANA_DIR" \
  --out_dir="$work/products"
cp "$work/products/members.csv" benchmarks/out_of_fold.csv
