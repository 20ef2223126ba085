"""Learning rates against tables and formulas written out by hand."""

import keras
import numpy as np
import pytest

from carvana_tf.errors import UserError
from carvana_tf.training import schedules
from carvana_tf.training.options import ScheduleOptions


def rates(schedule, epochs, steps_per_epoch=3, learning_rate=1e-4, **settings):
    """The rate of each epoch, the same in all of its steps."""
    rate = schedules.build(
        ScheduleOptions(schedule, learning_rate, **settings),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
    )
    steps = [float(rate(step)) for step in range(epochs * steps_per_epoch)]
    table = np.array(steps).reshape(epochs, steps_per_epoch)
    assert (table == table[:, :1]).all()
    return table[:, 0]


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("000-vgg11v1", [1] * 10 + [0.1] * 5 + [0.01] * 5 + [1] * 10 + [0.1] * 2),
        (
            "000-albu",
            [1] * 12 + [0.1] * 11 + [1, 1, 0.1, 0.1, 0.01] * 3 + [1, 1],
        ),
        ("000-ternaus", [1, 0.5, 0.5, 0.25, 1] * 3 + [1, 0.5]),
    ],
)
def test_the_published_cycles(name, factors):
    np.testing.assert_allclose(rates(name, len(factors)), 1e-4 * np.array(factors), rtol=1e-6)


def test_step_decay():
    np.testing.assert_allclose(
        rates("step", 7, learning_rate=0.8, decay_every=3, decay_factor=0.5),
        [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2],
        rtol=1e-6,
    )


def test_rates_from_epochs_on():
    expected = [1e-4] * 2 + [1e-5] * 3 + [0]
    np.testing.assert_allclose(rates("0:1e-4,2:1e-5,5:0", 6), expected, rtol=1e-6)
    # What comes after the end of the run is no mistake.
    np.testing.assert_allclose(rates("0:1e-4,12:1e-5", 2), [1e-4, 1e-4], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("0:1e-4;12:1e-5", "0:1e-4;12:1e-5"),
        ("0:fast", "'0:fast'"),
        ("0:1e-4,", "''"),
        ("0:1e-4,1.5:1e-5", "'1.5:1e-5'"),
        ("0:1e-4,0:1e-5", "cannot go on with '0:1e-5'"),
        ("0:1e-4,5:1,3:1", "cannot go on with '3:1'"),
        ("0:-1", "cannot go on"),
        ("0:inf", "cannot go on"),
        ("0:nan", "cannot go on"),
        ("-1:1e-4", "cannot go on"),
        ("2:1e-4", "epoch 0"),
        ("cosnie", "Did you mean 'cosine'"),
    ],
)
def test_a_schedule_that_does_not_parse(text, named):
    with pytest.raises(UserError) as caught:
        schedules.build(ScheduleOptions(text, 0.1), epochs=3, steps_per_epoch=2)
    assert named in str(caught.value)
    assert "--lr_schedule" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cosine_with_warm_up():
    rate = schedules.build(
        ScheduleOptions("cosine", 0.5, warmup_steps=4), epochs=5, steps_per_epoch=4
    )
    values = [float(rate(step)) for step in range(21)]
    np.testing.assert_allclose(values[:5], [0, 0.125, 0.25, 0.375, 0.5], atol=1e-6)
    expected = 0.25 * (1 + np.cos(np.pi * np.arange(17) / 16))
    np.testing.assert_allclose(values[4:], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "peaks"), [("triangular", [3, 3]), ("triangular2", [3, 2]), ("exp_range", [3, 3])]
)
def test_the_cyclical_modes(mode, peaks):
    rate = schedules.build(
        ScheduleOptions("constant", 9.0, clr=f"1,3,2,{mode}"), epochs=1, steps_per_epoch=1
    )
    values = [float(rate(step)) for step in range(8)]
    expected = [1, (1 + peaks[0]) / 2, peaks[0], (1 + peaks[0]) / 2]
    expected += [1, (1 + peaks[1]) / 2, peaks[1], (1 + peaks[1]) / 2]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("text", ["", "1,2,3", "a,b,c,triangular", "1,2,0,triangular", "1,2,3,tri"])
def test_a_clr_that_does_not_parse_is_named(text):
    with pytest.raises(UserError, match="--clr"):
        schedules.build(ScheduleOptions("constant", 0.1, clr=text), epochs=5, steps_per_epoch=2)


def test_an_optimiser_made_amid_a_run_reads_its_own_batches():
    """Updates 0..10 are batches 0..9 and a repetition; the next one is batch 10."""
    rate = schedules.EpochRates(range(40), 1)
    plain = schedules.continued(rate, 7, 0)
    assert [float(plain(update)) for update in range(3)] == [7, 8, 9]
    replayed = schedules.continued(rate, 0, 10)
    expected = [*range(10), 10, *range(10, 20), 20, 20]
    assert [float(replayed(update)) for update in range(23)] == expected
    later = schedules.continued(rate, 12, 10)
    assert [float(later(update)) for update in range(9)] == expected[13:22]
    assert schedules.continued(0.1, 5, 10) == 0.1


def test_a_schedule_inside_an_optimiser():
    rate = schedules.build(ScheduleOptions("0:1,2:0.5", 0.0), epochs=4, steps_per_epoch=1)
    optimizer = keras.optimizers.SGD(rate)
    variable = keras.Variable(0.0)
    optimizer.build([variable])
    for _ in range(4):
        optimizer.apply([keras.ops.ones(())])
    assert float(variable) == -(1 + 1 + 0.5 + 0.5)
