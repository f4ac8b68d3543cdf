"""The JSON form of a profile."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from soda_compile.errors import ProfileError
from soda_compile.plans.plan_file import SlotDtype
from soda_compile.storage.json_reader import read_json

SCHEMA = "soda-profile/1"
SCALARS = (
    "fingerprint", "device", "key", "full_us", "base_us", "stack_bytes", "rounded_stack_bytes", "score", "spread",
    "versions",
)  # fmt: skip


class RegionEntry(BaseModel):
    """The costs of one region; null where an action was not measured."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    cost_us: list[float | None]
    memory_bytes: float
    rounded_bytes: dict[SlotDtype, float] = Field(default_factory=dict)


class ProfileFile(BaseModel):
    """The keys of a profile file."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    schema_version: Literal["soda-profile/1"] = Field(alias="schema")
    fingerprint: str
    device: str
    key: str
    full_us: float
    base_us: float
    stack_bytes: float | None = None
    rounded_stack_bytes: dict[SlotDtype, float] = Field(default_factory=dict)
    score: str | None
    spread: float
    versions: dict[str, str]
    actions: list[str]
    regions: dict[str, RegionEntry]


def encode(data: dict[str, Any]) -> str:
    """Return the JSON text; the schema's version is added here."""
    return json.dumps({"schema": SCHEMA, **data}, indent=1, allow_nan=False) + "\n"


def parse(text: bytes) -> ProfileFile:
    """Read the JSON form.

    Raises:
        ProfileError: not JSON, another schema version, an unknown or missing key, or a value of a wrong type.
    """
    return read_json(ProfileFile, text, ProfileError, "measure again")
