"""`--augmentation`: a preset with amounts of one's own."""

import dataclasses

import numpy as np
import pytest

from carvana_tf.data import amounts
from carvana_tf.data.augment import draw
from carvana_tf.data.presets import PRESETS, Augmentation, Chance
from carvana_tf.errors import UserError


@pytest.mark.parametrize(
    ("text", "preset", "changes"),
    [
        ("001", "001", {}),
        # Zoom 0.2 and shift 0.2 are what system 001 had before it narrowed them.
        (
            "001:zoom=0.2,shift=0.1",
            "001",
            dict.fromkeys(("zoom_y", "zoom_x"), (0.8, 1.2))
            | dict.fromkeys(("shift_y", "shift_x"), (-0.1, 0.1)),
        ),
        ("none:zoom=0.2", "none", {"zoom": (0.8, 1.2)}),
        ("none: zoom_x = 0.5..2 , border=edge", "none", {"zoom_x": (0.5, 2.0), "border": "edge"}),
        ("000-aug1:rotation=-5..10", "000-aug1", {"rotation": (-5.0, 10.0)}),
        ("000-aug1:brightness=0.2", "000-aug1", {"brightness": Chance(0.5, (-0.2, 0.2))}),
        ("none:brightness=0.2", "none", {"brightness": Chance(1.0, (-0.2, 0.2))}),
        ("none:contrast=-0.5..0@0.25", "none", {"contrast": Chance(0.25, (-0.5, 0.0))}),
        ("none:hue=10", "none", {"hue": (-10.0, 10.0), "hsv": 1.0}),
        ("none:hue=9,grey_car=0.2", "none", {"hue": (-9.0, 9.0), "grey_car": 0.2, "hsv": 0.8}),
        ("000-ternaus:value=5", "000-ternaus", {"value": (-5.0, 5.0)}),
        ("default:hflip=0,geometry=0.3", "default", {"hflip": 0.0, "geometry": 0.3}),
    ],
)  # fmt: skip
def test_amounts_replace_those_of_the_preset(text, preset, changes):
    assert amounts.parse(text) == dataclasses.replace(PRESETS[preset], **changes)


def test_every_operation_goes_on_every_preset_and_is_drawn():
    extremes = {"zoom": "2..2", "zoom_y": "2..2", "zoom_x": "2..2"}
    for preset in PRESETS:
        for name, operation in amounts.OPERATIONS.items():
            value = extremes.get(name, "1" if operation.centre is None else "0.4..0.4")
            text = f"{preset}:{name}={value}"
            if name in ("hsv", "grey_car"):  # a photo gets one of the two
                text += ",grey_car=0" if name == "hsv" else ",hsv=0"
            changed = amounts.parse(text)
            assert changed != PRESETS[preset] or value == "1"
    fields = {field.name for field in dataclasses.fields(Augmentation)}
    assert fields == {*amounts.OPERATIONS, "border"} - {"shift"}


def test_a_range_is_drawn_from_end_to_end():
    settings = amounts.parse(
        "none:rotation=5..15,brightness=-0.3..-0.1,value=2..8,shift_x=0.1..0.2"
    )
    drawn = [draw(settings, np.random.default_rng(seed), (50, 100)) for seed in range(300)]
    angles = np.rad2deg([np.arctan2(t.matrix[1, 0], t.matrix[0, 0]) for t in drawn])
    for values, low, high in (
        (angles, 5, 15),
        ([t.brightness for t in drawn], 0.7, 0.9),
        ([t.hsv[2] for t in drawn], 2, 8),
        ([t.matrix[0, 2] for t in drawn], 10, 20),
    ):
        margin = 0.05 * (high - low)
        assert low - 1e-9 <= min(values) < low + margin
        assert high - margin < max(values) <= high + 1e-9


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_printed_reads_back(name):
    """A symmetric amount and its range draw the same values."""
    text = amounts.format_amounts(PRESETS[name])
    again = amounts.parse("none" if text == "none" else f"none:{text}")
    for seed in range(20):
        transforms = [
            draw(a, np.random.default_rng(seed), (40, 60)) for a in (PRESETS[name], again)
        ]
        np.testing.assert_array_equal(*(t.matrix for t in transforms))
        first, second = (dataclasses.replace(t, matrix=None) for t in transforms)
        assert first == second
    assert amounts.format_amounts(again) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deflaut", "'deflaut' is unknown. Did you mean 'default'.*Known: none, default"),
        (
            "001:zom=0.2",
            "the operation 'zom' is unknown. Did you mean 'zoom'.*Known: hflip.*border",
        ),
        ("001:", "the operation '' is unknown.*Known: hflip"),
        ("001:zoom", "'zoom': zoom is 0..0.95 or low..high within 0.05..20. Operations: hflip"),
        ("001:zoom=1", "zoom is 0..0.95"),
        ("001:zoom=-0.2", "zoom is 0..0.95"),
        ("001:zoom=1.2..0.8", "low..high"),
        ("001:zoom=0.2@0.5", "zoom is"),
        ("001:zoom=nan", "zoom is"),
        ("001:shift=big", "shift is 0..1 or"),
        ("001:brightness=0.2@2", "@probability"),
        ("001:hflip=1.5", "hflip is a probability, 0..1"),
        ("001:hflip=0..1", "hflip is a probability, 0..1"),
        ("001:border=wrap", "border is one of reflect, constant, edge"),
        ("001:shift=0.1,shift_y=0.2", "sets 'shift_y' twice"),
        ("000-ternaus:hsv=0.9", "hsv . grey_car must be at most 1"),
    ],
)
def test_mistakes_list_what_exists(text, message):
    with pytest.raises(UserError, match=message) as caught:
        amounts.parse(text)
    assert "\n" not in str(caught.value)


def test_help_names_everything():
    for name in (*PRESETS, *amounts.OPERATIONS, "border"):
        assert name in amounts.HELP
