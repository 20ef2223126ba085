"""The report is one valid page that needs nothing else."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvana_tf.evaluation import compare, crossfit, gallery, report, scores
from carvana_tf.evaluation.counts import Counts, histograms
from carvana_tf.masks.manifest import ENCODING, Manifest
from carvana_tf.masks.open_folder import MaskFolder

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags, links and text, and checks that what opens also closes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_page(groups=("a", "a", "b<i>"), folds=(0, 0, 1), fits=True, other=True, **changes):
    random = np.random.default_rng(0)
    parts, exhibits, different = [], [], []
    for i in range(len(groups)):
        grey = random.integers(0, 256, (12, 18)).astype(np.uint8)
        truth = random.random((12, 18)) < 0.5
        parts.append(histograms(grey, truth))
        photo = random.integers(0, 256, (12, 18, 3)).astype(np.uint8)
        exhibits.append(gallery.exhibit(f"p{i}<script>", photo, truth, grey > 127))
        different.append(gallery.comparison(f"q{i}", photo, truth, grey > 127, grey > 90))
    counts = Counts(np.stack([b for b, _ in parts]), np.stack([f for _, f in parts]))
    photos = scores.per_photo(
        [f"p{i}" for i in range(len(groups))],
        groups,
        folds,
        counts,
        views=["1", "2", "1"][: len(groups)],
        contours=random.random((len(groups), 4)),
    )
    curve = scores.threshold_curve(counts)
    differences = pd.DataFrame()
    summary = scores.summarise(photos, curve, 127) | {
        "predictions": "masks & more",
        "truth": "truth",
        "predictions_without_truth": ["x"],
        "truth_without_prediction": [],
        "boundary_tolerance": 2.0,
        "crossfit": [],
        "crossfit_note": "there is but one fold",
        "comparison": None,
        "postprocess": [],
        "out_of_fold": False,
        "version": "1.2.3",
    }
    if fits:
        candidates = crossfit.of_thresholds(counts.dice)
        summary |= {"crossfit": crossfit.run([candidates], photos)[1], "crossfit_note": None}
    if other:
        rival = photos.assign(dice=photos["dice"] / 2)
        differences = compare.per_photo(photos, rival)
        leaky = Manifest((), False, "", "", "", 0, "", ENCODING, "1")
        there = MaskFolder(Path("<other>"), {}, leaky)
        summary["comparison"] = compare.summarise(differences, len(photos), there)
    manifest = Manifest(
        ({"file": "<b>net</b>.keras", "digest": "ab" * 32, "network": "unet", "fold": 0},),
        False, "hflip", "keras", "float32", len(groups), "", ENCODING, "1.2.3",
    )  # fmt: skip
    values = {
        "title": "Evaluation <of> masks",
        "summary": summary,
        "tables": {
            "per_photo": photos,
            "per_group": scores.per_group(photos),
            "per_view": scores.per_view(photos),
            "per_fold": scores.per_fold(photos),
            "threshold_curve": curve,
            "comparison": differences,
        },
        "manifest": manifest,
        "gallery": exhibits,
        "difference_gallery": different if other else (),
        "timings": {
            "predict": {"network": 12.5},
            "device": "<cpu>",
            "devices": ["gpu:0", "gpu:1"],
            "stages": [{"pool": "readers", "seconds": 1.5}, {"pool": "writers", "seconds": 2.5}],
        },
    }
    text = report.render(**{**values, **changes})
    return text, Page(text), summary


def test_page_is_balanced_and_self_contained():
    text, page, _ = make_page()
    assert page.open == []
    assert text.startswith("<!DOCTYPE html>")
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert "url(" not in text
    assert len(page.links) == 2 + 3 * 3 + 3 * 3
    assert all(link.startswith("data:image/") for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_text_is_escaped():
    text, page, _ = make_page()
    for raw in ("<b>net</b>", "p0<script>", "b<i>", "<cpu>", "<of>", "<other>"):
        assert raw not in text
        assert raw in page.text


def test_page_shows_scores_provenance_and_timings():
    _, page, summary = make_page()
    assert f"{summary['mean_dice']:.5f}" in page.text
    assert f"{summary['interval'][0]:.5f} .. {summary['interval'][1]:.5f}" in page.text
    assert "not out of fold" in page.text and "abababababab" in page.text
    assert "predict · network" in page.text and "12.5" in page.text
    # No list stands in a cell as Python writes it: such a cell is as wide as the list is long.
    assert "gpu:0, gpu:1" in page.text and "writers" in page.text
    assert "[{" not in page.text and "['" not in page.text
    assert "1 predictions have no ground truth" in page.text


def test_page_shows_cross_fitted_figures_beside_the_naive_one():
    _, page, summary = make_page()
    (fit,) = summary["crossfit"]
    for value in (fit["mean_dice"], fit["naive_mean_dice"], fit["used_mean_dice"]):
        assert f"{value:.5f}" in page.text
    assert f"{fit['gain']:+.5f}" in page.text
    _, page, _ = make_page(fits=False)
    assert "No cross-fitted threshold: there is but one fold." in page.text
    assert "chosen on the other folds" not in page.text.lower()


def test_page_shows_the_comparison_and_its_photos():
    _, page, summary = make_page()
    for row in summary["comparison"]["measures"]:
        assert f"{row['difference']:+.5f}" in page.text
    assert "Against <other>" in page.text and "not out of fold, so they may" in page.text
    assert "boundary F-score" in page.text and "q2" in page.text


@pytest.mark.parametrize("count", [1, 2])
def test_page_without_manifest_folds_gallery_and_timings(count):
    changes = {"manifest": None, "gallery": (), "timings": None, "fits": False, "other": False}
    _, page, _ = make_page(("a",) * count, (None,) * count, **changes)
    assert "No manifest.json" in page.text and "no interval: one group" in page.text
    assert "Folds" not in page.text and "Gallery" not in page.text
    assert "Views" not in page.text and "Against" not in page.text
    assert len(page.links) == 2


def test_equal_scores_still_draw():
    truth = np.ones((4, 4), bool)
    counts = Counts(*(h[None] for h in histograms(np.full((4, 4), 255, np.uint8), truth)))
    photos = scores.per_photo(["p"], ["p"], [None], counts, contours=np.ones((1, 4)))
    assert photos["dice"].tolist() == [1.0]
    tables = {
        "per_photo": photos,
        "per_group": scores.per_group(photos),
        "per_view": scores.per_view(photos),
        "per_fold": scores.per_fold(photos),
        "threshold_curve": scores.threshold_curve(counts),
        "comparison": pd.DataFrame(),
    }
    _, page, _ = make_page(tables=tables)
    assert len(page.links) == 2 + 3 * 3 + 3 * 3
