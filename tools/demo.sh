#!/usr/bin/env bash
# `make demo`: the main job from nothing to a report, on a dataset it renders itself.
# Everything lands in demo/; a second call does only what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
demo=demo
input=$demo/input
run=$demo/models/simple_unet-fold_0

say() { printf '\n== %s\n' "$*"; }

say "rendering cars in a studio"
python tools/make_demo_dataset.py --dataset_dir=$input --processes="$(nproc)"
say "assigning the cars to folds"
python make_folds.py --dataset_dir=$input --n_folds=4
say "looking for mistakes in the dataset"
python tools/check_data.py --dataset_dir=$input
say "training on three folds"
python train.py --dataset_dir=$input --models_dir=$demo/models --network=simple_unet \
  --fold=0 --size_policy=resize --input_width=240 --input_height=160 --batch_size=4 \
  --learning_rate=0.004 --lr_schedule=cosine --warmup_steps=20 \
  --epochs=7 --validate_every=7
say "predicting the fold it has not seen"
python predict_multithreaded.py --dataset_dir=$input --weights=$run/last.keras --fold=0 \
  --predict_on_val --pred_mask_dir=$demo/predicted_masks/fold_0
say "predicting the test cars, and encoding the submission"
python predict_multithreaded.py --dataset_dir=$input --weights=$run/last.keras \
  --test_data_dir=$input/test --pred_mask_dir=$demo/predicted_masks/test
python generate_encoded_submission.py --pred_mask_dir=$demo/predicted_masks/test \
  --pred_sample_csv=$input/sample_submission.csv --submissions_dir=$demo/submissions --pred_threads=2
say "scoring the fold it has not seen"
python evaluate.py --dataset_dir=$input --fold=0 --pred_mask_dir=$demo/predicted_masks/fold_0

say "done"
python - $demo <<'PYTHON'
import json
import sys
from pathlib import Path

demo = Path(sys.argv[1])
scores = demo / "predicted_masks" / "fold_0" / "evaluation"
summary = json.loads((scores / "summary.json").read_text())
print(f"submission       {max((demo / 'submissions').glob('submission-*.csv.gz'))}")
print(f"picture          {scores / 'comparison.jpg'}")
print(f"report           {scores / 'report.html'}")
print(f"validation Dice  {summary['mean_dice']:.5f}")
PYTHON
