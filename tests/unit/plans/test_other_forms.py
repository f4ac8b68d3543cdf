"""Files that hold JSON of another form are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planner_tables import make_profile, make_sensitivity
from safetensors.numpy import save

from soda_compile.errors import PlanError, ProfileError, SensitivityError, SodaError
from soda_compile.plans.plan import Plan, compute_all_plan
from soda_compile.plans.profile import Profile
from soda_compile.plans.sensitivity import Sensitivity

FORMS = ["[]", '"text"', "null", "3", "1e999", "true", "{}", "[[]]", "", "{", '{"a": NaN}', "\ud800"]
INNER = [None, [], {}, "text", 3, True, [None], {"a": {}}]


def plan(path: Path) -> None:
    compute_all_plan(["a", "b"], 3, fingerprint="0123").save(path)


def profile(path: Path) -> None:
    make_profile(make_sensitivity()).save(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("load", "kind"), [(Plan.load, PlanError), (Profile.load, ProfileError)])
def test_another_form_of_the_whole(
    form: str, load: Callable[[Path], Any], kind: type[SodaError], tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(form.encode("utf-8", "surrogatepass"))
    with pytest.raises(kind, match=r"file\.json: "):
        load(path)


@pytest.mark.parametrize(
    ("make", "load", "kind"), [(plan, Plan.load, PlanError), (profile, Profile.load, ProfileError)]
)
def test_another_form_of_an_entry(
    make: Callable[[Path], None], load: Callable[[Path], Any], kind: type[SodaError], tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    make(path)
    whole = json.loads(path.read_text())
    for name in whole:
        for other in INNER:
            path.write_text(json.dumps({**whole, name: other}))
            refused = refusal(load, path, kind)
            assert refused is None or str(path) in refused  # None, and much as a note, may be good


def refusal(load: Callable[[Path], Any], path: Path, kind: type[SodaError]) -> str | None:
    try:
        load(path)
    except kind as error:
        return str(error)
    return None


@pytest.mark.parametrize("form", FORMS[:-1])
def test_another_form_of_a_header(form: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    for metadata in ({"soda": form, "sha256": ""}, {"soda": "{}", "sha256": form}, {}):
        path.write_bytes(save({"a": np.ones(3)}, metadata=metadata))
        with pytest.raises(SensitivityError, match=r"file\.safetensors: "):
            Sensitivity.load(path)
    path.write_bytes(len(form).to_bytes(8, "little") + form.encode())
    with pytest.raises(SensitivityError, match=r"file\.safetensors: "):
        Sensitivity.load(path)
