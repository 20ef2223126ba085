"""Combines folders of probability PNGs, photo by photo, into one.

python ensemble.py --pred_mask_dirs=masks/a,masks/b --pred_mask_dir=masks/ensemble

A --member may also be a model; its photos are predicted first.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from carvana_tf import __version__
from carvana_tf.child import Child
from carvana_tf.cli import Command
from carvana_tf.data import bad_files, names
from carvana_tf.data.dataset import list_masks
from carvana_tf.data.folds import by_id, find_folds, find_folds_file, read_folds
from carvana_tf.data.images import UnreadableImage, read_grey, read_mask, read_size, resize
from carvana_tf.data.mask_values import all_empty
from carvana_tf.data.threshold import DEFAULT_THRESHOLD, HIGHEST_THRESHOLD
from carvana_tf.errors import Problems, UserError
from carvana_tf.evaluation import ensemble_weights
from carvana_tf.files import Group, digest, digest_of_lines, held
from carvana_tf.flags import Needs, Values, option
from carvana_tf.interrupt import Interrupt, interruptible
from carvana_tf.masks import combining, ensembling, manifest, postprocess
from carvana_tf.masks.folder import MaskFolder, choose_threshold, open_folder, overrule
from carvana_tf.options import DatasetOptions
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

# Names of the published system.
_SYNONYMS = {"average": "mean", "hard_voting": "vote"}


@dataclasses.dataclass(frozen=True)
class EnsembleOptions:
    """The folders to combine, and how."""

    pred_mask_dirs: tuple[str, ...] = option(
        (),
        "Folders to combine, comma-separated. Folders without common photos, of one network, "
        "are one member (folds).",
        alias="dirs_to_ensemble",
    )
    member: tuple[str, ...] = option(
        (),
        "Further folders, or model files (.keras): a model predicts --test_data_dir, or its fold "
        "with --predict_on_val, into 'members' inside --pred_mask_dir first.",
    )
    test_data_dir: str | None = option(
        None, "Photos for members that are models; by default 'test' inside --dataset_dir."
    )
    predict_on_val: bool = option(
        False, "Members that are models predict the photos of the fold they have not seen."
    )
    val_data_dir_name: str | None = option(
        None,
        "Folder, inside --dataset_dir, of the photos for --predict_on_val; by default the one that "
        "the model names, else 'train'.",
        advanced=True,
    )
    stacked_channels_dir: str | None = option(
        None,
        "Mask folders for members that are models with stacked channels, as of "
        "predict_multithreaded.py; with --predict_on_val by default those of their training.",
        advanced=True,
    )
    folds_dir: str = option("", "Folder that --pred_mask_dirs are in.", advanced=True)
    pred_mask_dir: str | None = option(
        None, "Folder for the PNGs; a half filled one is completed.", alias="ensembling_dir"
    )
    strategy: str = option(
        "mean",
        "How masks become one; 'average' is mean, 'hard_voting' is vote (a tie is decided by "
        "the mean).",
        choices=(*combining.STRATEGIES, *_SYNONYMS),
        alias="ensembling_strategy",
    )
    weights: tuple[str, ...] = option((), "One number per member, in any scale; equal by default.")
    fit_weights: bool = option(
        False,
        "Fit the weights of the mean to the truth in --dataset_dir, for each fold on the other "
        "folds. The folders must be out of fold.",
    )
    train_mask_dir_name: str = option(
        "train_masks", "Folder of the truth masks, for --fit_weights.", alias="train_mask_dir"
    )
    postprocess: tuple[str, ...] = option(
        (),
        "Steps applied in order: convex_roof, convex_fill, largest, fill_holes, "
        "min_component:PIXELS.",
    )
    threshold: int | None = option(
        None,
        "A grey value greater than this is object: for --postprocess, votes and --fit_weights; by "
        f"default the one the folders were post-processed at, else {DEFAULT_THRESHOLD}.",
        lower=0,
        upper=HIGHEST_THRESHOLD,
    )
    threads: int = option(
        4, "Threads that read, combine and write.", lower=1, alias="ensembling_cpu_threads"
    )
    allow_in_fold: bool = option(
        False,
        "Combine folders that are out of fold with some that are not, as of photos that are not "
        "scored; the manifest says that the result is not.",
        advanced=True,
    )
    gpu: str | None = option(
        None, "Accepted and ignored: masks are combined by the processor.", advanced=True
    )
    pred_batch_size: int | None = option(
        None, "Accepted and ignored: each photo by itself.", advanced=True
    )
    force: bool = option(False, "Go on where folders do not fit; the manifest will tell.")
    overwrite: bool = option(False, "Make PNGs that are there anew.")

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("test_data_dir", "predict_on_val", "stacked_channels_dir"),
            lambda o: any(name.endswith(".keras") for name in o.member),
            "without a model file as --member",
        ),
        Needs(("test_data_dir",), lambda o: not o.predict_on_val, "with --predict_on_val"),
        Needs(("val_data_dir_name",), lambda o: o.predict_on_val, "without --predict_on_val"),
        Needs(("folds_dir",), lambda o: o.pred_mask_dirs, "without --pred_mask_dirs"),
        Needs(("train_mask_dir_name",), lambda o: o.fit_weights, "without --fit_weights"),
    )

    @property
    def rule(self) -> str:
        """The strategy, by its own name."""
        return _SYNONYMS.get(self.strategy, self.strategy)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Each member's weight: of photos in `by_photo`, and of all others. None means equal."""

    default: list[float] | None = None
    by_photo: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    fitted: ensemble_weights.Fit | None = None


def run(values: Values) -> int:
    """Checks where the masks come from, finds the weights, and combines what is not done."""
    dataset, options = values[DatasetOptions], values[EnsembleOptions]
    folder = Path(options.pred_mask_dir or "")
    paths = [*_folders(options), *map(Path, options.member)]
    _refuse_unused_channels(paths, options)
    paths = [_predicted(path, folder, values) for path in paths]
    plan = ensembling.plan(
        [open_folder(path) for path in paths],
        allow_in_fold=options.allow_in_fold,
        force=options.force,
    )
    problems = [*plan.problems, *_mixed_sizes(plan, options)]
    if options.fit_weights and not plan.out_of_fold:
        unknown = "--fit_weights on masks not known to be out of fold"
        problems.append(overrule(unknown, force=options.force))
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    threshold, contradictions = _threshold(plan, options)
    problems += contradictions
    steps = postprocess.parse(options.postprocess, threshold)
    weights = _find_weights(plan, dataset, options, threshold)
    origin = _describe(plan, weights, options, threshold, problems)

    with Interrupt() as interrupt, held(folder), Group() as group:
        present = manifest.begin(folder, origin, plan.stems, overwrite=options.overwrite)
        todo = [stem for stem in plan.stems if stem not in present]
        counts = f"{len(plan.stems)} photos, {len(present)} already combined"
        print(f"{counts}; {len(plan.members)} members")

        def one(stem: str) -> tuple[str, str] | None:
            chosen = weights.by_photo.get(stem, weights.default)
            save = group.write_bytes
            try:
                ensembling.combine_photo(
                    plan, stem, folder, options.rule, chosen, steps, threshold, save
                )
            except UnreadableImage as error:
                return f"{stem}.png", str(error)
            return None

        made = interruptible(ordered_map(one, todo, options.threads), interrupt)
        bad = [result for result in bar(made, total=len(todo), unit="mask") if result is not None]
        bad_files.record(folder, bad)
    print(f"{len(plan.stems) - len(bad)} masks -> {folder}")
    if not bad:
        return 0
    for _, problem in bad:
        print(f"unreadable: {names.printable(problem)}", file=sys.stderr)
    raise UserError(
        f"{len(bad)} photos have no combined mask, see above and '{folder / bad_files.NAME}'; "
        "predict their masks again, and run the same command again."
    )


def check_flags(values: Values, problems: Problems) -> None:
    """Adds flags that contradict each other, and steps that do not exist."""
    options = values[EnsembleOptions]
    problems.attempt(postprocess.parse, options.postprocess)
    if options.weights and options.fit_weights:
        problems.add("--weights and --fit_weights contradict each other; leave one out.")
    if options.weights and options.rule == "median":
        problems.add("--strategy=median has no weights; leave --weights out.")
    if options.fit_weights and options.rule != "mean":
        problems.add(
            f"--fit_weights fits those of the mean, not of '{options.rule}'; use --strategy=mean."
        )


def validate(values: Values, problems: Problems) -> None:
    """Adds what is wrong with flags, members and folders."""
    dataset, options = values[DatasetOptions], values[EnsembleOptions]
    check_flags(values, problems)
    if not options.pred_mask_dirs and not options.member:
        problems.add("--pred_mask_dirs is missing; name the folders to combine, or --member.")
    if not options.pred_mask_dir:
        problems.add("--pred_mask_dir is missing; name the folder for the combined masks.")
    paths = _folders(options)
    members = [Path(name) for name in options.member]
    for path in (*paths, *members):
        if path.suffix in (".h5", ".hdf5"):
            problems.add(
                f"--member '{path}' does not say which network its weights are of; predict it with "
                "predict_multithreaded.py --network=…, and name that folder."
            )
        elif path in members and path.suffix == ".keras" and not path.is_file():
            problems.add(f"--member '{path}' does not exist; name a model file or a mask folder.")
        elif path.suffix != ".keras" and not path.is_dir():
            problems.add(f"the folder '{path}' does not exist; correct its name.")
    paths += members
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(paths):
        problems.add("--pred_mask_dirs or --member names one twice; --weights counts it more.")
    target = Path(options.pred_mask_dir or "")
    if options.pred_mask_dir and target.resolve() in resolved:
        problems.add(f"--pred_mask_dir='{target}' is one of --pred_mask_dirs; choose another.")
    if options.fit_weights:
        flag = "train_mask_dir_name"
        problems.attempt(dataset.existing_folder, options.train_mask_dir_name, flag)
        problems.attempt(find_folds_file, dataset.folds_source, Path(dataset.dataset_dir))


def _folders(options: EnsembleOptions) -> list[Path]:
    return [Path(options.folds_dir) / name for name in options.pred_mask_dirs]


def _refuse_unused_channels(paths: Sequence[Path], options: EnsembleOptions) -> None:
    """Refuses masks for stacked channels that no member takes."""
    if options.stacked_channels_dir is None:
        return
    # Combining alone imports no Keras.
    from carvana_tf import devices  # noqa: F401  (starts the backend without its messages)
    from carvana_tf.models.model_file import read_metadata

    models = [path for path in paths if path.suffix == ".keras"]
    if not any(read_metadata(path).get("stacked_channels") for path in models):
        raise UserError(
            f"--stacked_channels_dir='{options.stacked_channels_dir}' has no effect: no --member "
            "takes stacked channels; leave it out."
        )


def _predicted(path: Path, target: Path, values: Values) -> Path:
    """A member's masks: its folder, or for a model the folder that it predicts into now.

    The model runs in a process of its own: combining alone needs no Keras.
    """
    if path.suffix != ".keras":
        return path
    folder = target / "members" / digest(path)[:16]
    arguments = [f"--weights={path}", f"--pred_mask_dir={folder}", *_photos_of(path, values)]
    print(f"member '{path}' -> {folder}", flush=True)
    with Child() as child:
        status = child.run(["predict", *arguments])
    if status:
        raise UserError(
            f"--member '{path}' was not predicted; correct what is reported above, or predict it "
            "with predict_multithreaded.py and name that folder."
        )
    return folder


def _photos_of(path: Path, values: Values) -> list[str]:
    """The flags that say which photos a model predicts, and where its stacked channels are.

    How photos are named, and where they are, a model file knows from its training; flags that
    are given win.
    """
    # Combining alone imports no Keras.
    from carvana_tf import devices  # noqa: F401  (starts the backend without its messages)
    from carvana_tf.models.model_file import read_metadata

    dataset, options = values[DatasetOptions], values[EnsembleOptions]
    trained = read_metadata(path)
    names = ("mask_suffix", "mask_extension", "group_pattern")
    naming = {n: trained[n] for n in names if n in trained and not values.is_set(n)}
    dataset = dataclasses.replace(dataset, **naming)
    flags = [f"--{name}={value}" for name, value in dataclasses.asdict(dataset).items()]
    channels, stacked = trained.get("stacked_channels", 0), options.stacked_channels_dir
    if options.predict_on_val:
        photos = options.val_data_dir_name or trained.get("val_data_dir_name", "train")
        flags += ["--predict_on_val", f"--val_data_dir_name={photos}"]
        stacked = stacked or trained.get("stacked_channels_dir")
    elif options.test_data_dir:
        flags += [f"--test_data_dir={options.test_data_dir}"]
    if not channels:
        return flags
    if not stacked:
        raise UserError(
            f"--member '{path}' takes {channels} stacked channels; name the masks of its photos "
            "with --stacked_channels_dir."
        )
    return [*flags, f"--stacked_channels_dir={stacked}"]


def _mixed_sizes(plan: ensembling.Plan, options: EnsembleOptions) -> list[str]:
    """The first photo whose masks differ in size; with --force they are resized to the first.

    Masks that cannot be read are left to the combining, which lists them all.
    """

    def sizes(stem: str) -> list[tuple[Path, tuple[int, int]]]:
        try:
            return [(path, read_size(path)) for _, path in plan.files(stem)]
        except UnreadableImage:
            return []

    for found in interruptible(ordered_map(sizes, plan.stems, options.threads)):
        if not found:
            continue
        (first, size), *others = found
        for path, other in others:
            if other != size:
                problem = (
                    f"'{path}' is {other[1]}x{other[0]}, but '{first}' is {size[1]}x{size[0]}; "
                    "predict both at the photo's own size"
                )
                return [overrule(problem, force=options.force)]
    return []


def _threshold(plan: ensembling.Plan, options: EnsembleOptions) -> tuple[int, list[str]]:
    """The threshold that all folders may be cut at, and refusals that were overruled."""
    decided = [folder for folder in plan.folders if folder.threshold is not None]
    problems: list[str] = []
    for folder in decided[1:]:
        if folder.threshold != decided[0].threshold:
            problem = (
                f"'{decided[0].path}' was post-processed at grey > {decided[0].threshold}, but "
                f"'{folder.path}' at {folder.threshold}: no threshold is right for both; make one "
                "of them again with the other's --threshold"
            )
            problems.append(overrule(problem, force=options.force))
            break
    first = (decided or plan.folders)[0]
    threshold, contradictions = choose_threshold(
        first.path, first.manifest, options.threshold, force=options.force
    )
    return threshold, [*problems, *contradictions]


def _find_weights(
    plan: ensembling.Plan, dataset: DatasetOptions, options: EnsembleOptions, threshold: int
) -> _Weights:
    if options.fit_weights:
        return _fit(plan, dataset, options, threshold)
    if not options.weights:
        return _Weights()
    if len(options.weights) != len(plan.members):
        members = "; ".join(" + ".join(map(str, _names(member))) for member in plan.members)
        raise UserError(
            f"--weights has {len(options.weights)} numbers for {len(plan.members)} members "
            f"({members}); give one for each."
        )
    try:
        numbers = [float(text) for text in options.weights]
    except ValueError as error:
        raise UserError(
            f"--weights={','.join(options.weights)}: {error}; give one number per member."
        ) from error
    return _Weights(combining.normalise(numbers))


def _fit(
    plan: ensembling.Plan, dataset: DatasetOptions, options: EnsembleOptions, threshold: int
) -> _Weights:
    truth_dir = dataset.folder(options.train_mask_dir_name)
    truths = names.rekey(list_masks(truth_dir, dataset.naming), plan.stems, f"'{truth_dir}'")
    reading, objects = dataset.reading, []
    table = read_folds(find_folds_file(dataset.folds_source, Path(dataset.dataset_dir)))
    known = find_folds({stem: dataset.naming.group(stem) for stem in plan.stems}, by_id(table))
    stems = [s for s in known if s in truths and len(plan.files(s)) == len(plan.members)]
    if len({known[stem] for stem in stems}) < 2:
        raise UserError(
            f"--fit_weights needs photos of two folds with truth, found {len(stems)} of "
            f"{len({known[stem] for stem in stems})}; see --dataset_dir and --folds_source."
        )

    bad: list[tuple[str, str]] = []

    def observe(stem: str) -> ensemble_weights.Photo:
        try:
            truth = read_mask(truths[stem], reading)
            greys = [resize(read_grey(path), *truth.shape) for _, path in plan.files(stem)]
        except UnreadableImage as error:  # all are found before the fit is given up
            bad.append((f"{stem}.png", str(error)))
            truth = np.zeros((1, 1), bool)
            greys = [truth.view(np.uint8)] * len(plan.members)
        objects.append(np.count_nonzero(truth))
        return ensemble_weights.observe(greys, truth, threshold)

    read = interruptible(ordered_map(observe, stems, options.threads))
    photos = bar(read, total=len(stems), desc="fitting weights", unit="photo")
    fit = ensemble_weights.cross_fit(photos, [known[stem] for stem in stems])
    if bad:
        # Weights fitted without them would be others once they are there.
        target = Path(options.pred_mask_dir or "")
        raise UserError(bad_files.describe(bad, target, "weights are fitted"))
    if not any(objects):
        raise all_empty(len(stems), "truth masks")
    for member, weight in zip(plan.members, fit.deployed, strict=True):
        print(f"weight {weight:.3f} {' + '.join(_names(member))}")
    print(
        f"mean Dice of {len(stems)} photos: equal weights {fit.equal:.5f}, fitted (naive) "
        f"{fit.naive:.5f}, cross-fitted {fit.cross_fitted:.5f}"
        + (" (before --postprocess)" if options.postprocess else "")
    )
    by_photo = {s: fit.by_fold[fold] for s, fold in known.items() if fold in fit.by_fold}
    return _Weights(fit.deployed, by_photo, fit)


def _names(member: Sequence[MaskFolder]) -> list[str]:
    return [folder.path.name for folder in member]


def _origin(folder: MaskFolder) -> str:
    """What made a folder, whatever it was called and whichever version wrote it down."""
    if folder.manifest is None:
        return ""
    told = dataclasses.asdict(folder.manifest)
    return json.dumps({k: v for k, v in told.items() if k not in manifest.FREE}, sort_keys=True)


def _describe(
    plan: ensembling.Plan,
    weights: _Weights,
    options: EnsembleOptions,
    threshold: int,
    problems: Sequence[str],
) -> manifest.Manifest:
    known = [folder.manifest for folder in plan.folders if folder.manifest is not None]

    def common(values: set[str]) -> str:
        return values.pop() if len(values) == 1 else "mixed" if values else "unknown"

    models = [model for one in known for model in one.models]
    # Of a folder without manifest that much is known: there was a model.
    models += [
        {"file": None, "network": None, "fold": None, "training_groups": None}
        for folder in plan.folders
        if folder.manifest is None
    ]
    distinct = [model for i, model in enumerate(models) if model not in models[:i]]
    stacked = sorted({one.stacked for one in known if one.stacked is not None})
    ensemble: dict[str, Any] = {
        "strategy": options.rule,
        "weights": weights.default,
        "postprocess": ",".join(options.postprocess),
        "threshold": threshold,
        "members": [_names(member) for member in plan.members],
        # Masks of other tiles, boxes or engines, under the same name, are others.
        "manifests_digest": digest_of_lines([_origin(folder) for folder in plan.folders]),
        "forced": list(problems),
    }
    if weights.fitted is not None:
        ensemble["fitted"] = dataclasses.asdict(weights.fitted)
    decides = options.postprocess or options.rule == "vote"
    decided = decides or any(folder.threshold is not None for folder in plan.folders)
    return manifest.Manifest(
        models=tuple(distinct),
        out_of_fold=plan.out_of_fold and not problems,
        tta=common({one.tta for one in known}),
        engine=common({one.engine for one in known}),
        dtype=common({one.dtype for one in known}),
        photos=len(plan.stems),
        photos_digest=digest_of_lines(plan.stems),
        encoding=manifest.ENCODING,
        version=__version__,
        ensemble=ensemble,
        stacked=digest_of_lines(stacked) if stacked else None,
        threshold=threshold if decided else None,
        extensions=_extensions(plan),
    )


def _extensions(plan: ensembling.Plan) -> dict[str, list[str]] | None:
    """The photos' extensions, where manifests tell that of each, and all the same."""
    told: dict[str, set[str]] = {stem: set() for stem in plan.stems}
    for folder in plan.folders:
        if folder.manifest is not None:
            for stem, name in folder.manifest.photo_names(folder.masks).items():
                told[stem].add(names.extension(name))
    if any(len(extensions) != 1 for extensions in told.values()):
        return None
    return manifest.extensions_of((stem, each) for stem, (each,) in told.items())


COMMAND = Command(__doc__, (EnsembleOptions, DatasetOptions), run, validate, check_flags)
