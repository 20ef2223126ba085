"""Recipes: what may stand in one, and the steps that follow from it."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from carvana_tf import commands
from carvana_tf.commands import pipeline
from carvana_tf.errors import UserError
from carvana_tf.files import write_json
from carvana_tf.options import DatasetOptions
from carvana_tf.recipe import check, plan, report
from carvana_tf.recipe.recipe import read
from carvana_tf.recipe.steps import RunPaths, Step
from carvana_tf.training.loop import LAST

ROOT = Path(__file__).parent.parent
# Those of labels are in tests/test_labels.py.
RECIPES = sorted(
    path for path in (ROOT / "recipes").glob("*.yaml") if "task: labels" not in path.read_text()
)
NET = {"network": "simple_unet"}
OTHER = {"network": "unet_bn"}
SMOKE = {**NET, "smoke": True}
WEIGHTS = {**NET, "weights": "w.h5"}


@pytest.fixture
def write(tmp_path):
    def written(content):
        path = tmp_path / "r.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return written


@pytest.fixture
def paths(tmp_path):
    """A dataset that need not exist, to be worked on in `out`."""
    root = Path("input")
    return RunPaths(
        dataset=DatasetOptions(dataset_dir="input"),
        photos=root / "train",
        masks=root / "train_masks",
        test=root / "test",
        sample=None,
        out=tmp_path / "out",
    )


def members(*rows, **rest):
    return {"members": [{"flags": NET, **row} for row in rows], **rest}


def steps_of(recipe, paths):
    by_member = plan.member_steps(recipe, paths)
    final = plan.final_steps(recipe, paths, [member.name for member in recipe.members])
    return {step.name: step for steps in (*by_member.values(), final) for step in steps}


def value(step, flag):
    """The value a script would take: the last one."""
    found = [each for each in step.line if each.startswith(f"--{flag}=")]
    return found[-1].partition("=")[2] if found else None


def test_what_is_left_out_has_defaults(write):
    recipe = read(write(members({"name": "a"})))
    (member,) = recipe.members
    assert recipe.folds.number == 5
    assert (member.weight, member.stack, member.folds, member.predict) == (1, (), None, ())
    assert member.stages[0].flags == ("--network=simple_unet",)
    assert not recipe.fit_weights


def test_flags_win_over_the_flag_file(write, tmp_path):
    (tmp_path / "a.flags").write_text("# a comment\n--network=vgg\n--epochs=3\n")
    row = {"name": "a", "flagfile": "a.flags", "flags": {"epochs": 5, "nesterov": False}}
    (member,) = read(write({"members": [row]})).members
    assert member.stages[0].network == "vgg"
    assert member.stages[0].flags == ("--network=vgg", "--epochs=3", "--epochs=5", "--nonesterov")


def test_members_come_after_what_they_are_stacked_on(write):
    rows = [{"name": "c", "stack": ["b", "a"]}, {"name": "a"}, {"name": "b", "stack": ["a"]}]
    assert [member.name for member in read(write(members(*rows))).members] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("members: [", "is no YAML"),
        ("- a", "must be a mapping"),
        ({"members": []}, "list of at least one member"),
        (members({"name": "a"}, colour="red"), "the key 'colour' is unknown"),
        (members({"name": "a"}, fold={"n_folds": 2}), "Did you mean 'folds'"),
        (members({"name": "a", "wieght": 2}), "member 'a': the key 'wieght'.*'weight'"),
        (members({"name": "a/b"}), "needs a 'name' of letters"),
        (members({"name": "ensemble"}), "not 'ensemble'"),
        (members({"name": "ensemble-gains"}), "not 'ensemble'"),
        (members({"name": "a"}, submission={"threshold": 255}), "from 0 to 254, received 255"),
        (members({"name": "a"}, submission={"threshold": True}), "from 0 to 254, received True"),
        (members({"name": "a"}, ensemble={"threshold": 9}), "'submission' may set it for all"),
        (members({"name": "a"}, predict={"output": "mask"}), "--output is set"),
        (members({"name": "a"}, {"name": "a"}), "two members are named 'a'"),
        (members({"name": "a", "stack": ["aa"]}), "'aa' is unknown. Did you mean 'a'"),
        (members({"name": "a", "stack": ["b"]}, {"name": "b", "stack": ["a"]}), "circle: a, b"),
        (members({"name": "a", "stack": ["a"]}), "circle: a"),
        (members({"name": "a", "weight": -1}), "'weight' must be a number from 0"),
        (members({"name": "a", "weight": 0}), "every member has weight 0"),
        (members({"name": "a", "stages": [{"flags": NET}]}), "flagfile and flags stand in each"),
        ({"members": [{"name": "a"}]}, "no --network"),
        ({"members": [{"name": "a", "flagfile": "no.flags"}]}, "cannot read the flag file.*no.fl"),
        (members({"name": "a", "flags": {"fold": 1}}), "--fold is set by train_and_predict"),
        (members({"name": "a", "flags": {"epochs": None}}), "--epochs needs a value"),
        (members({"name": "a"}, folds={"n_folds": 1}), "n_folds must be a number from 2"),
        (members({"name": "a"}, ensemble={"weights": [1]}), "--weights is set"),
        (members({"name": "a"}, predict={"group_pattern": "(.)"}), "--group_pattern is set"),
        (members({"name": "a"}, ensemble={"fit_weights": "yes!"}), "true or false"),
        (members({"name": "a", "start_from": "b"}), "start_from: 'b' is unknown"),
        (members({"name": "a", "start_from": ["b"]}), "'start_from' must be the name of a member"),
        (members({"name": "a", "start_from": ""}), "must be the name of a member, received ''"),
        (members({"name": "a", "start_from": None}), "must be the name of a member, received None"),
        (members({"name": "a", "start_from": "a"}), "in a circle: a"),
        (
            members({"name": "a", "folds": {"n_folds": 3}}, {"name": "b", "start_from": "a"}),
            "start_from: 'a' has other folds",
        ),
        (
            members({"name": "a"}, {"name": "b", "start_from": "a", "stack": ["a"]}),
            "start_from: 'a' is stacked on other members",
        ),
        (
            members(
                {"name": "a"}, {"name": "b", "start_from": "a", "flags": NET | {"weights": "w.h5"}}
            ),
            "'--weights=w.h5' contradicts 'start_from'",
        ),
        (
            {"members": [{"name": "a", "start_from": "b", "models": "m/{fold}.keras"}]},
            "with 'models' nothing is trained; drop start_from",
        ),
        (
            members({"name": "a"}, {"name": "b", "start_from": "a", "flags": OTHER}),
            "start_from: unet_bn cannot start from the weights of simple_unet",
        ),
        (
            members({"name": "a", "flags": SMOKE}, {"name": "b", "start_from": "a"}),
            "start_from: cannot start from a network of --smoke",
        ),
        (
            {"members": [{"name": "a", "stages": [{"flags": SMOKE}, {"flags": NET}]}]},
            "'a': cannot start from a network of --smoke",
        ),
        (
            {"members": [{"name": "a", "stages": [{"flags": NET}, {"flags": OTHER}]}]},
            "'a': unet_bn cannot start from the weights of simple_unet",
        ),
        (
            {"members": [{"name": "a", "stages": [{"flags": NET}, {"flags": WEIGHTS}]}]},
            "'weights' in the flags of a later stage has no effect",
        ),
        (members({"name": "a", "pseudo": ["b"]}), "pseudo: 'b' is unknown"),
        (members({"name": "a", "pseudo": ["a"]}), "in a circle: a"),
        (members({"name": "a", "pseudo": "a"}), "'pseudo' must be a list"),
        (members({"name": "a"}, {"name": "b", "pseudo": ["a", "a"]}), "names a member twice"),
        (
            members({"name": "a"}, {"name": "b", "pseudo": ["a"], "stack": ["a"]}),
            "'stack' and 'pseudo' exclude each other",
        ),
        (
            members({"name": "a"}, {"name": "b", "stack": ["a"]}, {"name": "c", "pseudo": ["b"]}),
            "'b' is stacked on networks that know",
        ),
        (
            members({"name": "a", "folds": {"n_folds": 3}}, {"name": "b", "pseudo": ["a"]}),
            "'a' has other folds",
        ),
        (
            members(
                {"name": "a"},
                {"name": "b", "flags": NET | {"pseudo_mask_dir": "x"}, "pseudo": ["a"]},
            ),
            "contradicts 'pseudo'",
        ),
        (
            members({"name": "a", "stages": [{"flags": NET}], "pseudo": ["a"]}),
            "stand in each stage",
        ),
        (members({"name": "a", "models": "a-{fold}.keras"}), "nothing is trained; drop flags"),
        ({"members": [{"name": "a", "models": "a.keras"}]}, r"with \{fold\} for the number"),
        (members({"name": "a"}, folds={"file": "f.csv", "n_folds": 2}), "drop the other keys"),
        (members({"name": "a"}, folds={"file": "no.csv"}), r"'no\.csv' is neither in"),
    ],
)
def test_a_mistake_gets_one_line(write, content, message):
    path = write(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path.parent) in str(caught.value)


def test_a_missing_recipe(tmp_path):
    with pytest.raises(UserError, match="cannot read --recipe"):
        read(tmp_path / "no.yaml")


def test_every_fold_is_predicted_by_the_model_that_has_not_seen_it(write, paths):
    steps = steps_of(read(write(members({"name": "a"}, folds={"n_folds": 3}))), paths)
    for fold in range(3):
        train, predict = steps[f"a-train-{fold}"], steps[f"a-predict-fold_{fold}"]
        assert value(train, "fold") == value(predict, "fold") == str(fold)
        assert value(predict, "weights") == str(train.owns / LAST)
        assert "--predict_on_val" in predict.line
        assert train.product in predict.inputs
    test = steps["a-predict-test"]
    assert value(test, "engine") == value(predict, "engine") == "keras"
    assert value(test, "weights").count(LAST) == 3
    assert "--predict_on_val" not in test.line


def test_stages_start_from_the_weights_of_the_one_before(write, paths):
    stages = [{"flags": {**NET, "weights": "imagenet"}}, {"flags": NET}]
    content = {"members": [{"name": "a", "stages": stages}], "folds": {"n_folds": 2}}
    steps = steps_of(read(write(content)), paths)
    first, second = steps["a-stage1-train-1"], steps["a-train-1"]
    assert value(first, "weights") == "imagenet"
    assert value(second, "weights") == str(first.owns / LAST)
    assert first.product in second.inputs
    assert value(steps["a-predict-fold_1"], "weights") == str(second.owns / LAST)


def test_a_stacked_member_learns_from_masks_out_of_fold(write, paths):
    rows = [{"name": "a"}, {"name": "b"}, {"name": "s", "stack": ["a", "b"]}]
    steps = steps_of(read(write(members(*rows))), paths)
    parts = {"s-train-0": "oof", "s-predict-fold_0": "oof", "s-predict-test": "test"}
    for name, part in parts.items():
        folders = [paths.mask_dir(base, part) for base in "ab"]
        assert value(steps[name], "stacked_channels_dir") == ",".join(map(str, folders))
        assert {*folders} <= {*steps[name].inputs}
    assert value(steps["s-train-0"], "stacked_channels") == "2"


def test_pseudo_labels_come_from_networks_of_the_same_fold(write, paths):
    stages = [{"flags": NET, "pseudo": ["b", "a"]}, {"flags": NET}]
    rows = [
        *({"name": name, "flags": NET} for name in "ab"),
        {"name": "c", "stages": stages},
        {"name": "d", "flags": NET, "pseudo": ["a"]},
    ]
    recipe = read(write({"members": rows, "folds": {"n_folds": 2}}))
    steps = steps_of(recipe, paths)
    order = list(steps)
    for fold in "01":
        for base in "ab":
            label = steps[f"{base}-predict-test_fold_{fold}"]
            assert value(label, "weights") == value(steps[f"{base}-predict-fold_{fold}"], "weights")
            assert value(label, "test_data_dir") == str(paths.test)
        merge = steps[f"b+a-test_fold_{fold}"]
        parts = [paths.mask_dir(base, f"test_fold_{fold}") for base in "ba"]
        assert value(merge, "pred_mask_dirs") == ",".join(map(str, parts))
        trainings = {f"c-stage1-train-{fold}": merge.product, f"d-train-{fold}": parts[1]}
        for name, masks in trainings.items():
            assert value(steps[name], "pseudo_mask_dir") == str(masks)
            assert value(steps[name], "pseudo_data_dir") == str(paths.test)
            assert {masks, paths.test} <= {*steps[name].inputs}
            assert order.index(merge.name) < order.index(name)
        assert value(steps[f"c-train-{fold}"], "pseudo_mask_dir") is None
    assert len(order) == len(set(order))
    # These networks know the test photos, the others do not.
    assert "--allow_in_fold" in steps["ensemble-test"].line
    assert "--allow_in_fold" not in steps["ensemble-oof"].line
    assert "--allow_in_fold" not in steps["b+a-test_fold_0"].line
    with pytest.raises(UserError, match=r"'c' .* trained on masks of the test photos.*--test_data"):
        plan.member_steps(recipe, dataclasses.replace(paths, test=None))


def test_a_member_starts_from_the_network_of_the_same_fold(write, paths):
    rows = [
        {"name": "b", "start_from": "a", "stages": [{"flags": NET}, {"flags": NET}]},
        {"name": "a", "flags": NET, "pseudo": ["p"]},
        {"name": "p", "flags": NET},
    ]
    recipe = read(write({"members": rows, "folds": {"n_folds": 2}}))
    assert [member.name for member in recipe.members] == ["p", "a", "b"]
    steps = steps_of(recipe, paths)
    for fold in "01":
        first, second = steps[f"b-stage1-train-{fold}"], steps[f"b-train-{fold}"]
        for base, step in ((steps[f"a-train-{fold}"], first), (first, second)):
            assert value(step, "weights") == str(base.owns / LAST)
            assert base.product in step.inputs
        assert value(steps[f"a-train-{fold}"], "weights") is None
    # One that starts from a network that knows the test photos knows them, too.
    for complete, mixed in ((["p", "b"], True), (["p"], False)):
        combined, *_ = (s for s in plan.final_steps(recipe, paths, complete) if "test" in s.name)
        assert ("--allow_in_fold" in combined.line) == mixed


@pytest.mark.parametrize("word", [True, "yes", "on", 1])
def test_a_part_of_the_weights_of_another_network_is_enough(write, word):
    partial = {**OTHER, "allow_partial_weights": word}
    rows = [{"name": "a"}, {"name": "b", "start_from": "a", "flags": partial}]
    assert len(read(write(members(*rows))).members) == 2


def test_a_trial_loads_no_weights_so_it_may_follow_any_network(write):
    rows = [{"name": "a", "flags": OTHER}, {"name": "b", "start_from": "a", "flags": SMOKE}]
    assert len(read(write(members(*rows))).members) == 2


def test_a_stacked_member_starts_from_one_with_the_same_channels(write, paths):
    rows = [
        *({"name": name} for name in "ab"),
        {"name": "s", "stack": ["a", "b"]},
        {"name": "t", "stack": ["a", "b"], "start_from": "s"},
    ]
    steps = steps_of(read(write(members(*rows))), paths)
    assert value(steps["t-train-1"], "weights") == str(steps["s-train-1"].owns / LAST)
    assert value(steps["t-train-1"], "stacked_channels") == "2"


def test_a_member_starts_from_models_that_exist(write, paths):
    rows = [
        {"name": "a", "models": "nets/fold_{fold}.keras"},
        {"name": "b", "flags": OTHER, "start_from": "a"},
    ]
    steps = steps_of(read(write({"members": rows, "folds": {"n_folds": 2}})), paths)
    for fold in "01":
        model = Path(f"nets/fold_{fold}.keras")
        assert value(steps[f"b-train-{fold}"], "weights") == str(model)
        assert model in steps[f"b-train-{fold}"].inputs


def test_members_with_equal_folds_share_their_table(write, paths):
    own = {"n_folds": 3, "method": "random"}
    rows = [{"name": "a"}, {"name": "b", "folds": own}, {"name": "c", "folds": own}]
    steps = steps_of(read(write(members(*rows))), paths)
    assert [name for name in steps if name.startswith("folds")] == ["folds", "folds-b"]
    assert value(steps["c-train-2"], "folds_source") == value(steps["folds-b"], "folds_out")
    assert "c-train-3" not in steps and "a-train-4" in steps


def test_the_ensemble_takes_the_complete_members(write, paths):
    rows = [{"name": "a", "weight": 3}, {"name": "b"}, {"name": "c", "weight": 0}, {"name": "d"}]
    recipe = read(write(members(*rows, predict={"pred_tta": "hflip"})))
    all_but_d = plan.final_steps(recipe, paths, ["a", "b", "c"])
    names = ["ensemble-oof", "ensemble-scores", "ensemble-test", "submission"]
    assert [step.name for step in all_but_d] == names
    folders = [paths.mask_dir(name, "test") for name in "ab"]
    assert value(all_but_d[2], "pred_mask_dirs") == ",".join(map(str, folders))
    assert value(all_but_d[0], "weights") == value(all_but_d[2], "weights") == "3,1"
    assert plan.final_steps(recipe, paths, ["c"]) == []


def test_fitted_values_come_from_earlier_steps(write, paths):
    recipe = read(write(members({"name": "a"}, {"name": "b"}, ensemble={"fit_weights": True})))
    steps = steps_of(recipe, paths)
    test, submission = steps["ensemble-test"], steps["submission"]
    for made in ({}, {"weights": None}):  # by no one yet, by a recipe that fitted nothing
        if made:
            oof = paths.mask_dir("ensemble", "oof")
            write_json(oof / "manifest.json", {"ensemble": made})
        assert value(test, "weights").startswith("<from ")
    write_json(
        paths.mask_dir("ensemble", "oof") / "manifest.json", {"ensemble": {"weights": [0.25, 0.75]}}
    )
    assert value(test, "weights") == "0.25,0.75"
    for gain, threshold in ((0.001, "140"), (-0.001, "127")):
        fits = [{"gain": gain, "naive_threshold": 140}]
        write_json(paths.scores("ensemble"), {"crossfit": fits})
        assert value(submission, "threshold") == threshold
    fixed = read(write(members({"name": "a"}, submission={"threshold": 99})))
    assert value(steps_of(fixed, paths)["submission"], "threshold") == "99"


CHAIN = ("ensemble-gains-scores", "ensemble-postprocessed", "ensemble-test", "submission")


@pytest.mark.parametrize("fixed", [None, 99])
def test_one_threshold_goes_through_the_whole_chain(write, paths, fixed):
    submission = {} if fixed is None else {"threshold": fixed}
    rows = [{"name": "a"}, {"name": "b"}]
    ensemble = {"postprocess": ["largest", "fill_holes"], "fit_weights": True}
    steps = steps_of(read(write(members(*rows, ensemble=ensemble, submission=submission))), paths)
    write_json(paths.scores("ensemble"), {"crossfit": [{"gain": 0.1, "naive_threshold": 140}]})
    for name in CHAIN:
        assert value(steps[name], "threshold") == str(fixed or 140), name
        # A new fit makes all of it again.
        assert (paths.scores("ensemble") in steps[name].inputs) == (fixed is None), name
    # It is chosen on masks that are not post-processed yet, and the members score with it.
    for name in ("a-scores", "ensemble-oof", "ensemble-scores"):
        assert value(steps[name], "threshold") == (None if fixed is None else "99"), name
        assert value(steps[name], "postprocess") is None
    for name in CHAIN[:3]:
        assert value(steps[name], "postprocess") == "largest,fill_holes"
    assert value(steps["ensemble-postprocessed-scores"], "pred_mask_dir") == value(
        steps["ensemble-postprocessed"], "pred_mask_dir"
    )


def test_a_threshold_above_which_nothing_is_object_is_never_chosen(write, paths):
    recipe = read(write(members({"name": "a"})))
    write_json(paths.scores("ensemble"), {"crossfit": [{"gain": 0.1, "naive_threshold": 255}]})
    assert value(steps_of(recipe, paths)["submission"], "threshold") == "254"


def test_without_test_photos_nothing_is_submitted(write, paths):
    bare = dataclasses.replace(paths, test=None)
    steps = steps_of(read(write(members({"name": "a"}))), bare)
    assert "ensemble-scores" in steps
    assert not [name for name in steps if "test" in name or name == "submission"]


def test_predict_only_trains_nothing_and_fits_as_the_recipe_says(write, paths, tmp_path):
    rows = [{"name": "a"}, {"name": "b", "pseudo": ["a"]}, {"name": "s", "stack": ["a"]}]
    content = members(*rows, ensemble={"fit_weights": True}, folds={"n_folds": 2})
    recipe = read(write(content))
    trained = steps_of(recipe, paths)
    only = dataclasses.replace(paths, predict_only=True)
    steps = steps_of(recipe, only)
    assert not [step for step in steps.values() if step.command == "train"]
    skipped = {name for name in trained if "train-" in name or "test_fold" in name}
    assert {*steps} == {*trained} - skipped
    for name, step in steps.items():
        # Only where networks were trained, scores show their curves.
        assert step.line == [word for word in trained[name].line if word[:7] != "--runs="]
    assert len(plan.missing_models(recipe, only)) == 6
    other = dataclasses.replace(only, models=tmp_path / "other")
    model = tmp_path / "other/simple_unet-a-fold_1/last.keras"
    assert value(steps_of(recipe, other)["a-predict-fold_1"], "weights") == str(model)
    model.parent.mkdir(parents=True)
    model.touch()
    assert model in steps_of(recipe, other)["a-predict-fold_1"].inputs
    assert len(plan.missing_models(recipe, other)) == 5


def test_existing_models_and_an_existing_table(write, paths, tmp_path):
    (tmp_path / "f.csv").write_text("id,fold\nx,0\ny,1\nz,2\n")
    (tmp_path / "a-0.keras").touch()
    rows = [{"name": "a", "models": "a-{fold}.keras"}, {"name": "b", "flags": NET}]
    recipe = read(write({"members": rows, "folds": {"file": "f.csv"}}))
    steps = steps_of(recipe, paths)
    assert "folds" not in steps and "a-train-0" not in steps and "b-train-2" in steps
    assert value(steps["b-train-2"], "folds_source") == str(tmp_path / "f.csv")
    step = steps["a-predict-fold_2"]
    assert value(step, "weights") == str(tmp_path / "a-2.keras")
    assert tmp_path / "a-2.keras" in step.inputs
    assert len(plan.missing_models(recipe, paths)) == 2
    (tmp_path / "f.csv").write_text("id,fold\nx,1\ny,2\n")
    with pytest.raises(UserError, match=r"f\.csv' has the folds 1, 2; .*numbered from 0"):
        read(write({"members": rows, "folds": {"file": "f.csv"}}))


def test_without_truth_only_test_photos_are_predicted(write, paths, capsys):
    blind = dataclasses.replace(paths, predict_only=True, has_truth=False)
    rows = [{"name": "a", "weight": 2}, {"name": "b"}]
    recipe = read(write(members(*rows, ensemble={"postprocess": "largest"})))
    steps = steps_of(recipe, blind)
    assert [*steps] == ["a-predict-test", "b-predict-test", "ensemble-test", "submission"]
    assert value(steps["ensemble-test"], "weights") == "2,1"
    cuts = {value(steps[name], "threshold") for name in ("ensemble-test", "submission")}
    assert cuts == {"127"}
    for path in (blind.out / "timings.json", blind.mask_dir("ensemble", "oof") / "manifest.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")  # what the report does without
    assert report.write(recipe, blind, ["a", "b"], {})["scores"] == []
    warnings = [line[:18] for line in capsys.readouterr().err.splitlines()]
    assert warnings == ["warning: no weight", "warning: no times:"]
    fitting = read(write(members(*rows, ensemble={"fit_weights": True})))
    with pytest.raises(UserError, match=r"'fit_weights' .* needs training photos"):
        plan.member_steps(fitting, blind)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_scripts_know_all_flags_of_the_shipped_recipes(path, paths):
    recipe = read(path)
    assert recipe.description
    check.command_lines([*steps_of(recipe, paths).values()], commands.find)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epohcs": 3}, r"flags of train for 'a-train-0'.*epohcs.*Did you mean: epochs"),
        ({"epochs": "many"}, "epochs=many"),
        ({"epochs": 0}, "epochs"),
        ({"size_policy": "shrink"}, "size_policy"),
        ({"network": "simple_une"}, "Did you mean 'simple_unet'"),
        ({"loss_function": "dise"}, "Did you mean 'dice'"),
        ({"lr_schedule": "cosnie"}, "Did you mean 'cosine'"),
        ({"clr": "abc"}, "--clr"),
    ],
)
def test_a_flag_no_script_knows_is_told_before_anything_starts(write, paths, flags, message):
    row = {"name": "a", "flags": NET | flags}
    (step, *_) = plan.member_steps(read(write({"members": [row]})), paths)["a"]
    with pytest.raises(UserError, match=message):
        check.command_lines([step], commands.find)


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        ({"postprocess": "larges"}, "Did you mean 'largest'"),
        ({"strategy": "vote", "fit_weights": True}, "for 'ensemble-oof': --fit_weights fits"),
        ({"strategy": "median"}, "--strategy=median has no weights"),
    ],
)
def test_an_ensemble_that_cannot_be_made_is_told_before_anything_starts(
    write, paths, ensemble, message
):
    rows = [{"name": "a", "weight": 2}, {"name": "b"}]
    recipe = read(write(members(*rows, ensemble=ensemble)))
    with pytest.raises(UserError, match=message):
        check.command_lines(plan.final_steps(recipe, paths, ["a", "b"]), commands.find)


def test_command_lines_are_checked_one_by_one():
    lines = (("--fit_weights",), ("--weights=1,2", "--strategy=vote"))
    steps = [Step("a", "ensemble", line, (), Path(), Path()) for line in lines]
    check.command_lines(steps, commands.find)


def test_a_flag_file_does_not_group_photos_otherwise_than_the_run(write, tmp_path, paths):
    (tmp_path / "a.flags").write_text("--network=vgg\n--group_pattern=(.+)\n")
    steps = steps_of(read(write({"members": [{"name": "a", "flagfile": "a.flags"}]})), paths)
    assert value(steps["a-train-0"], "group_pattern") == paths.dataset.group_pattern


def test_a_slash_behind_the_dataset_changes_no_command(tmp_path):
    for folder in ("train", "train_masks"):
        (tmp_path / folder).mkdir()
    options = pipeline.PipelineOptions(out_dir="out")
    plain, slashed = (
        pipeline._paths(DatasetOptions(dataset_dir=f"{tmp_path}{end}"), options)
        for end in ("", "/")
    )
    assert plain == slashed


def test_scores_of_an_earlier_run_are_not_told_as_those_of_this_one(write, paths):
    recipe = read(write(members({"name": "a"})))
    scored = {
        "photos": 4,
        "groups": 2,
        "mean_dice": 0.9,
        "min_dice": 0.8,
        "interval": None,
        "crossfit": [],
    }
    for name in ("a", "ensemble"):
        write_json(paths.scores(name), scored)
    for failures, names in (({}, ["a", "ensemble"]), ({"ensemble-scores": "why"}, ["a"])):
        rows = report.write(recipe, paths, ["a"], failures)["scores"]
        assert [row["name"] for row in rows] == names


def test_the_page_says_which_scores_an_epoch_was_chosen_by(write, paths):
    recipe = read(write(members({"name": "a"})))
    scored = {"photos": 4, "groups": 2, "mean_dice": 0.9, "min_dice": 0.8, "crossfit": []}
    scored |= {"interval": None, "chosen_on_its_fold": None}
    sentence = "An epoch of a was chosen by its val_dice on the same photos"
    for chosen in (None, "val_dice"):
        write_json(paths.scores("a"), scored | {"chosen_on_its_fold": chosen})
        report.write(recipe, paths, ["a"], {"ensemble-scores": "why"})
        assert (sentence in (paths.out / "report.html").read_text()) == (chosen is not None)
