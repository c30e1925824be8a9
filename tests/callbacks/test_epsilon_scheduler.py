"""Reference values of the schedules (METHODS 1.5)."""

import pytest
from torch import nn

from callbacks import EpsilonScheduler
from robust.errors import SettingError
from tests.callbacks.trained import Plain


def test_linear_follows_the_paper():
    """MNIST: 0 in epoch 1, from epoch 2 linear up to the full size at the last batch of epoch 61."""
    schedule, batches = EpsilonScheduler("linear", start_epoch=2, length=60), 215
    assert schedule.value(1, 215, batches) == 0
    assert schedule.value(2, 1, batches) == 0
    assert schedule.value(2, 2, batches) == pytest.approx(1 / (60 * 215))
    assert schedule.value(32, 1, batches) == pytest.approx(0.5)
    assert schedule.value(61, 215, batches) == pytest.approx(1 - 1 / (60 * 215))
    assert schedule.value(62, 1, batches) == 1
    assert schedule.value(100, 215, batches) == 1


def test_smoothed_has_the_reference_values():
    schedule, full = EpsilonScheduler("smoothed", start_epoch=32, length=160), 8 / 255
    batches = 100
    values = [full * schedule.value(32 + round(160 * fraction), 1, batches) for fraction in (0.1, 0.25, 0.5, 0.75, 1.0)]
    assert values == pytest.approx([6.2e-5, 0.002413, 0.012066, 0.021719, 0.031373], rel=5e-3)


@pytest.mark.parametrize(("middle", "at_middle"), [(0.25, 1 / 13), (0.4, 1 / 7)])
def test_smoothed_is_continuous_in_value_and_slope(middle, at_middle):
    schedule, batches = EpsilonScheduler("smoothed", start_epoch=1, length=100, middle=middle), 1000
    epoch = 1 + round(100 * middle)
    before, here, after = (
        schedule.value(epoch - 1, 1000, batches),
        *(schedule.value(epoch, b, batches) for b in (1, 2)),
    )
    assert here == pytest.approx(at_middle, rel=1e-6)
    assert here - before == pytest.approx(after - here, rel=1e-3)


@pytest.mark.parametrize("shape", ["linear", "smoothed"])
def test_is_monotone_and_stays_in_the_unit_interval(shape):
    schedule = EpsilonScheduler(shape, start_epoch=2, length=3)
    values = [schedule.value(epoch, batch, 7) for epoch in range(1, 8) for batch in range(1, 8)]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == 1


def test_constant():
    assert EpsilonScheduler().value(1, 1, 10) == 1


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ("constant", {"length": 3}, "got 'constant', which takes no length 3; give linear or smoothed"),
        (
            "linear",
            {"middle": 0.5, "exponent": 2.0},
            "got 'linear', which takes no middle 0.5, exponent 2.0; give smoo",
        ),
    ],
)
def test_settings_that_the_shape_does_not_use_are_named(shape, settings, message):
    with pytest.warns(UserWarning, match=f"epsilon_schedule.shape: {message}"):
        EpsilonScheduler(shape, **settings).on_fit_start(None, Plain(nn.Linear(1, 1)))


@pytest.mark.parametrize(
    "setting", [{"shape": "step"}, {"start_epoch": 0}, {"length": 0}, {"middle": 1.0}, {"exponent": 1.0}]
)
def test_wrong_settings(setting):
    with pytest.raises(SettingError, match=f"epsilon_schedule.{next(iter(setting))}: got"):
        EpsilonScheduler(**setting)


def test_resuming_with_another_schedule_warns():
    with pytest.warns(UserWarning, match="epsilon_schedule.length: .* trained with 60, this run has 30"):
        EpsilonScheduler("linear", length=30).load_state_dict(EpsilonScheduler("linear", length=60).state_dict())
