"""The pages of an evaluation: what they hold, escaped, and nothing from elsewhere."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from report_pages import HOSTILE, NETWORK, write_pages
from sklearn.calibration import calibration_curve

from carvana_tf.evaluation import gallery
from carvana_tf.evaluation.counts import Counts, histograms
from carvana_tf.evaluation.learning import Curve
from carvana_tf.evaluation.reliability import BINS, calibration_error, reliability
from carvana_tf.evaluation.report import pages, plots, tables

PAGES = ("report.html", "comparison.html", "labels/report.html")
VOID = {"meta", "img", "br", "input", "path", "use", "rect", "line", "circle"}


class Page(HTMLParser):
    """Collects tags, links, ids and text, and checks that what opens also closes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.ids, self.text = [], [], [], [], ""
        self.heads = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "data", "action")]
        self.ids += [v for k, v in attributes if k == "id"]
        if tag == "th":
            self.heads.append(dict(attributes).get("scope"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [v for k, v in attributes if k == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("report"))


def read(folder, name="report.html"):
    text = (folder / name).read_text()
    found = json.loads(re.search(r'(?s)id="data">(.*?)</script>', text)[1])
    return text, Page(text), found


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_balanced_and_need_nothing_from_elsewhere(whole, name):
    text, page, _ = read(whole, name)
    assert page.open == []
    assert text.startswith("<!DOCTYPE html>")
    assert "@import" not in text and "url(http" not in text
    own = {"report.html", "comparison.html"}
    assert all(link in own or link[0] == "#" for link in page.links)
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("caption") == page.tags.count("table") > 1
    assert set(page.heads) == {"col", "row"}


@pytest.mark.parametrize("name", PAGES)
def test_only_the_script_of_the_page_may_run(whole, name):
    text, _, found = read(whole, name)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    scripts = re.findall(r"(?s)<script>(.*?)</script>", text)
    assert len(scripts) == 1 and text.count("<script") == 2
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert HOSTILE not in text
    assert HOSTILE in found["tables"]["photos"]["values"]["group"]


def test_names_are_escaped_and_shown(whole):
    text, page, _ = read(whole)
    for raw in (NETWORK, "run <0>"):
        assert raw not in text
        assert raw in page.text


def test_first_rows_are_in_the_page_and_all_in_its_data(whole):
    _, page, found = read(whole)
    table = found["tables"]["photos"]
    frame = pd.read_csv(whole / "per_photo.csv", dtype={"view": str})
    assert table["values"]["id"] == frame["id"].tolist()
    assert table["values"]["dice"] == pytest.approx(frame["dice"].round(5).tolist())
    assert f"{frame['dice'][0]:.5f}" in page.text
    assert "the first 25 of 30 rows" in page.text
    for heading in ("Folds", "Groups", "Views", "Learning curves", "Provenance"):
        assert heading in page.text
    for caption in ("Dice of every photo", "Reliability", "validation Dice of each run"):
        assert caption in page.text
    assert "not out of fold" in page.text and "abababababab" in page.text
    assert "1 predictions have no ground truth" in page.text


def test_comparison_shows_paired_differences_and_both_errors(whole):
    _, page, found = read(whole, "comparison.html")
    summary = json.loads((whole / "summary.json").read_text())
    for row in summary["comparison"]["measures"]:
        assert f"{row['difference']:+.5f}" in page.text
    values = found["tables"]["photos"]["values"]
    here, there = (np.array(values[key]) for key in ("dice", "dice_other"))
    assert values["dice_difference"] == pytest.approx(here - there, abs=2e-5)
    assert (whole / "comparison_files/00000-other_errors.png").is_file()
    assert "not out of fold, so they may" in page.text


def test_labels_are_shown_by_photo_and_by_label(whole):
    text, page, found = read(whole, "labels/report.html")
    tables = found["tables"]
    assert tables["photos"]["values"]["f2"][-1] == 1.0
    assert tables["photos"]["values"]["labels"][:2] == ["dog", f"{NETWORK} cat"]
    assert tables["classes"]["values"]["precision"] == [0.5, None]
    assert tables["classes"]["values"]["recall"] == [1.0, 0.0]
    assert NETWORK not in text and NETWORK in page.text
    # The threshold in use is between two of the curve.
    assert "0.25: 0.40000, used" in page.text
    assert len(found["gallery"]["rows"]) == 30 and found["gallery"]["layers"] == []
    assert (whole / "labels/report_files/00029-thumb.jpg").is_file()
    assert "not known to be out of fold" in page.text


def test_without_folds_views_pictures_and_rival(tmp_path):
    out = write_pages(tmp_path, 4, folds=False, other=False, gallery=0)
    _, page, found = read(out)
    assert found["gallery"] is None and "There are no pictures" in page.text
    assert not {"fold", "view"} & found["tables"]["photos"]["values"].keys()
    assert "per_fold" not in found["tables"] and "per_view" not in found["tables"]
    assert sorted(p.suffix for p in out.iterdir() if p.suffix != ".csv") == [
        ".html",
        ".jpg",
        ".json",
    ]


def test_gallery_takes_worst_best_and_random_ones_that_have_photos():
    scores = pd.Series(np.random.default_rng(1).permutation(100) / 100)
    available = [row % 10 != 0 for row in range(100)]
    rows = gallery.choose(scores, available, 10)
    ranked = [row for row in np.argsort(scores.to_numpy()) if available[row]]
    assert len(set(rows)) == 10 and rows == sorted(rows)
    assert {*ranked[:4], *ranked[-3:]} <= {*rows}
    assert rows == gallery.choose(scores, available, 10)
    assert gallery.choose(scores, available, 1) == [ranked[0]]
    assert gallery.choose(scores, available, 500) == sorted(ranked)
    assert gallery.choose(scores, available, 0) == []


def test_clearing_removes_pictures_and_nothing_else(tmp_path):
    folder = tmp_path / "report_files"
    folder.mkdir()
    for name in ("00001-photo.jpg", "123456-errors.png", "mine.jpg", "1-photo.jpg"):
        (folder / name).write_text("")
    gallery.clear(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1-photo.jpg", "mine.jpg"]


def test_reliability_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (3, 30, 40)).astype(np.uint8)
    truth = random.random(grey.shape) < grey / 255
    parts = [histograms(g, t) for g, t in zip(grey, truth, strict=True)]
    counts = Counts(np.stack([b for b, _ in parts]), np.stack([f for _, f in parts]))
    table = reliability(counts)
    observed, predicted = calibration_curve(truth.ravel(), grey.ravel() / 255, n_bins=BINS)
    assert table["observed"].to_numpy() == pytest.approx(observed)
    assert table["probability"].to_numpy() == pytest.approx(predicted)
    assert table["pixels"].sum() == grey.size
    of_bin = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], grey.ravel() / 255)
    far = [abs(observed[b] - predicted[b]) for b in of_bin]
    assert calibration_error(table) == pytest.approx(np.mean(far))
    binary = Counts(*(np.where(np.isin(np.arange(256), (0, 255)), h, 0) for h in
                      (counts.background, counts.foreground)))  # fmt: skip
    assert reliability(binary).empty and calibration_error(reliability(binary)) is None


@pytest.mark.filterwarnings("error")
def test_plots_follow_the_theme_and_are_the_same_each_time():
    values = pd.Series([0.9, 0.95, 1.0, 1.0])
    caption, svg = plots.histogram(values, "a <b>", "Dice")
    assert caption == "a <b>" and 'aria-label="a &lt;b&gt;"' in svg
    assert "currentColor" in svg and "var(--plot0)" in svg and "#00000" not in svg
    assert plots.histogram(values, "a <b>", "Dice")[1] == svg
    assert plots.histogram(pd.Series([0.0, 0.0]), "equal", "difference", gained=True)[1]
    rows = [
        {"name": "$x_", "dice": 0.9, "low": None},
        {"name": "b", "dice": 0.8, "low": 0.7, "high": 0.9},
    ]
    assert "$x_" in plots.intervals(rows)[1]
    for label in ("$_$ and $x", "车"):  # letters that Matplotlib's font lacks: no warning
        runs = [Curve(label, [{"epoch": 1, "val_dice": 0.5}])]
        assert label in plots.learning(runs)[0][1]


def test_the_axis_of_gains_ends_with_the_gains():
    gains = pd.Series(np.linspace(0.001, 0.01, 50))
    for gained in (True, False):
        _, svg = plots.histogram(gains, "gains", "difference", gained=gained)
        assert (">0.004<" in svg, ">0.4<" in svg) == (gained, not gained)


def test_values_are_written_alike_by_kind():
    frame = pd.DataFrame({"id": ["a\n"], "dice": [1 / 3], "n": [5], "none": [None]})
    columns = (("id", "photo", "text"), ("dice", "Dice", "score"), ("n", "n", "count"),
               ("none", "none", "score"), ("absent", "absent", "score"))  # fmt: skip
    table = tables.of_frame("t", "c", frame, columns)
    assert [key for key, _, _ in table.columns] == ["id", "dice", "n"]
    assert table.first == [["a\\n", 0.33333, 5]]
    assert [tables.text(v, k) for v, k in ((None, "score"), (0.5, "gain"), (0.1, "score"))] == [
        "–", "+0.50000", "0.10000",  # noqa: RUF001
    ]  # fmt: skip


def test_an_unknown_value_of_a_template_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        pages.render("report.html", title="t")
