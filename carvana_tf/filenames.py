"""Names of the files that one command writes and another one reads; imports nothing."""

FOLDS = "folds.csv"
PLAN = "plan.flags"
DATASET = "dataset.yaml"
SAMPLE_SUBMISSION = "sample_submission.csv"

# In the folder of a training run.
BEST, LAST = "best.keras", "last.keras"
LOG = "log.csv"
CURVES = "curves.png"
CONSOLE = "console.log"

# In a folder of masks, or instead of its masks.
MANIFEST = "manifest.json"
TIMINGS = "timings.json"
SUBMISSION = "submission.csv.gz"
PARTS = f"part-{'[0-9]' * 5}.parquet"
"""Pattern of the files of run lengths in Parquet."""

# In the folder of an evaluation, or of a recipe's products.
SUMMARY = "summary.json"
REPORT = "report.html"
COMPARISON = "comparison.html"

SCRIPTS = {
    "make_demo_dataset": "tools/make_demo_dataset.py",
    "import_masks": "tools/import_masks.py",
    "check_data": "tools/check_data.py",
    "prepare_dataset": "tools/prepare_dataset.py",
    "make_folds": "make_folds.py",
    "plan": "tools/plan.py",
    "show_augmentation": "tools/show_augmentation.py",
    "train": "train.py",
    "plot_curves": "tools/plot_curves.py",
    "inspect_model": "tools/inspect_model.py",
    "export_model": "tools/export_model.py",
    "predict": "predict_multithreaded.py",
    "evaluate": "evaluate.py",
    "ensemble": "ensemble.py",
    "suggest_photos": "tools/suggest_photos.py",
    "export_masks": "tools/export_masks.py",
    "cut_out": "tools/cut_out.py",
    "serve": "tools/serve.py",
    "find_bounding_boxes": "tools/find_bounding_boxes.py",
    "encode": "generate_encoded_submission.py",
    "decode_submission": "tools/decode_submission.py",
    "score_submission": "tools/score_submission.py",
    "pipeline": "train_and_predict.py",
}
"""The script of a checkout that runs each command, by the command's name, in order of use."""
