"""Structures of deep denoisers from shallow ones: equal layers are repeated instead of captured."""

import re
from collections.abc import Mapping
from dataclasses import replace

from soda_compile.ir.structure import BlockCall, Structure


def deepened(structure: Structure, counts: Mapping[str, int]) -> Structure:
    """The structure with as many layers as the lists of these names shall have.

    Args:
        structure: A denoiser in each of whose lists two layers in a row are equal.
        counts: Number of layers by name of the list, ``transformer_blocks``.

    Raises:
        ValueError: If no layer of a list can be repeated.
    """
    for name, count in counts.items():
        structure = _deepened(structure, name, count)
    return structure


def _deepened(structure: Structure, name: str, count: int) -> Structure:
    calls = list(structure.calls)
    places = [place for place, call in enumerate(calls) if _layer(call, name) is not None]
    more = count - len(places)
    if more <= 0:
        return structure
    equal = [place for place in places[1:] if calls[place].block.key == calls[place - 1].block.key]
    if not equal:
        raise ValueError(f"no two layers of {name} in a row are equal: capture more of them")
    template = equal[-1]
    made = [_repeated(structure, calls[template - 1], calls[template], name, number) for number in range(more)]
    ends = dict(zip(calls[template].outputs, made[-1].outputs, strict=True))
    later = [_renumbered(_reading(call, ends), name, more) for call in calls[template + 1 :]]
    added = _added_inputs(structure, calls[template], made, name)
    return replace(
        structure,
        calls=(*calls[: template + 1], *made, *later),
        inputs=(*structure.inputs, *(name for name, _ in added)),
        paths=(*structure.paths, *(path for _, path in added)),
        parameters=(*structure.parameters, *(True for _ in added)),
        outputs=tuple(ends.get(output, output) if output else None for output in structure.outputs),
    )


def _repeated(structure: Structure, before: BlockCall, call: BlockCall, name: str, number: int) -> BlockCall:
    """The layer after ``call`` and ``number`` repetitions of it."""
    owned = set(structure.inputs)
    inputs = []
    for mine, earlier in zip(call.inputs, before.inputs, strict=True):
        if mine == earlier:
            inputs.append(mine)
        elif mine in before.outputs:
            inputs.append(_copy(call.outputs[before.outputs.index(mine)], number))
        elif mine in owned:
            inputs.append(_copy(mine, number + 1))
        else:
            raise ValueError(f"{call.name} reads {mine}, which is computed for it alone: {name} cannot be repeated")
    outputs = tuple(_copy(output, number + 1) for output in call.outputs)
    return _renumbered(replace(call, inputs=tuple(inputs), outputs=outputs), name, number + 1)


def _copy(name: str, number: int) -> str:
    return f"{name}_layer_{number}" if number else name


def _reading(call: BlockCall, renamed: Mapping[str, str]) -> BlockCall:
    return replace(call, inputs=tuple(renamed.get(name, name) for name in call.inputs))


def _layer(call: BlockCall, name: str) -> int | None:
    match = re.fullmatch(rf"{re.escape(name)}\.(\d+)", call.name)
    return int(match.group(1)) if match else None


def _renumbered(call: BlockCall, name: str, more: int) -> BlockCall:
    layer = _layer(call, name)
    return call if layer is None else replace(call, name=f"{name}.{layer + more}")


def _added_inputs(structure: Structure, template: BlockCall, made: list[BlockCall], name: str) -> list[tuple[str, str]]:
    """Names and paths of the weights of repeated layers."""
    paths = dict(zip(structure.inputs, structure.paths, strict=True))
    known = set(structure.inputs)
    layer = _layer(template, name)
    assert layer is not None
    return [
        (mine, paths[source].replace(f"{name}.{layer}.", f"{name}.{layer + number}.", 1))
        for number, call in enumerate(made, 1)
        for mine, source in zip(call.inputs, template.inputs, strict=True)
        if source in known and mine not in known
    ]
