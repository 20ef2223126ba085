"""Optimisers against updates worked out by hand."""

import keras
import numpy as np
import pytest

from carvana_tf.errors import UserError
from carvana_tf.training import optimizers, schedules
from carvana_tf.training.options import OPTIMIZERS, OptimizerOptions, ScheduleOptions

GRADIENTS = [1.0, 3.0, -2.0, 6.0, 4.0]

COSINE = schedules.build(
    ScheduleOptions("cosine", 0.05, warmup_steps=2), epochs=2, steps_per_epoch=4
)


def descend(optimizer, gradients=GRADIENTS, start=0.0):
    variable = keras.Variable(np.array([start], np.float32))
    optimizer.build([variable])
    values = []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(np.array([gradient], np.float32))])
        values.append(float(keras.ops.convert_to_numpy(variable)[0]))
    return variable, values


def value(variable):
    return float(keras.ops.convert_to_numpy(variable)[0])


def test_sgd_has_momentum():
    _, values = descend(optimizers.build(OptimizerOptions("sgd"), 0.5))
    speed, weight, expected = 0.0, 0.0, []
    for gradient in GRADIENTS:
        speed = 0.9 * speed - 0.5 * gradient
        weight += speed
        expected.append(weight)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_nesterov_looks_ahead():
    _, values = descend(optimizers.build(OptimizerOptions("sgd", momentum=0.8, nesterov=True), 0.5))
    speed, weight, expected = 0.0, 0.0, []
    for gradient in GRADIENTS:
        speed = 0.8 * speed - 0.5 * gradient
        weight += 0.8 * speed - 0.5 * gradient
        expected.append(weight)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_takes_a_share_off(name):
    """Without a gradient, a weight shrinks by the factor 1 - rate * decay."""
    _, values = descend(
        optimizers.build(OptimizerOptions(name, weight_decay=0.1), 0.5), [0.0, 0.0], start=2.0
    )
    np.testing.assert_allclose(values, [2 * 0.95, 2 * 0.95**2], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "reference"), [("adam", keras.optimizers.Adam), ("adamw", keras.optimizers.AdamW)]
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_adam_is_that_of_keras(name, reference, accumulation):
    random = np.random.default_rng(2)
    gradients = [random.normal(0, 10.0**n, 50).astype(np.float32) for n in range(-6, 2)]
    settings = {"weight_decay": 0.1, "global_clipnorm": 30.0}
    if accumulation > 1:
        settings["gradient_accumulation_steps"] = accumulation
    ours = optimizers.build(
        OptimizerOptions(name, weight_decay=0.1, clipnorm=30.0, gradient_accumulation=accumulation),
        COSINE,
    )
    results = []
    for optimizer in (ours, reference(COSINE, **settings)):
        variable = keras.Variable(np.linspace(-1, 1, 50).astype(np.float32))
        optimizer.build([variable])
        for gradient in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(gradient)])
        results.append([np.array(v) for v in (variable, *optimizer.variables)])
    for value, expected in zip(*results, strict=True):
        # The backend takes 1 - 0.999 in float32, 1.3e-5 off.
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-7)


def test_the_norm_of_all_gradients_together_is_clipped():
    variables = [keras.Variable(np.zeros(1, np.float32)) for _ in range(2)]
    optimizer = optimizers.build(OptimizerOptions("sgd", momentum=0.0, clipnorm=1.0), 1.0)
    optimizer.build(variables)
    gradients = [np.array([30.0], np.float32), np.array([40.0], np.float32)]
    optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in gradients])
    np.testing.assert_allclose([value(v) for v in variables], [-0.6, -0.8], rtol=1e-5)


def test_accumulated_gradients_are_averaged_and_the_remainder_is_not_lost():
    optimizer = optimizers.build(
        OptimizerOptions("sgd", momentum=0.0, gradient_accumulation=2), 0.5
    )
    variable, values = descend(optimizer)
    np.testing.assert_allclose(values, [0, -1, -1, -2, -2], rtol=1e-6)
    optimizers.apply_remainder(optimizer)
    assert value(variable) == pytest.approx(-2 - 0.5 * 4)


def test_the_remainder_has_the_rate_of_its_last_batch():
    rate = schedules.EpochRates([1.0, 1.0, 1.0, 0.25, 0.0], 1)
    optimizer = optimizers.build(
        OptimizerOptions("sgd", momentum=0.0, gradient_accumulation=3), rate
    )
    variable, values = descend(optimizer, GRADIENTS[:4])
    assert optimizers.last_rate(optimizer) == 0.25
    before = values[-1]
    optimizers.apply_remainder(optimizer)
    assert value(variable) == pytest.approx(before - 0.25 * 6)


@pytest.mark.parametrize("accumulation", [1, 5])
def test_without_a_remainder_nothing_changes(accumulation):
    optimizer = optimizers.build(OptimizerOptions("adam", gradient_accumulation=accumulation), 0.5)
    variable, values = descend(optimizer)
    optimizers.apply_remainder(optimizer)
    assert value(variable) == values[-1]


def test_the_average_stands_in_and_goes_again():
    optimizer = optimizers.build(OptimizerOptions("sgd", momentum=0.0, ema=0.75), 0.5)
    variable, values = descend(optimizer)
    average = values[0]
    for weight in values[1:]:
        average = 0.75 * average + 0.25 * weight
    with optimizers.averaged(optimizer):
        assert value(variable) == pytest.approx(average)
    assert value(variable) == values[-1]
    with pytest.raises(KeyboardInterrupt), optimizers.averaged(optimizer):
        raise KeyboardInterrupt
    assert value(variable) == values[-1]


def test_without_an_average_nothing_changes():
    optimizer = optimizers.build(OptimizerOptions("sgd"), 0.5)
    variable, values = descend(optimizer)
    with optimizers.averaged(optimizer):
        assert value(variable) == values[-1]


def test_what_float16_wraps_is_found():
    wrapped = keras.optimizers.LossScaleOptimizer(
        optimizers.build(
            OptimizerOptions("sgd", momentum=0.0, gradient_accumulation=2, ema=0.5), 0.5
        ),
        initial_scale=1.0,
    )
    variable, values = descend(wrapped, [1.0, 3.0, 5.0])
    assert values[-1] == pytest.approx(-1.0)
    assert optimizers.last_rate(wrapped) == 0.5
    optimizers.apply_remainder(wrapped)
    assert value(variable) == pytest.approx(-1 - 0.5 * 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adm"}, "Did you mean 'adam'"),
        ({"optimizer": "adam", "momentum": 0.9}, "--momentum=0.9 does not suit --optimizer=adam"),
        ({"optimizer": "adam", "nesterov": True}, "--nesterov needs --optimizer=sgd"),
        ({"optimizer": "sgd", "nesterov": True, "momentum": 0.0}, "a --momentum above 0"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        optimizers.build(OptimizerOptions(**settings), 0.1)
