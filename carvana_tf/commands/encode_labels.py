"""Writes predicted labels as a submission.

python generate_encoded_submission.py --task=labels --pred_mask_dir=predicted \\
    --pred_sample_csv=input/stage1_sample_submission.csv
"""

import dataclasses
import sys
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.commands.encode import dated_path
from carvana_tf.data import labels as label_tables
from carvana_tf.errors import Problems
from carvana_tf.failures import first_few
from carvana_tf.flags import Values, option
from carvana_tf.tasks.labels.options import AnswerOptions
from carvana_tf.tasks.labels.table import open_scores
from carvana_tf.tasks.options import TaskOptions


@dataclasses.dataclass(frozen=True)
class LabelSubmissionOptions:
    """The labels, and the submission that is made of them."""

    pred_mask_dir: str | None = option(None, "Folder of the table of scores.")
    pred_sample_csv: str | None = option(
        None, "Sample submission that gives the photos, their order and the column names."
    )
    submissions_dir: str = option("submissions", "Folder the submission is written to.")
    submission_name: str | None = option(
        None,
        "Name of its file, compressed if it ends in .gz, replaced if it exists; by default "
        "'submission-<time>.csv.gz'.",
    )


def validate(values: Values, problems: Problems) -> None:
    """Adds every file and folder that does not exist."""
    options = values[LabelSubmissionOptions]
    if options.pred_mask_dir is None:
        problems.add("--pred_mask_dir is missing; name the folder of the table of scores.")
    else:
        problems.attempt(open_scores, Path(options.pred_mask_dir))
    if options.pred_sample_csv is None:
        problems.add("--pred_sample_csv is missing; it names the photos of the submission.")
    else:
        problems.add(
            f"--pred_sample_csv: the file '{options.pred_sample_csv}' does not exist; correct its "
            "name.",
            not Path(options.pred_sample_csv).is_file(),
        )


def run(values: Values) -> None:
    """Writes a submission, which is read again and compared."""
    options, rule = values[LabelSubmissionOptions], values[AnswerOptions].rule
    folder = Path(options.submissions_dir)
    path = folder / options.submission_name if options.submission_name else dated_path(folder)
    rows = open_scores(Path(options.pred_mask_dir or "")).rows()
    answers = {photo.photo: rule.answer(photo.labels, photo.scores) for photo in rows}
    sample = Path(options.pred_sample_csv or "")
    missing = label_tables.write_submission(path, sample, answers)
    if missing:
        print(
            f"warning: {len(missing)} photos of '{sample}' were not predicted and have no label: "
            f"{first_few(missing)}",
            file=sys.stderr,
        )
    print(f"{len(label_tables.read_sample(sample)[1])} rows, each read again -> {path}")


COMMAND = Command(__doc__, (TaskOptions, LabelSubmissionOptions, AnswerOptions), run, validate)
