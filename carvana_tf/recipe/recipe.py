"""What a recipe says, read from YAML and checked without starting anything.

description: Two networks and their mean.   # free text
folds: {n_folds: 3}            # flags of make_folds; or {file: folds.csv}, an existing table
predict: {pred_tta: hflip}     # flags of predict
ensemble: {fit_weights: true}  # flags of ensemble
submission: {threshold: 127}   # flags of encode; without a threshold the
                               # one that is best out of fold, for post-processing too
members:
  - name: a                    # its place in all file names
    flagfile: a.flags          # flags of train, next to the recipe; and/or
    flags: {epochs: 5}         # flags that win over those of the file
  - name: b
    stages:                    # one after the other, each from the last.keras before
      - {flagfile: b-stage1.flags}
      - {flagfile: b-stage2.flags}
    folds: {n_folds: 7}        # its own, instead of those above
    predict: {pred_tta: none}  # added to those above
    weight: 2                  # in the ensemble; 0 leaves it out; 1 by default
  - name: c
    flagfile: c.flags
    stack: [a, b]              # takes the masks of these as further channels
  - name: d
    flagfile: d.flags
    pseudo: [a, b]             # trained on the test photos too, with the mean of the masks that
                               # these networks of the same fold predict; a key of stages too
  - name: e
    flagfile: e.flags
    start_from: a              # its training starts from that member's network of the same fold
  - name: f
    models: f/fold_{fold}.keras  # existing model files: this member is not trained

Flag files are looked for next to the recipe; tables and model files there or in the working
folder.
"""

import dataclasses
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from carvana_tf import flags
from carvana_tf.data.folds import read_folds
from carvana_tf.data.threshold import HIGHEST_THRESHOLD
from carvana_tf.errors import UserError, unknown_name
from carvana_tf.masks.manifest import MASKS
from carvana_tf.yaml_files import read_yaml

DEFAULT_FOLDS = 5

# What the run sets itself, for all scripts and for each.
_DATASET = (
    *("dataset_dir", "folds_source", "mask_suffix", "mask_extension", "group_pattern"),
    *("mask_values", "photo_depth", "max_pixels"),
    *("train_data_dir_name", "train_mask_dir_name", "train_mask_dir"),
    *("val_data_dir_name", "val_mask_dir_name", "val_mask_dir"),
)
_OURS = {
    "folds": ("folds_out",),
    "flags": (
        *("fold", "n_folds", "models_dir", "net_alias", "train_labels", "val_labels"),
        *("stacked_channels", "stacked_channels_dir", "overwrite", "restart", "from_epoch"),
    ),
    "predict": (
        *("fold", "weights", "pred_mask_dir", "test_data_dir", "predict_on_val"),
        *("stacked_channels_dir", "overwrite", "force", "output", "threshold"),
    ),
    "ensemble": (
        *("folds_dir", "pred_mask_dirs", "dirs_to_ensemble", "pred_mask_dir", "ensembling_dir"),
        *("member", "test_data_dir", "predict_on_val", "weights", "overwrite", "force"),
        *("threshold", "allow_in_fold", "val_data_dir_name", "stacked_channels_dir"),
    ),
    "prepare": ("photo_dirs", "mask_dirs", "output_dir", "labels", "labels_out", "overwrite"),
    "answer": ("pred_mask_dir", "pred_sample_csv", "submissions_dir", "submission_name", "labels"),
    "submission": (
        *("pred_mask_dir", "pred_sample_csv", "submissions_dir", "submission_name", "check"),
    ),
}
_RECIPE_KEYS = ("description", "folds", "members", "predict", "ensemble", "submission")
_STAGE_KEYS = ("flagfile", "flags", "pseudo")
_TRAINING_KEYS = (*_STAGE_KEYS, "stages", "start_from")
_MEMBER_KEYS = ("name", *_TRAINING_KEYS, "models", "folds", "predict", "stack", "weight")
# What `start_from` sets.
_WEIGHTS = re.compile("--?(no)?weights(=|$)")
# What `pseudo` sets.
_PSEUDO = re.compile("--?(no)?pseudo_(mask|data)_dir(=|$)")


@dataclasses.dataclass(frozen=True)
class Folds:
    """The number of folds, and the flags of `make_folds.py` that makes them, or their table."""

    number: int
    flags: tuple[str, ...]
    table: Path | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        network: Its name.
        flags: All flags of `train.py` that the recipe gives.
        pseudo: Members whose masks of the test photos are trained on too.
    """

    network: str
    flags: tuple[str, ...]
    pseudo: tuple[str, ...] = ()

    @property
    def smoke(self) -> bool:
        """Whether it is a trial."""
        return flags.is_on(self.flags, "smoke")


@dataclasses.dataclass(frozen=True)
class Member:
    """One network over all folds.

    Attributes:
        name: Unique in the recipe; part of file names.
        stages: Each starts from the last weights of the one before; none where `models` is given.
        start_from: The member from whose network of the same fold the first stage starts: its name,
            or none.
        folds: Its folds, None for the recipe's.
        predict: Flags of `predict`.
        stack: Members whose masks are its further channels.
        weight: In the ensemble, in any scale; 0 leaves it out.
        models: The existing model files, "{fold}" standing for the fold's number; None to train.
    """

    name: str
    stages: tuple[Stage, ...]
    folds: Folds | None
    predict: tuple[str, ...]
    stack: tuple[str, ...]
    weight: float
    models: str | None = None
    start_from: tuple[str, ...] = ()

    @property
    def pseudo(self) -> tuple[str, ...]:
        """All members whose masks any stage is trained on."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.pseudo))

    @property
    def needs(self) -> set[str]:
        """The members that come before this one."""
        return {*self.stack, *self.pseudo, *self.start_from}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Attributes:
        name: The file's, without its extension.
        description: Free text.
        folds: Of the members without their own, and of the ensemble.
        members: Each after those it needs.
        ensemble: Flags of `ensemble.py`, but for `fit_weights`.
        fit_weights: Whether the ensemble's weights are fitted out of fold.
        submission: Flags of `generate_encoded_submission.py`, but for `threshold`.
        threshold: Of the whole chain, 0..254; None to fit it out of fold.
    """

    name: str
    description: str
    folds: Folds
    members: tuple[Member, ...]
    ensemble: tuple[str, ...]
    fit_weights: bool
    submission: tuple[str, ...]
    threshold: int | None = None

    def named(self, names: Collection[str]) -> list[Member]:
        """The members of these names."""
        return [member for member in self.members if member.name in names]

    @property
    def postprocess(self) -> tuple[str, ...]:
        """The flag of what is done to the ensemble's masks, if anything is."""
        flag = "--postprocess="
        return tuple(each for each in self.ensemble if each.startswith(flag) and each != flag)


def read(path: Path) -> Recipe:
    """Reads a recipe and the flag files it names.

    Raises:
        UserError: It is no recipe, or contradicts itself.
    """
    path = Path(path)
    content = read_yaml(path, "--recipe")
    if isinstance(content, dict) and "task" in content:
        task = content.pop("task")
        if task != MASKS:
            raise UserError(f"'{path}' is a recipe of {task}; give --task={task}.")
    top = mapping(content, str(path), _RECIPE_KEYS)
    if not isinstance(top.get("members"), list) or not top["members"]:
        raise UserError(f"{path}: 'members' must be a list of at least one member.")
    predict = mapping(top.get("predict"), f"{path}: predict")
    members = [_member(each, path, predict) for each in top["members"]]
    folds = _folds(top.get("folds"), str(path), path.parent)
    if not any(member.weight for member in members):
        raise UserError(f"{path}: every member has weight 0; the ensemble needs one.")
    ensemble = mapping(top.get("ensemble"), f"{path}: ensemble")
    fit_weights = ensemble.pop("fit_weights", False)
    if fit_weights not in (True, False):
        raise UserError(f"{path}: ensemble: fit_weights must be true or false.")
    submission = mapping(top.get("submission"), f"{path}: submission")
    threshold = submission.pop("threshold", None)
    if threshold is not None and not _is_threshold(threshold):
        raise UserError(
            f"{path}: submission: threshold must be a whole number from 0 to {HIGHEST_THRESHOLD}, "
            f"received {threshold!r}."
        )
    return Recipe(
        name=path.stem,
        description=str(top.get("description", "")).strip(),
        folds=folds,
        members=_in_order(members, folds, path),
        ensemble=as_flags(ensemble, f"{path}: ensemble", "ensemble"),
        fit_weights=fit_weights,
        submission=as_flags(submission, f"{path}: submission", "submission"),
        threshold=threshold,
    )


def _is_threshold(value: Any) -> bool:
    return type(value) is int and 0 <= value <= HIGHEST_THRESHOLD


def _member(content: Any, path: Path, predict: Mapping[str, Any]) -> Member:
    name = content.get("name") if isinstance(content, dict) else None
    # The run's own names start with "ensemble".
    if not isinstance(name, str) or not re.fullmatch(r"(?!ensemble)\w[\w.-]*", name):
        raise UserError(
            f"{path}: every member needs a 'name' of letters, digits, _ - and . (not 'ensemble' "
            f"nor what starts with it), received {name!r}."
        )
    where = f"{path}: member '{name}'"
    values = mapping(content, where, _MEMBER_KEYS)
    own_stage = {key: values[key] for key in _STAGE_KEYS if key in values}
    models = values.get("models")
    keys = ", ".join(key for key in _TRAINING_KEYS if key in values)
    if models is not None and keys:
        raise UserError(f"{where}: with 'models' nothing is trained; drop {keys}.")
    if models is not None and (not isinstance(models, str) or "{fold}" not in models):
        raise UserError(
            f"{where}: 'models' must name the model files, with {{fold}} for the number of the "
            f"fold, as models/net-fold_{{fold}}/last.keras; received {models!r}."
        )
    stages = values.get("stages", [own_stage])
    if "stages" in values and own_stage:
        raise UserError(
            f"{where}: with 'stages', flagfile and flags stand in each stage, and so does pseudo."
        )
    if not isinstance(stages, list) or not stages:
        raise UserError(f"{where}: 'stages' must be a list of at least one stage.")
    weight = values.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e6:
        raise UserError(f"{where}: 'weight' must be a number from 0, received {weight!r}.")
    own = mapping(values.get("predict"), f"{where}: predict")
    trained = () if models else tuple(read_stage(stage, where, path.parent) for stage in stages)
    for before, stage in itertools.pairwise(trained):
        _refuse_other_network(stage, before, where)
    # A flag file may name weights, for those who use it without a recipe.
    if any("weights" in (stage.get("flags") or {}) for stage in stages[1:]):
        raise UserError(
            f"{where}: 'weights' in the flags of a later stage has no effect: it starts from the "
            "stage before; drop it, or make it a member of its own."
        )
    return Member(
        name=name,
        stages=trained,
        folds=_folds(values["folds"], where, path.parent) if "folds" in values else None,
        predict=as_flags({**predict, **own}, f"{where}: predict", "predict"),
        stack=_names(values, "stack", where),
        weight=weight,
        models=None if models is None else _find_models(path.parent, models),
        start_from=_start_from(values, trained, where),
    )


def _start_from(values: Mapping[str, Any], stages: Sequence[Stage], where: str) -> tuple[str, ...]:
    """The member whose networks the first stage starts from."""
    if "start_from" not in values:
        return ()
    name = values["start_from"]
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: 'start_from' must be the name of a member, received {name!r}.")
    _refuse_flags(stages[0].flags, _WEIGHTS, "start_from", where)
    return (name,)


def _refuse_flags(arguments: Sequence[str], pattern: re.Pattern[str], key: str, where: str) -> None:
    """Refuses a flag that a key of the recipe sets."""
    given = next((each for each in arguments if pattern.match(each)), None)
    if given:
        raise UserError(f"{where}: '{given}' contradicts '{key}', which sets it; drop one.")


def _names(values: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """The members that a key names."""
    names = values.get(key, [])
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise UserError(f"{where}: '{key}' must be a list of names of members.")
    if len(set(names)) < len(names):
        raise UserError(f"{where}: '{key}' names a member twice.")
    return tuple(names)


def _find_models(folder: Path, pattern: str) -> str:
    """The pattern, in the recipe's folder if it has the file of the first fold there."""
    near = folder / pattern
    return str(near if Path(str(near).replace("{fold}", "0")).is_file() else Path(pattern))


def read_stage(content: Any, where: str, folder: Path) -> Stage:
    """One training of a recipe.

    Args:
        content: Its mapping.
        where: Its place in the recipe, for messages.
        folder: That flag files are in.

    Raises:
        UserError: It names no network, or a flag that the run sets itself.
    """
    values = mapping(content, where, _STAGE_KEYS)
    arguments: list[str] = []
    if "flagfile" in values:
        arguments += flags.read_flagfile(folder / str(values["flagfile"]))
    arguments += as_flags(values.get("flags"), where, "flags")
    networks = [each.partition("=")[2] for each in arguments if re.match("--?network=", each)]
    if not networks:
        raise UserError(f"{where}: no --network in its flagfile or flags.")
    pseudo = _names(values, "pseudo", where)
    if pseudo:
        _refuse_flags(arguments, _PSEUDO, "pseudo", where)
    return Stage(networks[-1], tuple(arguments), pseudo)


def _folds(content: Any, where: str, folder: Path) -> Folds:
    values = mapping(content, f"{where}: folds")
    if "file" in values:
        if len(values) > 1:
            raise UserError(f"{where}: folds: 'file' is an existing table; drop the other keys.")
        name = str(values["file"])
        table = next((t for t in (folder / name, Path(name)) if t.is_file()), None)
        if table is None:
            raise UserError(
                f"{where}: folds: the table '{name}' is neither in '{folder}' nor in the working "
                "folder; make it with make_folds.py, or give n_folds instead."
            )
        numbers = sorted(set(read_folds(table)["fold"]))
        if len(numbers) < 2 or numbers != list(range(len(numbers))):
            raise UserError(
                f"{where}: folds: '{table}' has the folds {', '.join(map(str, numbers))}; a recipe "
                "needs two or more, numbered from 0."
            )
        return Folds(len(numbers), (), table)
    number = values.setdefault("n_folds", DEFAULT_FOLDS)
    if isinstance(number, bool) or not isinstance(number, int) or number < 2:
        raise UserError(f"{where}: folds: n_folds must be a number from 2, received {number!r}.")
    return Folds(number, as_flags(values, f"{where}: folds", "folds"))


def _in_order(members: Sequence[Member], folds: Folds, path: Path) -> tuple[Member, ...]:
    """The members, each after those it needs, else as they stand."""
    table: dict[str, Member] = {}
    for member in members:
        if member.name in table:
            raise UserError(f"{path}: two members are named '{member.name}'; rename one.")
        table[member.name] = member
    for member in members:
        where = f"{path}: member '{member.name}'"
        for key, names in (
            ("stack", member.stack),
            ("pseudo", member.pseudo),
            ("start_from", member.start_from),
        ):
            for base in names:
                if base not in table:
                    raise unknown_name(f"{where}: {key}:", base, table)
        for name in member.start_from:
            _refuse_other_start(member, table[name], folds, where)
        _refuse_leaking_labels(member, [table[name] for name in member.pseudo], folds, where)
    ordered: dict[str, Member] = {}
    while len(ordered) < len(members):
        ready = [m for m in members if m.name not in ordered and m.needs <= ordered.keys()]
        if not ready:
            circle = ", ".join(name for name in table if name not in ordered)
            raise UserError(f"{path}: members need each other in a circle: {circle}.")
        ordered[ready[0].name] = ready[0]
    return tuple(ordered.values())


def _refuse_other_start(member: Member, base: Member, folds: Folds, where: str) -> None:
    """Refuses a network that a member must not start from, before anything is trained.

    Raises:
        UserError: It may know the photos that a fold of this member is validated on, is of
            another network, or is stacked on other members.
    """
    _refuse_other_folds(member, base, folds, f"{where}: start_from")
    if base.stages:
        _refuse_other_network(member.stages[0], base.stages[-1], f"{where}: start_from")
    if base.stack != member.stack:
        raise UserError(
            f"{where}: start_from: '{base.name}' is stacked on other members, or in another order; "
            "give both the same 'stack'."
        )


def _refuse_other_network(stage: Stage, before: Stage, where: str) -> None:
    """Refuses a training that cannot load the weights of the one it starts from.

    Raises:
        UserError: It is of another network, and does not take a part of the weights; or the other
            one is a trial, whose networks are narrow.
    """
    if stage.smoke:  # it loads no weights
        return
    if before.smoke:
        raise UserError(
            f"{where}: cannot start from a network of --smoke; drop the flag there, or give it to "
            "both."
        )
    partial = flags.is_on(stage.flags, "allow_partial_weights")
    if stage.network != before.network and not partial:
        raise UserError(
            f"{where}: {stage.network} cannot start from the weights of {before.network}; give "
            "both the same network, or the second one --allow_partial_weights."
        )


def _refuse_other_folds(member: Member, base: Member, folds: Folds, where: str) -> None:
    if (base.folds or folds) != (member.folds or folds):
        raise UserError(
            f"{where}: '{base.name}' has other folds, so its networks know photos that this member "
            "is validated on; give both the same 'folds'."
        )


def _refuse_leaking_labels(
    member: Member, bases: Sequence[Member], folds: Folds, where: str
) -> None:
    """Refuses pseudo-labels that `train.py` would refuse, days later.

    Raises:
        UserError: They may know the photos that a fold of this member is validated on.
    """
    if bases and member.stack:
        raise UserError(
            f"{where}: 'stack' and 'pseudo' exclude each other: the channels of test photos come "
            "from networks that know every fold; drop one."
        )
    for base in bases:
        if base.stack:
            raise UserError(
                f"{where}: pseudo: '{base.name}' is stacked on networks that know the photos of "
                "every fold; name members without 'stack'."
            )
        _refuse_other_folds(member, base, folds, f"{where}: pseudo")


def mapping(content: Any, where: str, known: Collection[str] = ()) -> dict[str, Any]:
    """A copy of a YAML mapping, {} for None; its keys must be in `known` where that is given."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{where} must be a mapping of names to values, received {content!r}.")
    for key in content:
        if known and key not in known:
            raise unknown_name(f"{where}: the key", str(key), known)
    return {str(key): value for key, value in content.items()}


def as_flags(content: Any, where: str, section: str) -> tuple[str, ...]:
    """A YAML mapping of flags as arguments.

    Args:
        content: The mapping.
        where: Its place in the recipe, for messages.
        section: Key of `_OURS`: flags that the run sets itself are refused.

    Raises:
        UserError: A flag is one of these, or has no value.
    """
    arguments = []
    for name, value in mapping(content, where).items():
        if name in (*_DATASET, *_OURS[section]):
            hint = " ('submission' may set it for all)" if name == "threshold" else ""
            raise UserError(f"{where}: --{name} is set by train_and_predict.py; drop it{hint}.")
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no{name}")
        elif isinstance(value, list):
            arguments.append(f"--{name}={','.join(map(str, value))}")
        elif isinstance(value, str | int | float):
            arguments.append(f"--{name}={value}")
        else:
            raise UserError(f"{where}: --{name} needs a value, received {value!r}.")
    return tuple(arguments)
