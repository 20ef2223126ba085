"""Names of the files that one command writes and another one reads; imports nothing."""

FOLDS = "folds.csv"
DATASET = "dataset.yaml"
SAMPLE_SUBMISSION = "sample_submission.csv"

# In the folder of a training run.
BEST, LAST = "best.keras", "last.keras"
LOG = "log.csv"
CURVES = "curves.png"

# In a folder of masks, or instead of its masks.
MANIFEST = "manifest.json"
TIMINGS = "timings.json"
SUBMISSION = "submission.csv.gz"

# In the folder of an evaluation, or of a recipe's products.
SUMMARY = "summary.json"
REPORT = "report.html"
