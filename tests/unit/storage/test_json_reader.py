from dataclasses import dataclass
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from soda_compile.errors import PlanError
from soda_compile.storage.json_reader import read_json


class Entry(BaseModel):
    size: int


class File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal["toy/1"] = Field(alias="schema")
    entries: dict[str, Entry]


@dataclass(frozen=True)
class Point:
    places: tuple[int, ...]


def test_reads_models_and_dataclasses():
    assert read_json(File, '{"schema": "toy/1", "entries": {"a": {"size": 3}}}', PlanError, "").entries["a"].size == 3
    assert read_json(Point, memoryview(b'{"places": [1, 2]}'), PlanError, "") == Point((1, 2))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"schema": "toy/1", "entries": {"a": {"size": "x"}}}', "entries.a.size: Input should be a valid integer"),
        ('{"schema": "toy/1"}', "entries: Field required"),
        ('{"schema": "toy/2", "new": 1}', "schema 'toy/2' is not known; this version reads 'toy/1'"),
        ('{"schema": "toy/1", "schema": "toy/1"}', "damaged JSON: repeated key 'schema'"),
        ("[1, 2]", "the file: Input should be an object"),
        ("{", "damaged JSON: Expecting property name"),
        ("[" * 100_000, "damaged JSON: maximum recursion depth"),
    ],
)
def test_names_source_key_reason_and_way_out(text, reason):
    with pytest.raises(PlanError) as caught:
        read_json(File, text, PlanError, "make it again", "toy.json")
    assert str(caught.value).startswith(f"toy.json: {reason}")
    assert str(caught.value).endswith("; make it again")
