"""Flags for a training, chosen by what is known of the photos and the machine.

Rules rather than a search, after nnU-Net (Isensee et al., Nature Methods 18, 2021): a few facts of
the dataset decide what the network sees, and the time there is decides how large it is and how
long it is trained. docs/plan.md says what each rule rests on.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from carvana_tf.data.facts import Facts
from carvana_tf.data.layout import FOLD_COUNT
from carvana_tf.errors import UserError
from carvana_tf.models.encoders import RANDOM
from carvana_tf.models.networks import find

CORE_SECONDS = {
    "efficientnet_lite0": 2.9,
    "mobilenet": 4.1,
    "simple_unet": 3.3,
    "unet_bn": 2.0,
}
"""Seconds of one processor core that a training step takes for each million pixels of its batch.

Measured in bfloat16 on two cores of an AMD EPYC with AVX512-BF16: benchmarks/networks.csv and
docs/quality.md.
"""
_OTHER_SECONDS = 10.0  # of a network that was not measured
_START_SECONDS = 50.0  # of one core, from the command to the end of the first step
_SAVE_SECONDS = 3.0  # of one core, after each epoch

PRETRAINED = ("efficientnet_lite0", "mobilenet")
"""Networks to start from ImageNet weights, the better one first."""
FROM_SCRATCH = "unet_bn"
"""The network to start from random weights."""

_SHORT_RATES = {
    "efficientnet_lite0": (0.003, 400),
    "mobilenet": (0.003, 400),
    "simple_unet": (0.004, 500),
    FROM_SCRATCH: (0.004, 900),
}
"""Rates that short trainings did best with, and the most steps that they were tried with.

Of benchmarks/defaults.csv, networks.csv and plan.csv; longer trainings have a network's default.
"""
_BYTES = 3000  # of memory for each pixel of a batch; efficientnet_lite0 in bfloat16 takes 2000
_MEMORY_SHARE = 0.5  # of the free memory that a step may take
_FORWARD = 1 / 3  # of the seconds of a step, to predict as many pixels
_BATCH, _MOST_BATCH = 4, 16
_MANY_STEPS = 4000  # where there is time for more, batches are larger
_LEAST_STEPS = 20  # fewer teach nothing
_STEPS_PER_PIXEL = 450 / (480 * 320)
_LEAST_PIXELS, _MOST_PIXELS = 96 * 96, 768 * 512
_CROP = 256
_LEAST_CROP = 128
_SMALL_SIDE = 1 / 8  # of an object, as a share of its photo's
_MANY_OBJECTS = 4
_VALIDATIONS, _VALIDATION_SHARE = 5, 0.1
_SCORING_SHARE = 0.2  # of the time, that scoring whole photos may take
_WARMUP_SHARE, _MOST_WARMUP = 0.07, 100
_EPOCH_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long a training of one network takes.

    Attributes:
        start: Seconds from the command to the end of the first step.
        save: Seconds after each epoch, to save model and state.
        per_step: Seconds of a step, whatever its size.
        per_megapixel: Seconds more for each million pixels of its batch.
        measured: Whether it was measured, or is an estimate.
    """

    start: float
    save: float
    per_step: float
    per_megapixel: float
    measured: bool

    def step(self, pixels: float) -> float:
        """Seconds of a step on a batch of so many pixels."""
        return self.per_step + self.per_megapixel * pixels / 1e6


def estimated(network: str, cores: int) -> Speed:
    """The speed of a network on a processor of so many cores, from `CORE_SECONDS`."""
    seconds = CORE_SECONDS.get(network, _OTHER_SECONDS) / cores
    used = min(cores, 4)
    return Speed(_START_SECONDS / used, _SAVE_SECONDS / used, 0.0, seconds, measured=False)


def fitted(timings: Sequence[tuple[float, float]], start: float, save: float) -> Speed:
    """The speed from measured steps.

    Args:
        timings: Pixels of a batch and seconds of its step. Of one alone all time is taken to be
            for its pixels.
        start: As `Speed` has it.
        save: As `Speed` has it.
    """
    (first, seconds), (last, longer) = min(timings), max(timings)
    slope = seconds / first
    if last > first:
        slope = min(max((longer - seconds) / (last - first), 0.1 * slope), slope)
    return Speed(start, save, max(seconds - slope * first, 0.0), 1e6 * slope, measured=True)


@dataclasses.dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        network: As --network has it.
        weights: As --weights has it.
        reason: Why.
    """

    network: str
    weights: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a training may take.

    Attributes:
        minutes: From the command to its end, of one fold.
        memory: Free bytes; 0 where that is not known.
        speed: Of the network.
    """

    minutes: float
    memory: float
    speed: Speed

    @property
    def seconds(self) -> float:
        """For steps and validations."""
        return 60 * self.minutes - self.speed.start


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the network sees in a step.

    Attributes:
        policy: As --size_policy has it.
        height: Rows.
        width: Columns.
        batch: Photos.
    """

    policy: str
    height: int
    width: int
    batch: int

    @property
    def pixels(self) -> int:
        """Of a batch."""
        return self.height * self.width * self.batch


@dataclasses.dataclass(frozen=True)
class Choice:
    """A flag, its value, and why."""

    flag: str
    value: object
    reason: str


@dataclasses.dataclass(frozen=True)
class Proposal:
    """All that was chosen.

    Attributes:
        choices: In the order of the flag file.
        shape: What the network sees.
        steps: Of the whole training.
        seconds: That it should take, start and validations included.
    """

    choices: Sequence[Choice]
    shape: Shape
    steps: int
    seconds: float


def refuse_short(budget: Budget) -> None:
    """Ensures that there is time for a training.

    Raises:
        UserError: There is not.
    """
    speed = budget.speed
    needed = speed.start + speed.save + _LEAST_STEPS * speed.step(_BATCH * _LEAST_PIXELS)
    if 60 * budget.minutes < needed:
        raise UserError(
            f"--minutes={budget.minutes:g} is too short: a start of {speed.start:.0f} seconds and "
            f"{_LEAST_STEPS} steps of the smallest size take {needed:.0f} seconds here; give "
            f"--minutes={math.ceil(needed / 60) + 1} or more."
        )


def choose_shape(facts: Facts, network: str, budget: Budget) -> Shape:
    """The size of a network's input, and of a batch, from the time and memory there is."""
    stride, speed = find(network).stride, budget.speed
    if _crops(facts, budget):
        side = min(_CROP, *facts.least) // stride * stride
        policy, height, width = "crop", side, side
    else:
        # As many steps for each pixel as in the training that the rule was taken from.
        seconds = max(budget.seconds, 0.0)
        pixels = (seconds / (_STEPS_PER_PIXEL * _BATCH * speed.per_megapixel / 1e6)) ** 0.5
        pixels = min(max(pixels, _LEAST_PIXELS), _MOST_PIXELS, facts.height * facts.width)
        policy, (height, width) = "resize", _near(pixels, facts.width / facts.height, stride)
    batch, pixels = _BATCH, height * width
    while batch < _MOST_BATCH and budget.seconds > _MANY_STEPS * speed.step(2 * batch * pixels):
        batch *= 2
    while batch > 1 and memory_of(Shape(policy, height, width, batch)) > budget.memory > 0:
        batch //= 2
    return Shape(policy, height, width, batch)


def _near(pixels: float, ratio: float, stride: int) -> tuple[int, int]:
    """Height and width in multiples of the stride, near so many pixels and that width/height."""

    def error(size: tuple[int, int]) -> float:
        height, width = size
        shape = abs(math.log(width / height / ratio))
        return 2 * shape + abs(math.log(height * width / pixels))

    def around(side: float) -> list[int]:
        return [max(int(side / stride) + n, 1) * stride for n in (-1, 0, 1, 2)]

    heights, widths = around((pixels / ratio) ** 0.5), around((pixels * ratio) ** 0.5)
    return min(itertools.product(heights, widths), key=error)


def memory_of(shape: Shape) -> float:
    """Bytes that should be free for a training, about."""
    return _BYTES * shape.pixels / _MEMORY_SHARE


def _crops(facts: Facts, budget: Budget) -> bool:
    """Whether windows of the photos are better than whole photos that are made smaller.

    Small objects would lose their shape, and get another size where photos differ in theirs. But
    the photos of a fold are scored whole, which may not take the time of the training.
    """
    scoring = facts.photos / FOLD_COUNT * _scoring(budget.speed, facts.height * facts.width)
    small = facts.side <= _SMALL_SIDE and min(facts.least) >= _LEAST_CROP
    return small and scoring <= _SCORING_SHARE * budget.seconds


def _scoring(speed: Speed, pixels: int) -> float:
    """Seconds to predict and score a photo that the network sees with so many pixels."""
    return _FORWARD * speed.per_megapixel * pixels / 1e6


@dataclasses.dataclass(frozen=True)
class _Length:
    """How long the training is: `epochs` of `steps` each, validated every so many of them."""

    epochs: int
    steps: int
    every: int
    validation: float  # seconds of one
    seconds: float  # of all


def _choose_length(
    facts: Facts, shape: Shape, budget: Budget, trained: int, validated: int
) -> _Length:
    speed, seconds = budget.speed, budget.seconds
    step, pixels = speed.step(shape.pixels), shape.height * shape.width
    seen = facts.height * facts.width if shape.policy == "crop" else pixels
    validation = validated * _scoring(speed, seen)
    often = int(_VALIDATION_SHARE * seconds / max(validation, 1e-9))
    often = min(max(often, 1), _VALIDATIONS)
    left = seconds - often * validation
    # As many epochs of at least so many steps as there is time for, and all of the time in them.
    least = max(math.ceil(trained / shape.batch), _EPOCH_STEPS)
    epochs = max(int(left / (least * step + speed.save)), 1)
    per_epoch = max(int((left / epochs - speed.save) / step), 1)
    every = math.ceil(epochs / often)
    seconds = epochs * (per_epoch * step + speed.save) + math.ceil(epochs / every) * validation
    return _Length(epochs, per_epoch, every, validation, speed.start + seconds)


def propose(
    facts: Facts, start: Start, shape: Shape, budget: Budget, trained: int, validated: int
) -> Proposal:
    """All flags of a training.

    Args:
        facts: Of the photos.
        start: Network and weights.
        shape: Of `choose_shape`.
        budget: Time and memory.
        trained: Photos of a fold that are trained on.
        validated: Photos of a fold that are not.

    Returns:
        The choices; the dataset's flags are not among them.
    """
    length = _choose_length(facts, shape, budget, trained, validated)
    steps = length.epochs * length.steps
    choices = [
        Choice("network", start.network, start.reason),
        Choice("weights", start.weights, _why_weights(start)),
        *_of_size(facts, shape, budget),
        Choice("batch_size", shape.batch, _why_batch(shape, budget)),
        *_of_rate(start.network, steps),
        *_of_length(length, shape, budget, trained, validated),
        Choice("patience", 0, "The rate falls until the end, so no run is to end earlier."),
        _augmentation(facts),
    ]
    return Proposal(choices, shape, steps, length.seconds)


def _why_weights(start: Start) -> str:
    if start.weights == RANDOM:
        return "Random weights."
    return "The encoder knows ImageNet's photos, which counts most where there are few masks."


def _of_rate(network: str, steps: int) -> list[Choice]:
    rate = find(network).learning_rate
    why = "The network's default."
    short_rate, most = _SHORT_RATES.get(network, (rate, 0))
    if steps <= most:
        rate = short_rate
        why = f"The best of those tried in trainings of up to {most} steps; longer ones take less."
    warm_up = min(max(round(_WARMUP_SHARE * steps), 1), _MOST_WARMUP)
    return [
        Choice("learning_rate", rate, why),
        Choice("lr_schedule", "cosine", "The rate falls to 0, where masks are best."),
        Choice(
            "warmup_steps",
            warm_up,
            f"A linear rise over the first {100 * _WARMUP_SHARE:.0f} % of the steps, at most "
            f"{_MOST_WARMUP}, while the decoder's weights are random.",
        ),
    ]


def _of_length(
    length: _Length, shape: Shape, budget: Budget, trained: int, validated: int
) -> list[Choice]:
    speed, steps = budget.speed, length.epochs * length.steps
    how = "measured" if speed.measured else "estimated"
    seen = steps * shape.batch / trained
    times = f"{seen:.0f}" if seen >= 10 else f"{seen:.1f}"
    return [
        Choice(
            "epochs",
            length.epochs,
            f"{steps} steps of {speed.step(shape.pixels):.3g} seconds ({how}) fit into "
            f"{budget.minutes:g} minutes: each of {trained} photos about {times} times.",
        ),
        Choice(
            "steps_per_epoch",
            length.steps,
            f"An epoch ends with saving, {speed.save:.1f} seconds, so it has at least "
            f"{_EPOCH_STEPS} steps, and as many as see each photo once, where there is time.",
        ),
        Choice(
            "validate_every",
            length.every,
            f"Scoring {validated} photos takes about {max(length.validation, 1):.0f} seconds; "
            f"at most {100 * _VALIDATION_SHARE:.0f} % of the time is for that.",
        ),
    ]


def _of_size(facts: Facts, shape: Shape, budget: Budget) -> list[Choice]:
    side = round(facts.side * (facts.height * facts.width) ** 0.5)
    objects = f"An object is about {side} pixels wide, {100 * facts.side:.0f} % of the photo's side"
    size = f"{facts.width}x{facts.height}"
    if shape.policy == "crop":
        mixed = f", and photos have {facts.sizes} sizes" if facts.sizes > 1 else ""
        return [
            Choice(
                "size_policy",
                "crop",
                f"{objects}{mixed}: windows of the photos as they are keep its size.",
            ),
            Choice(
                "input_width",
                shape.width,
                f"A square of {_CROP} pixels or the smallest photo ({facts.least[1]}x"
                f"{facts.least[0]}), in multiples of the network's stride.",
            ),
            Choice("input_height", shape.height, "The same."),
        ]
    pixels = shape.height * shape.width
    if pixels >= 0.95 * facts.height * facts.width:
        why = f"The size of the photos, {size}: the time is enough for all of it."
    elif pixels >= 0.9 * _MOST_PIXELS:
        why = f"The shape of the photos, {size}, with the most pixels that were tried."
    else:
        why = (
            f"The shape of the photos, {size}. More minutes make it larger: steps and pixels "
            f"share the {budget.minutes:g} minutes."
        )
    if facts.side > _SMALL_SIDE:
        whole = "whole photos show all of it and what is around it."
    elif min(facts.least) < _LEAST_CROP:
        whole = f"windows would suit it, but a photo has only {min(facts.least)} pixels a side."
    else:
        whole = f"windows would suit it, but to score photos of {size} takes too long then."
    return [
        Choice("size_policy", "resize", f"{objects}: {whole}"),
        Choice("input_width", shape.width, f"{why} Multiples of the network's stride."),
        Choice("input_height", shape.height, "The same."),
    ]


def _why_batch(shape: Shape, budget: Budget) -> str:
    if shape.batch < _BATCH:
        return f"What fits into {budget.memory / 2**30:.1f} GiB of free memory; {_BATCH} is better."
    if shape.batch > _BATCH:
        return f"There is time for more than {_MANY_STEPS} steps of so many photos."
    return f"Batches of 1 were worse and 8 no better than {_BATCH} (docs/training.md)."


def _augmentation(facts: Facts) -> Choice:
    if facts.objects >= _MANY_OBJECTS and facts.side <= _SMALL_SIDE:
        return Choice(
            "augmentation",
            "default:vflip=0.5",
            f"About {facts.objects:.0f} small objects in a photo, as in microscopy: upside down "
            "counts as a photo too. Where up and down matter, write default.",
        )
    return Choice(
        "augmentation",
        "default",
        "Mirror images and small changes of place, size and colour; up and down may matter.",
    )
