"""Ensembles: arithmetic, provenance, fitted weights, resuming."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import tracemalloc
import unicodedata
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from carvana_tf.data.images import read_grey, read_mask, write_probability
from carvana_tf.errors import UserError
from carvana_tf.evaluation import ensemble_weights
from carvana_tf.files import digest_of_lines
from carvana_tf.masks import combining, ensembling, manifest
from carvana_tf.masks.open_folder import open_folder

ROOT = Path(__file__).parents[1]
STACKS = st.integers(1, 7).flatmap(lambda count: arrays(np.uint8, (count, 5, 6)))


def half_up(value):
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


@settings(deadline=None)
@given(STACKS)
def test_mean_is_rounded_half_up(stack):
    sums = stack.astype(int).sum(0)
    expected = [[half_up(Fraction(int(s), len(stack))) for s in row] for row in sums]
    np.testing.assert_array_equal(combining.combine(list(stack), "mean"), expected)


@pytest.mark.parametrize("count", [2, 3, 16, 127, 128, 129, 200, 257, 300])
def test_mean_of_every_possible_sum(count):
    """All sums 0..255 count, laid out as pixels."""
    sums = np.arange(255 * count + 1)
    greys = [np.clip(sums - 255 * i, 0, 255).astype(np.uint8)[None] for i in range(count)]
    expected = (2 * sums + count) // (2 * count)
    np.testing.assert_array_equal(combining.combine(greys, "mean")[0], expected)


@settings(deadline=None)
@given(
    arrays(np.uint8, (3, 5, 6)),
    st.lists(st.integers(0, 8), min_size=3, max_size=3),
    st.integers(0, 254),
)
def test_weighted_mean_and_vote(stack, numbers, threshold):
    if sum(numbers) == 0:
        numbers = [1, 2, 1]
    # Sums to a power of two: then weights are exact, and so are halves.
    numbers = [*numbers[:2], 32 - sum(numbers[:2])]
    mean = combining.combine(list(stack), "mean", numbers)
    vote = combining.combine(list(stack), "vote", numbers, threshold)
    for at in np.ndindex(5, 6):
        values = [int(v) for v in stack[(slice(None), *at)]]
        exact = Fraction(sum(n * v for n, v in zip(numbers, values, strict=True)), 32)
        yes = sum(n for n, v in zip(numbers, values, strict=True) if v > threshold)
        assert mean[at] == half_up(exact)
        wanted = half_up(exact) > threshold if yes == 16 else yes > 16
        assert vote[at] == 255 * wanted


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 2), (3, 254), (0.123456, 0.4), (1, 3000)])
def test_weighted_mean_of_every_two_values_is_rounded_half_up(weights):
    greys = [grey.astype(np.uint8) for grey in np.indices((256, 256))]
    units = combining.units(weights, 2)
    assert np.allclose(np.array(units) / sum(units), np.array(weights) / sum(weights), atol=2**-15)
    exact = 2 * (units[0] * greys[0].astype(int) + units[1] * greys[1].astype(int))
    expected = (exact + sum(units)) // (2 * sum(units))
    np.testing.assert_array_equal(combining.combine(greys, "mean", weights), expected)


def test_weights_are_the_simplest_whole_numbers():
    assert combining.units((0.7, 0.3), 2) == [7, 3]
    assert combining.units((1 / 3 + 0.2, 1 / 3 - 0.2, 1 / 3), 3) == [8, 2, 5]
    assert combining.units((5, 5, 5), 3) == [1, 1, 1]
    assert sum(combining.units((0.1234567, 1, 2), 3)) == 1 << 15


@pytest.mark.parametrize("strategy", combining.STRATEGIES)
def test_few_and_many_differing_pixels_give_the_same(strategy):
    random = np.random.default_rng(0)
    stack = list(random.integers(0, 256, (12, 700, 400), np.uint8))
    weights = None if strategy == "median" else range(1, 13)
    dense = combining.combine(stack, strategy, weights)
    spread = [np.full((700 * 8, 400), 9, np.uint8) for _ in stack]
    for wide, grey in zip(spread, stack, strict=True):
        wide[::8] = grey
    sparse = combining.combine(spread, strategy, weights)
    np.testing.assert_array_equal(sparse[::8], dense)
    assert (sparse[1::8] == (0 if strategy == "vote" else 9)).all()


@settings(deadline=None)
@given(STACKS)
def test_median(stack):
    expected = np.floor(np.median(stack, axis=0) + 0.5)
    np.testing.assert_array_equal(combining.combine(list(stack), "median"), expected)


@settings(deadline=None)
@given(STACKS, st.lists(st.floats(0.1, 5), min_size=7, max_size=7))
def test_logit_mean(stack, numbers):
    weights = numbers[: len(stack)]
    p = (stack + 0.5) / 256
    odds = np.average(np.log(p) - np.log1p(-p), axis=0, weights=weights)
    exact = 256 / (1 + np.exp(-odds)) - 0.5
    result = combining.combine(list(stack), "logit_mean", weights)
    assert np.abs(result - exact).max() <= 0.501


@pytest.mark.parametrize("strategy", ["mean", "median", "logit_mean"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_equal_masks_come_back(strategy, count):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(combining.combine([grey] * count, strategy), grey)


def test_opposite_odds_are_object():
    grey = np.arange(256, dtype=np.uint8)[None]
    assert (combining.combine([grey, 255 - grey], "logit_mean") == 128).all()


@pytest.mark.parametrize(("values", "wanted"), [((255, 255, 0, 0), 255), ((200, 200, 50, 50), 0)])
def test_a_tied_vote_is_decided_by_the_mean(values, wanted):
    greys = [np.full((1, 1), value, np.uint8) for value in values]
    assert combining.combine(greys, "vote") == wanted


@pytest.mark.parametrize("weights", [[-1, 2], [0, 0], [float("nan"), 1], [float("inf"), 1]])
def test_impossible_weights(weights):
    with pytest.raises(UserError, match="--weights"):
        combining.normalise(weights)


def make_folder(path, stems, *, digest=None, out_of_fold=True, network="unet", seed=0, size=(8, 9)):
    random = np.random.default_rng(seed)
    for stem in stems:
        write_probability(path / f"{stem}.png", random.integers(0, 256, size, np.uint8))
    if digest is not None:
        described = manifest.Manifest(
            models=(
                {
                    "file": f"{digest}.keras",
                    "digest": digest,
                    "network": network,
                    "fold": 0,
                    "training_groups": "of some groups",
                },
            ),
            out_of_fold=out_of_fold,
            tta="none",
            engine="keras",
            dtype="float32",
            photos=len(stems),
            photos_digest=digest_of_lines(list(stems)),
            encoding=manifest.ENCODING,
            version="0",
        )
        manifest.write(path, described)
    return path


def plan_of(*paths, force=False):
    return ensembling.plan([open_folder(path) for path in paths], force=force)


def test_disjoint_folds_of_a_network_merge_in_any_order(tmp_path):
    a0 = make_folder(tmp_path / "a0", ["x", "y"], digest="1")
    b1 = make_folder(tmp_path / "b1", ["z"], digest="2", network="fpn")
    a1 = make_folder(tmp_path / "a1", ["z"], digest="3")
    b0 = make_folder(tmp_path / "b0", ["x", "y"], digest="4", network="fpn")
    plan = plan_of(a0, b1, a1, b0)
    assert [[f.path.name for f in member] for member in plan.members] == [
        ["a0", "a1"],
        ["b1", "b0"],
    ]
    assert plan.stems == ["x", "y", "z"]
    assert plan.out_of_fold and not plan.problems and not plan.warnings
    assert plan.files("z") == [(0, a1 / "z.png"), (1, b1 / "z.png")]


def test_one_model_may_have_predicted_disjoint_photos(tmp_path):
    one = make_folder(tmp_path / "a", ["x"], digest="1")
    assert len(plan_of(one, make_folder(tmp_path / "b", ["y"], digest="1")).members) == 1


def missing(root):
    return make_folder(root / "a", "xyz", digest="1"), make_folder(root / "b", "xy", digest="2")


def unfinished(root):
    a, b = make_folder(root / "a", "xy", digest="1"), make_folder(root / "b", "xyz", digest="2")
    (b / "z.png").unlink()
    return a, b


def mixed(root):
    inside = make_folder(root / "b", "xy", digest="2", out_of_fold=False)
    return make_folder(root / "a", "xy", digest="1"), inside


def same_model(root):
    return make_folder(root / "a", "xy", digest="1"), make_folder(root / "b", "xy", digest="1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "lacks 1 of 3 photos, the first is 'z'; predict"),
        (unfinished, "lists 3 photos"),
        (mixed, "is out of fold and .* is not; predict"),
        (same_model, "made by the same model .* leave one out"),
    ],
)
def test_refusals_name_the_fix_and_force_records(tmp_path, make, message):
    paths = make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        plan_of(*paths)
    assert "--force" in str(caught.value)
    assert len(plan_of(*paths, force=True).problems) == 1


def test_a_folder_without_manifest_is_a_warning(tmp_path):
    plan = plan_of(make_folder(tmp_path / "a", "xy", digest="1"), make_folder(tmp_path / "b", "xy"))
    assert len(plan.warnings) == 1 and "'" + str(tmp_path / "b") in plan.warnings[0]
    assert not plan.out_of_fold


def test_manifests_from_before_ensembles_are_read(tmp_path):
    make_folder(tmp_path, "x", digest="1")
    text = (tmp_path / "manifest.json").read_text().replace(',\n  "ensemble": null', "")
    assert "ensemble" not in text
    (tmp_path / "manifest.json").write_text(text)
    assert manifest.read(tmp_path).ensemble is None


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.uint8, (3, 6, 7)),
    arrays(bool, (6, 7)),
    st.lists(st.integers(0, 4), min_size=3),
    st.integers(0, 254),
)
def test_reduced_photos_give_the_exact_dice(stack, truth, numbers, threshold):
    numbers = numbers[:3] if sum(numbers[:3]) else [1, 1, 1]
    called = combining.combine(list(stack), "mean", numbers) > threshold
    whole = called.sum() + truth.sum()
    expected = 2 * (called & truth).sum() / whole if whole else 1.0
    photo = ensemble_weights.observe(list(stack), truth, threshold)
    assert abs(dice([photo], numbers)[0] - expected) < 1e-12


@contextlib.contextmanager
def gathered(photos):
    with tempfile.TemporaryFile() as file:
        part = ensemble_weights.Observed(file)
        for photo in photos:
            part.add(photo)
        yield part


def dice(photos, weights):
    with gathered(photos) as part:
        return part.dice([weights])[0]


def fitted(photos):
    with gathered(photos) as part:
        return ensemble_weights.fit([part])


def noisy(truth, noise, random):
    return np.clip(255 * truth + random.normal(0, noise, truth.shape), 0, 255).astype(np.uint8)


def observed(count=6, noises=(90, 200)):
    random = np.random.default_rng(3)
    truths = [random.random((20, 20)) < 0.5 for _ in range(count)]
    return [ensemble_weights.observe([noisy(t, n, random) for n in noises], t) for t in truths]


def test_fitting_is_as_good_as_trying_all_weights():
    photos = observed()
    best = max(dice(photos, [i, 20 - i]).mean() for i in range(21))
    weights = fitted(photos)
    assert abs(sum(weights) - 1) < 1e-8 and weights[0] > weights[1]
    assert dice(photos, weights).mean() >= best - 1e-3
    assert fitted(photos) == weights


def test_no_fold_sees_its_own_truth():
    photos, folds = observed(), [0, 0, 1, 1, 2, 2]
    before = ensemble_weights.cross_fit(photos, folds)
    upside_down = [
        dataclasses.replace(p, hits=p.pixels - p.hits) if f == 1 else p
        for p, f in zip(photos, folds, strict=True)
    ]
    after = ensemble_weights.cross_fit(upside_down, folds)
    assert after.by_fold[1] == before.by_fold[1]
    by_hand = [
        dice([p], fitted([q for q, g in zip(photos, folds, strict=True) if g != f]))
        for p, f in zip(photos, folds, strict=True)
    ]
    assert before.cross_fitted == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert before.naive >= before.equal


def test_observed_photos_are_not_held_in_memory(monkeypatch):
    photos = observed(3)
    alone = dice(photos, [3, 1])
    monkeypatch.setattr(ensemble_weights, "_CELLS", 7)
    np.testing.assert_array_equal(dice(photos, [3, 1]), alone)
    # Of 4 moves at most: blocks of about a photo.
    monkeypatch.setattr(ensemble_weights, "_CELLS", 4 * len(photos[0].pixels))

    def fresh():
        for i in range(900):
            photo = photos[i % 3]
            yield dataclasses.replace(photo, values=photo.values.copy(), hits=photo.hits.copy())

    size = sum(array.nbytes for array in (photos[0].values, photos[0].pixels, photos[0].hits))
    tracemalloc.start()
    found = ensemble_weights.cross_fit(fresh(), [i // 300 for i in range(900)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.3 * 900 * size
    # Each fold holds the three as often, so they decide alone.
    assert found.deployed == fitted(photos)
    assert found.cross_fitted == pytest.approx(dice(photos, found.deployed).mean(), abs=1e-12)


def brute_fit(pairs):
    """The same search, on the masks themselves and scored by scikit-learn."""

    def score(weights):
        return np.mean([brute_dice(pair, weights) for pair in pairs])

    weights = [0.5, 0.5]
    for step in (0.2, 0.1, 0.05):
        while True:
            moves = []
            for source in (0, 1):
                moved = min(step, weights[source])
                change = (-moved, moved) if source == 0 else (moved, -moved)
                if moved > 0:
                    moves.append([round(w + c, 9) for w, c in zip(weights, change, strict=True)])
            best = max(moves, key=score)
            if score(best) <= score(weights) + 1e-9:
                break
            weights = best
    return weights


def brute_dice(pair, weights):
    greys, truth = pair
    called = combining.combine(greys, "mean", weights) > 127
    return sklearn.metrics.f1_score(truth.ravel(), called.ravel())


def test_cross_fitted_weights_agree_with_scikit_learn_on_the_masks_themselves():
    random, folds = np.random.default_rng(5), [0, 1, 2]
    truths = [random.random((90, 100)) < 0.5 for _ in folds]
    pairs = [([noisy(t, noise, random) for noise in (200, 260)], t) for t in truths]
    photos = [ensemble_weights.observe(*pair) for pair in pairs]
    assert min(photo.pixels.sum() for photo in photos) > 2000
    found = ensemble_weights.cross_fit(photos, folds)
    scores = []
    for fold in folds:
        others = [pair for pair, other in zip(pairs, folds, strict=True) if other != fold]
        assert found.by_fold[fold] == brute_fit(others)
        scores.append(brute_dice(pairs[fold], found.by_fold[fold]))
    assert found.cross_fitted == pytest.approx(np.mean(scores), abs=1e-9)
    assert found.deployed == brute_fit(pairs)
    naive = np.mean([brute_dice(pair, found.deployed) for pair in pairs])
    assert found.naive == pytest.approx(naive, abs=1e-9)


def run(*arguments, fails=False):
    done = subprocess.run(
        [sys.executable, str(ROOT / "ensemble.py"), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def test_the_script_resumes_and_takes_the_published_flags(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        make_folder(tmp_path / name, ["x", "y"], digest=name, seed=seed)
    out = tmp_path / "out"
    flags = [f"--folds_dir={tmp_path}", "--dirs_to_ensemble=a,b", f"--ensembling_dir={out}"]
    flags += ["--ensembling_strategy=average", "--ensembling_cpu_threads=2"]
    run(*flags)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    a, b = (read_grey(tmp_path / n / "x.png").astype(int) for n in "ab")
    np.testing.assert_array_equal(read_grey(out / "x.png"), (a + b + 1) // 2)
    described = manifest.read(out)
    assert described.out_of_fold and [m["digest"] for m in described.models] == ["a", "b"]

    (out / "y.png").unlink()
    stamp = (out / "x.png").stat().st_mtime_ns
    assert "1 already combined" in run(*flags)
    assert (out / "x.png").stat().st_mtime_ns == stamp
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first

    assert "other ensemble" in run(*flags, "--postprocess=largest", fails=True)
    assert "Did you mean" in run(*flags, "--postprocess=largst", fails=True)


def test_masks_made_anew_in_another_way_are_not_mixed_with_the_old(tmp_path):
    a = make_folder(tmp_path / "a", ["x", "y"], digest="1")
    b = make_folder(tmp_path / "b", ["x", "y"], digest="2")
    flags = [f"--pred_mask_dirs={a},{b}", f"--pred_mask_dir={tmp_path / 'out'}"]
    run(*flags)
    manifest.write(a, dataclasses.replace(manifest.read(a), tiles="512"))
    assert "made with other ensemble" in run(*flags, fails=True)
    run(*flags, "--overwrite")


def test_more_photos_of_the_members_are_added(tmp_path):
    flags = [f"--pred_mask_dirs={tmp_path / 'a'},{tmp_path / 'b'}"]
    flags += [f"--pred_mask_dir={tmp_path / 'out'}"]
    for stems in (["x"], ["x", "y"]):
        for number, name in enumerate("ab"):
            make_folder(tmp_path / name, stems, digest=name, seed=number)
        expected_message = run(*flags)
    assert "2 photos, 1 already combined" in expected_message
    made = manifest.read(tmp_path / "out")
    del made.ensemble["manifests_digest"]  # as in folders of earlier versions
    manifest.write(tmp_path / "out", made)
    assert "2 photos, 2 already combined" in run(*flags)


def test_weights_alone_are_no_member(tmp_path):
    message = run(
        f"--member={tmp_path / 'a.weights.h5'}", f"--pred_mask_dir={tmp_path}", fails=True
    )
    assert "does not say which network" in message and "predict_multithreaded.py" in message


def test_a_photo_that_only_members_of_weight_0_have(tmp_path):
    a = make_folder(tmp_path / "a", ["x", "y"], digest="1")
    b = make_folder(tmp_path / "b", ["x"], digest="2", network="other")
    flags = [f"--pred_mask_dirs={a},{b}", f"--pred_mask_dir={tmp_path / 'out'}", "--weights=0,1"]
    for strategy in ("mean", "vote", "logit_mean"):
        run(*flags, "--force", "--overwrite", f"--strategy={strategy}")
        assert (tmp_path / "out/y.png").is_file()


def test_mixed_sizes_are_named_and_forced_ones_recorded(tmp_path):
    a = make_folder(tmp_path / "a", ["x"], digest="1")
    b = make_folder(tmp_path / "b", ["x"], digest="2", size=(16, 18))
    flags = [f"--pred_mask_dirs={a},{b}", f"--pred_mask_dir={tmp_path / 'out'}"]
    message = run(*flags, fails=True)
    assert "18x16" in message and "9x8" in message and "Traceback" not in message
    assert not (tmp_path / "out").exists()
    run(*flags, "--force")
    assert "18x16" in manifest.read(tmp_path / "out").ensemble["forced"][0]
    assert read_grey(tmp_path / "out" / "x.png").shape == (8, 9)


def test_the_inputs_are_never_the_output(tmp_path):
    a = make_folder(tmp_path / "a", ["x"], digest="1")
    message = run(f"--pred_mask_dirs={a}", f"--pred_mask_dir={a}", "--overwrite", fails=True)
    assert "choose another" in message and (a / "x.png").is_file()


def test_the_script_fits_weights_and_gives_each_fold_its_own(tmp_path, make_dataset):
    root = make_dataset(groups=4, views=1)
    random = np.random.default_rng(0)
    stems = sorted(path.stem for path in (root / "train").iterdir())
    for name, noise in (("a", 60), ("b", 250)):
        make_folder(tmp_path / name, stems, digest=name)
        for stem in stems:
            truth = read_mask(root / "train_masks" / f"{stem}_mask.gif")
            write_probability(tmp_path / name / f"{stem}.png", noisy(truth, noise, random))
    out = tmp_path / "out"
    flags = [f"--pred_mask_dirs={tmp_path / 'a'},{tmp_path / 'b'}", f"--pred_mask_dir={out}"]
    text = run(*flags, "--fit_weights", f"--dataset_dir={root}")
    assert "naive" in text and "cross-fitted" in text
    fitted = manifest.read(out).ensemble["fitted"]
    assert fitted["deployed"][0] > 0.5
    for stem in stems:
        fold = str(int(stem[3:5]) % 2)
        greys = [read_grey(tmp_path / name / f"{stem}.png") for name in "ab"]
        expected = combining.combine(greys, "mean", fitted["by_fold"][fold])
        np.testing.assert_array_equal(read_grey(out / f"{stem}.png"), expected)
    # The figure printed is that of the PNGs that were written.
    truths = [read_mask(root / "train_masks" / f"{stem}_mask.gif") for stem in stems]
    called = [read_grey(out / f"{stem}.png") > 127 for stem in stems]
    written = [
        sklearn.metrics.f1_score(*map(np.ravel, p)) for p in zip(truths, called, strict=True)
    ]
    assert fitted["cross_fitted"] == pytest.approx(np.mean(written), abs=1e-9)


def test_fitting_refuses_masks_not_known_to_be_out_of_fold(tmp_path, make_dataset):
    root = make_dataset(groups=2, views=1)
    a = make_folder(tmp_path / "a", ["car00_01", "car01_01"])
    flags = [f"--pred_mask_dirs={a}", f"--pred_mask_dir={tmp_path / 'out'}"]
    message = run(*flags, "--fit_weights", f"--dataset_dir={root}", fails=True)
    assert "out of fold" in message and "--force" in message


def test_masks_whose_names_are_composed_otherwise_are_of_one_photo(tmp_path):
    stems = ["é_1", "ü_2", "a_3"]
    for name, form in (("a", "NFC"), ("b", "NFD")):
        spelled = [unicodedata.normalize(form, stem) for stem in stems]
        make_folder(tmp_path / name, spelled, digest=name)
    plan = ensembling.plan([open_folder(tmp_path / name) for name in "ab"])
    assert plan.stems == sorted(stems)
    assert [len(plan.files(stem)) for stem in plan.stems] == [2, 2, 2]
