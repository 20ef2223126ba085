"""Combines folders of probability PNGs, photo by photo, into one.

python ensemble.py --pred_mask_dirs=masks/a,masks/b --pred_mask_dir=masks/ensemble

A --member may also be a model; its photos are predicted first.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from carvana_tf import cluster
from carvana_tf.child import Child
from carvana_tf.cli import Command
from carvana_tf.data import bad_files, names
from carvana_tf.data.folds import find_folds_file, read_folds
from carvana_tf.data.threshold import DEFAULT_THRESHOLD, HIGHEST_THRESHOLD
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.evaluation import ensemble_weights
from carvana_tf.files import digest
from carvana_tf.flags import Needs, Values, option
from carvana_tf.masks import combining, ensembling, postprocess
from carvana_tf.masks.open_folder import open_folder, warn_or_raise
from carvana_tf.options import DatasetOptions
from carvana_tf.shards import ShardOptions, own_folder
from carvana_tf.tasks.options import TaskOptions

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
        "Fit the weights of the mean to the ground truth in --dataset_dir, for each fold on the "
        "other folds. The folders must be out of fold.",
    )
    train_mask_dir_name: str = option(
        "train_masks",
        "Folder of the ground-truth masks, for --fit_weights.",
        alias="train_mask_dir",
        key="masks",
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
    force: bool = option(False, "Go on where folders do not fit; the manifest records it.")
    overwrite: bool = option(False, "Make PNGs that are there again.")

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


def run(values: Values) -> None:
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
    forced = [*plan.problems, *ensembling.mixed_sizes(plan, options.threads, force=options.force)]
    if options.fit_weights and not plan.out_of_fold:
        unknown = "--fit_weights on masks not known to be out of fold"
        forced.append(warn_or_raise(unknown, force=options.force))
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    threshold, contradictions = ensembling.common_threshold(
        plan, options.threshold, force=options.force
    )
    rule = ensembling.Rule(
        options.rule,
        _find_weights(plan, dataset, options, threshold),
        postprocess.parse(options.postprocess, threshold),
    )
    made = ensembling.describe(plan, rule, [*forced, *contradictions])
    shard = values[ShardOptions].chosen
    bad = ensembling.combine(
        plan, rule, folder, made, options.threads, overwrite=options.overwrite, shard=shard
    )
    done = sum(shard is None or shard.has(stem) for stem in plan.stems) - len(bad)
    print(f"{done} masks -> {folder}")
    for _, problem in bad:
        print(f"unreadable: {names.printable(problem)}", file=sys.stderr)
    if bad:
        raise UserError(
            f"{len(bad)} photos have no combined mask, see above and "
            f"'{own_folder(folder, shard) / bad_files.NAME}'; "
            "predict their masks again, and run the same command again."
        )


def elsewhere(values: Values) -> int | None:
    """Combines on the cluster that --ray_address names."""
    options, shards = values[EnsembleOptions], values[ShardOptions]
    if not shards.ray_address:
        return None
    folder = Path(options.pred_mask_dir or "")
    work = cluster.Work("ensemble", values.arguments, folder, "combined mask", options.threads)
    count = cluster.run(work, shards)
    print(f"{count} shards -> {folder}")
    return 0


def check_flags(values: Values, problems: Problems) -> None:
    """Adds flags that contradict each other, and steps that do not exist."""
    options = values[EnsembleOptions]
    problems.attempt(postprocess.parse, options.postprocess)
    if options.weights and options.fit_weights:
        problems.add("--weights and --fit_weights contradict each other; leave one out.")
    if options.weights and options.rule == "median":
        problems.add("--strategy=median has no weights; leave --weights out.")
    models = [name for name in options.member if name.endswith(".keras")]
    if values[ShardOptions].divided and models:
        problems.add(
            f"--num_shards combines masks, and --member='{models[0]}' is a model; predict it with "
            "predict_multithreaded.py, which has the same flag, and name that folder."
        )
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
            problems.add(f"the folder '{path}' {absent(path)}")
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


def _find_weights(
    plan: ensembling.EnsemblePlan, dataset: DatasetOptions, options: EnsembleOptions, threshold: int
) -> ensembling.Weights:
    if not options.fit_weights:
        return ensembling.given_weights(plan, options.weights)
    weights, fit, photos = ensemble_weights.fit_members(
        plan,
        dataset.folder(options.train_mask_dir_name),
        read_folds(find_folds_file(dataset.folds_source, Path(dataset.dataset_dir))),
        dataset.naming,
        dataset.reading,
        threshold,
        options.threads,
        Path(options.pred_mask_dir or ""),
    )
    for folders, weight in zip(plan.names, fit.deployed, strict=True):
        print(f"weight {weight:.3f} {' + '.join(folders)}")
    print(
        f"mean Dice of {photos} photos: equal weights {fit.equal:.5f}, fitted (naive) "
        f"{fit.naive:.5f}, cross-fitted {fit.cross_fitted:.5f}"
        + (" (before --postprocess)" if options.postprocess else "")
    )
    return weights


COMMAND = Command(
    __doc__,
    (TaskOptions, EnsembleOptions, ShardOptions, DatasetOptions),
    run,
    validate,
    check_flags,
    elsewhere,
    variants={"labels": "carvana_tf.commands.ensemble_labels"},
)
