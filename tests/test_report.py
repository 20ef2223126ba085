"""The report is one valid page that needs nothing else."""

from html.parser import HTMLParser

import numpy as np
import pytest

from carvana_tf.evaluation import report, scores
from carvana_tf.evaluation.counts import Counts, histograms
from carvana_tf.masks.manifest import ENCODING, Manifest

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


def make_page(groups=("a", "a", "b<i>"), folds=(0, 0, 1), **changes):
    random = np.random.default_rng(0)
    parts, gallery = [], []
    for i in range(len(groups)):
        grey = random.integers(0, 256, (12, 18)).astype(np.uint8)
        truth = random.random((12, 18)) < 0.5
        parts.append(histograms(grey, truth))
        photo = random.integers(0, 256, (12, 18, 3)).astype(np.uint8)
        gallery.append(report.exhibit(f"p{i}<script>", "worst", 0.5, photo, truth, grey > 127))
    counts = Counts(np.stack([b for b, _ in parts]), np.stack([f for _, f in parts]))
    photos = scores.per_photo([f"p{i}" for i in range(len(groups))], groups, folds, counts)
    curve = scores.threshold_curve(counts)
    summary = scores.summarise(photos, curve, 127) | {
        "predictions": "masks & more",
        "truth": "truth",
        "predictions_without_truth": ["x"],
        "truth_without_prediction": [],
        "version": "1.2.3",
    }
    manifest = Manifest(
        ({"file": "<b>net</b>.keras", "digest": "ab" * 32, "network": "unet", "fold": 0},),
        False, "hflip", "keras", "float32", len(groups), "", ENCODING, "1.2.3",
    )  # fmt: skip
    values = {
        "title": "Evaluation <of> masks",
        "summary": summary,
        "photos": photos,
        "groups": scores.per_group(photos),
        "folds": scores.per_fold(photos),
        "curve": curve,
        "manifest": manifest,
        "gallery": gallery,
        "timings": {"predict": {"network": 12.5}, "device": "<cpu>"},
    }
    text = report.render(**{**values, **changes})
    return text, Page(text), summary


def test_page_is_balanced_and_self_contained():
    text, page, _ = make_page()
    assert page.open == []
    assert text.startswith("<!DOCTYPE html>")
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert "url(" not in text
    assert len(page.links) == 2 + 3 * 3
    assert all(link.startswith("data:image/") for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_text_is_escaped():
    text, page, _ = make_page()
    for raw in ("<b>net</b>", "p0<script>", "b<i>", "<cpu>", "<of>"):
        assert raw not in text
        assert raw in page.text


def test_page_shows_scores_provenance_and_timings():
    _, page, summary = make_page()
    assert f"{summary['mean_dice']:.5f}" in page.text
    assert f"{summary['interval'][0]:.5f} .. {summary['interval'][1]:.5f}" in page.text
    assert "not out of fold" in page.text and "abababababab" in page.text
    assert "predict · network" in page.text and "12.5" in page.text
    assert "1 predictions have no truth" in page.text


@pytest.mark.parametrize("count", [1, 2])
def test_page_without_manifest_folds_gallery_and_timings(count):
    changes = {"manifest": None, "gallery": (), "timings": None}
    _, page, _ = make_page(("a",) * count, (None,) * count, **changes)
    assert "No manifest.json" in page.text and "no interval: one group" in page.text
    assert "Folds" not in page.text and "Gallery" not in page.text
    assert len(page.links) == 2


def test_equal_scores_still_draw():
    truth = np.ones((4, 4), bool)
    counts = Counts(*(h[None] for h in histograms(np.full((4, 4), 255, np.uint8), truth)))
    photos = scores.per_photo(["p"], ["p"], [None], counts)
    assert photos["dice"].tolist() == [1.0]
    _, page, _ = make_page(photos=photos, curve=scores.threshold_curve(counts))
    assert len(page.links) == 2 + 3 * 3
