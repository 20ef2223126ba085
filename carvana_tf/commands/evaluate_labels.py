"""Scores a table of predicted labels against the labels that photos have, and writes a report.

python evaluate.py --task=labels --pred_mask_dir=predicted/fold0 --labels=train_labels.csv
"""

import dataclasses
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.data import labels as label_tables
from carvana_tf.data.folds import by_id, find_folds_file, read_folds
from carvana_tf.errors import Problems, UserError
from carvana_tf.evaluation.evaluation import Pages
from carvana_tf.evaluation.learning import read_runs
from carvana_tf.evaluation.options import PageOptions
from carvana_tf.failures import first_few, optional
from carvana_tf.filenames import REPORT
from carvana_tf.files import held
from carvana_tf.flags import Values, option
from carvana_tf.options import DatasetOptions
from carvana_tf.tasks import TASKS
from carvana_tf.tasks.labels import evaluator
from carvana_tf.tasks.labels.options import AnswerOptions
from carvana_tf.tasks.labels.table import open_scores
from carvana_tf.tasks.options import TaskOptions, grouped


@dataclasses.dataclass(frozen=True)
class LabelEvaluationOptions:
    """The labels to score."""

    pred_mask_dir: str | None = option(None, "Folder of the table of scores.")
    labels: str = option(
        "train_labels.csv",
        "Table of the labels that photos have, in --dataset_dir or anywhere.",
        key="labels",
    )
    seed: int = option(80, "Seed of the bootstrap intervals.", lower=0)
    out_dir: str | None = option(
        None, "Folder for the products; by default 'evaluation' inside --pred_mask_dir."
    )


def validate(values: Values, problems: Problems) -> None:
    """Adds folders and tables that do not exist."""
    options = values[LabelEvaluationOptions]
    if options.pred_mask_dir is None:
        problems.add("--pred_mask_dir is missing; name the folder of labels to score.")
    else:
        problems.attempt(open_scores, Path(options.pred_mask_dir))
    problems.attempt(_labels, values)
    problems.attempt(lambda: values[DatasetOptions].naming)
    problems.attempt(lambda: values[DatasetOptions].reading)
    problems.attempt(read_runs, values[PageOptions].runs)


def _labels(values: Values) -> Path:
    task, dataset = TASKS["labels"], values[DatasetOptions]
    return task.existing_targets(dataset, values[LabelEvaluationOptions].labels, "labels")


def run(values: Values) -> None:
    """Scores, and writes the products."""
    options = values[LabelEvaluationOptions]
    dataset = grouped(values[DatasetOptions], values, TASKS["labels"])
    pages = Pages.of(values[PageOptions], dataset)
    folder = open_scores(Path(options.pred_mask_dir or ""))
    truth = label_tables.read(_labels(values))
    found = evaluator.evaluate(
        folder, truth, values[AnswerOptions].rule, dataset.naming, _folds(dataset), options.seed
    )
    out_dir = Path(options.out_dir or folder.path / "evaluation")
    with held(out_dir):
        drawn = found.write(out_dir, pages, dataset.reading)
    if not drawn:
        print(f"no pictures: '{pages.photo_dir}' lacks photos of this table; see --photo_dir.")
    summary = found.summary
    for sentence in (
        *_not_scored(summary["predictions_without_truth"], "predictions have no ground truth"),
        *_not_scored(summary["truth_without_prediction"], "photos have no prediction"),
    ):
        print(sentence)
    if never := summary["labels_never_predicted"]:
        print(
            f"{len(never)} labels of these photos have no score for any photo: {first_few(never)}"
        )
    if folder.out_of_fold is False:
        print("these labels are NOT out of fold: a model may know the photos, and score too well.")
    print(
        f"best threshold {summary['best_threshold']:g}: mean F2 "
        f"{summary['best_threshold_mean_f2']:.5f} (fitted on the same photos, so optimistic)"
    )
    if summary["crossfit_mean_f2"] is not None:
        print(f"threshold of the other folds: mean F2 {summary['crossfit_mean_f2']:.5f}")
    frequent = summary["most_frequent"]
    print(
        f"always answering the most frequent labels ({' '.join(frequent['labels'])}): mean F2 "
        f"{frequent['mean_f2']:.5f}"
    )
    print(f"GAP {summary['gap']:.5f}, best F2 without bounds {summary['best_f2']:.5f}")
    interval = ""
    if summary["interval"]:
        interval = "95 % interval {:.5f}..{:.5f}, ".format(*summary["interval"])
    print(f"report -> {out_dir / REPORT}")
    print(
        f"mean F2 {summary['mean_f2']:.5f} ({interval}{summary['photos']} photos, threshold "
        f"{summary['threshold']:g})"
    )


def _folds(dataset: DatasetOptions) -> dict[str, int]:
    """The fold of each id; {} where there is no folds file, or none that can be read."""
    try:
        path = find_folds_file(dataset.folds_source, Path(dataset.dataset_dir))
    except UserError:
        return {}
    table = optional("folds", read_folds, path)
    return {} if table is None else by_id(table)


def _not_scored(found: list[str], what: str) -> list[str]:
    return [f"not scored: {len(found)} {what}, the first is '{found[0]}'"] if found else []


COMMAND = Command(
    __doc__,
    (TaskOptions, LabelEvaluationOptions, AnswerOptions, PageOptions, DatasetOptions),
    run,
    validate,
)
