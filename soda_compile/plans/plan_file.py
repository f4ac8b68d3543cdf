"""The JSON form of a plan: which keys there are, and what makes a file unreadable."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from soda_compile.errors import PlanError
from soda_compile.plans.actions import Action
from soda_compile.plans.pruning import Pruning
from soda_compile.storage.json_reader import read_json

SCHEMA = "soda-plan/1"
Scalar = str | int | float | bool | None
Slots = Literal["region", "stack"]
"""What is kept: the outputs of each region, or what all of them together add to the residual stream."""
SlotDtype = Literal["bfloat16", "int8", "float8"]
"""What kept values are rounded to; of 8 bits, each row along the last axis has a scale in float32."""


class WatchedEntry(BaseModel):
    """The watched region of a plan file, with the expected errors by step."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    region: str
    errors: dict[str, float]


class PlanFile(BaseModel):
    """The keys of a plan file.

    `actions` has one string per region with one symbol of `legend` per step. `weights` is by step and by operator, and
    left out where nothing was fitted; `watched` is left out where nothing is expected of forecasts at anchors,
    `slots` where each region has its own, and `slot_dtype` where values are kept as they are computed.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    schema_version: Literal["soda-plan/1"] = Field(alias="schema")
    fingerprint: str
    steps: int
    timesteps: list[float] | None = None
    timestep_input: str | None = None
    scheduler: str | None = None
    scheduler_digest: str | None = None
    guidance: float | None = None
    calls_per_step: int = 1
    flop_ratio: float | None = None
    predicted_error: float | None = None
    pruning: Pruning | None = None
    method: dict[str, Scalar] = Field(default_factory=dict)
    legend: dict[str, Action]
    actions: dict[str, str]
    slots: Slots = "region"
    slot_dtype: SlotDtype | None = None
    weights: dict[str, dict[str, list[float]]] = Field(default_factory=dict)
    watched: WatchedEntry | None = None


DECODED = frozenset(
    {"schema_version", "steps", "timesteps", "pruning", "method", "legend", "actions", "weights", "watched"}
)
"""Keys that become a plan's field in another form, or none."""
OPTIONAL = frozenset({"slots", "slot_dtype"})
"""Keys that are left out where they have their default."""
PLAIN = tuple(
    name for name in PlanFile.model_fields if name in ("steps", "timesteps") or name not in DECODED | OPTIONAL
)
"""Keys that every file holds as the plan does, in the order of the file."""


def parse(text: str | bytes) -> PlanFile:
    """Read the JSON form.

    Raises:
        PlanError: not JSON, an unknown schema version, an unknown or missing key, or a value of a wrong type.
    """
    return read_json(PlanFile, text, PlanError, "make the plan again")
