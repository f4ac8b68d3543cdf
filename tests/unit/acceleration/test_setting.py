"""What a measurement depends on, and which of several is the nearest."""

from dataclasses import replace

import pytest

from soda_compile.acceleration.setting import Setting, differences, remoteness

PRESENT = Setting(
    pipeline="Pipeline",
    models={"transformer": "a"},
    architectures={"transformer": "A"},
    scheduler="Euler 1",
    steps=4,
    timesteps=(1000.0, 750.0, 500.0, 250.0),
    call={"height": 64.0, "width": 64.0, "guidance_scale": 5.0, "true_cfg_scale": 2.0, "strength": 0.6},
)


def called(**call: object) -> Setting:
    return replace(PRESENT, call={**PRESENT.call, **call})


OTHERS = {
    "model": replace(PRESENT, models={"transformer": "b"}),
    "scheduler": replace(PRESENT, scheduler="Euler 2"),
    "steps": replace(PRESENT, steps=3, timesteps=(1000.0, 600.0, 300.0)),
    "sigmas": replace(PRESENT, timesteps=(1000.0, 900.0, 500.0, 250.0)),
    "height": called(height=128.0),
    "frames": called(num_frames=9.0),
    "guidance": called(guidance_scale=3.0),
    "true guidance": called(true_cfg_scale=4.0),
    "strength": called(strength=0.9),
    "switch": called(use_dynamic_cfg=True),
    "list": called(guidance_layers=(1.0, 2.0)),
}


def test_keys_differ_with_all_that_matters() -> None:
    keys = {name: setting.key for name, setting in {**OTHERS, "present": PRESENT}.items()}
    assert len(set(keys.values())) == len(keys)
    assert PRESENT.key == replace(PRESENT, call=dict(reversed(PRESENT.call.items()))).key


def test_rounding_of_another_device_is_no_other_setting() -> None:
    nearly = tuple(timestep * (1 + 1e-8) for timestep in PRESENT.timesteps)
    assert replace(PRESENT, timesteps=nearly).key == PRESENT.key
    assert differences(replace(PRESENT, timesteps=nearly), PRESENT) == []


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("model", "weights", "the weights of pipe.transformer are not those that were measured"),
        ("scheduler", "scheduler", "the scheduler is Euler 1, not Euler 2"),
        ("steps", "steps", "4 steps instead of 3"),
        ("sigmas", "timesteps", "other timesteps"),
        ("height", "size", "height=64 instead of 128"),
        ("frames", "size", "num_frames=None instead of 9"),
        ("guidance", "guidance", "guidance_scale=5 instead of 3"),
        ("true guidance", "guidance", "true_cfg_scale=2 instead of 4"),
        ("strength", "argument", "strength=0.6 instead of 0.9"),
        ("switch", "guidance", "use_dynamic_cfg=None instead of True"),
        ("list", "guidance", "guidance_layers=None instead of (1, 2)"),
    ],
)
def test_each_difference_is_told(name: str, kind: str, text: str) -> None:
    (found,) = differences(OTHERS[name], PRESENT)
    assert found.kind == kind
    assert text in found.text


def test_the_nearest_has_the_fewest_and_least_important_differences() -> None:
    def ordered(*settings: Setting) -> list[Setting]:
        return sorted(settings, key=lambda setting: remoteness(differences(setting, PRESENT)))

    order = [PRESENT, OTHERS["strength"], OTHERS["guidance"], OTHERS["height"], OTHERS["model"], OTHERS["scheduler"]]
    order += [OTHERS["sigmas"], OTHERS["steps"], replace(OTHERS["steps"], models={"transformer": "b"})]
    assert ordered(*reversed(order)) == order
    near, far, lower = called(height=72.0), called(height=640.0), called(height=8.0)
    assert ordered(far, lower, near) == [near, lower, far], "sizes by their ratio"
    assert ordered(called(height=72.0, guidance_scale=5.1), far) == [far, called(height=72.0, guidance_scale=5.1)]
