"""Graphs of a model that its plan does not cover, though the plan is for this model: the model is called otherwise."""

from soda_compile.ir.structure import Structure
from soda_compile.plans.plan import Plan

_shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # of weights by path, by digest of a plan that fitted them


def remember(plan: Plan, structure: Structure) -> None:
    """Note that a plan fits the graph of a model."""
    _shapes[plan.digest] = _weight_shapes(structure)


def has_fitted(plan: Plan) -> bool:
    """Return whether a plan has fitted any graph so far."""
    return plan.digest in _shapes


def is_variation(plan: Plan, structure: Structure) -> bool:
    """Return whether a graph is of the model that the plan has fitted: weights of equal paths have equal shapes.

    Skipped layers, residuals of a ControlNet and adapters leave it so; another model does not.
    """
    known = _shapes.get(plan.digest, {})
    shapes = _weight_shapes(structure)
    common = known.keys() & shapes.keys()
    return bool(common) and all(known[path] == shapes[path] for path in common)


def is_part(plan: Plan, structure: Structure) -> bool:
    """Return whether a graph is one block of the plan's model, as where hooks on layers break the model's graph."""
    cleaned = (name.rpartition(")")[2].strip(".") for name in structure.region_names)  # "(head).attn", "(model)"
    ends = [f".{name}" if name else "" for name in cleaned]
    paths = {region.removesuffix(ends[0]) for region in plan.regions if region.endswith(ends[0])}
    layers = {path for path in paths if path and not path.startswith("(")}
    return any(all(path + end in plan.regions for end in ends) for path in layers)


def _weight_shapes(structure: Structure) -> dict[str, tuple[int, ...]]:
    owned = zip(structure.inputs, structure.paths, structure.parameters, strict=True)
    values = structure.read_values
    return {path: tuple(values[name].shape) for name, path, mine in owned if mine and name in values}
