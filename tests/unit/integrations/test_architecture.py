"""Which changes of a model leave its architecture: a measurement of it may serve then."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from families import FAMILIES

from soda_compile.integrations.diffusers.denoisers import architecture, model_digest, model_name


def scaled(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def with_adapter(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"]))
    return model


def of_another_size(model: Any) -> Any:
    model.register_to_config(sample_size=4096)
    return model


@pytest.mark.parametrize("change", [scaled, with_adapter, of_another_size, lambda model: model.to(torch.bfloat16)])
def test_weights_are_not_part_of_it(change: Callable[[Any], Any]) -> None:
    model, before = FAMILIES["sd3"].build(), FAMILIES["sd3"].build()
    assert (architecture(model), model_digest(model)) == (architecture(before), model_digest(before))
    changed = change(model)
    assert architecture(changed) == architecture(before)
    assert model_digest(changed) != model_digest(before)


def test_layers_and_classes_are() -> None:
    model: Any = FAMILIES["sd3"].build()
    config = {name: value for name, value in model.config.items() if name[0] != "_"}
    deeper = type(model).from_config({**config, "num_layers": config["num_layers"] + 1})
    assert len({architecture(each) for each in (model, deeper, FAMILIES["flux"].build())}) == 3


def test_without_a_configuration_the_shapes_count() -> None:
    def module(width: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(2, width))

    assert architecture(module(3)) == architecture(scaled(module(3)))
    assert architecture(module(3)) != architecture(module(4))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("owner/model", True),
        ("./model", False),
        ("/home/me/model", False),
        ("a/b/c", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_name_on_the_hub_is_told(name: str | None, known: bool) -> None:
    assert model_name(SimpleNamespace(config={"_name_or_path": name})) == (name if known else None)
    assert model_name(object()) is None


def test_a_folder_that_looks_like_one_is_none(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_name(SimpleNamespace(config={"_name_or_path": "owner/model"})) is None
