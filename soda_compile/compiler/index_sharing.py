"""Sharing of token choices: regions that pick their tokens themselves, and regions that take an earlier choice."""

from dataclasses import dataclass

from soda_compile.analysis.token_axes import wanted_tokens
from soda_compile.ir.structure import Region, Structure
from soda_compile.plans.actions import Action
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import IndexUse
from soda_compile.torch_internals.size_expressions import Expression, comparable

# One choice serves cuts that agree in these: group of blocks, samples, tokens, wanted tokens.
IndexKey = tuple[int, Expression, Expression, Expression]


@dataclass(frozen=True)
class IndexSharing:
    """The choice of tokens of each region, its own or an earlier one.

    Attributes:
        uses: [region][step]; "own" where nothing is shared.
        groups: For each region the number of its group of blocks.
    """

    uses: tuple[tuple[IndexUse, ...], ...]
    groups: tuple[int, ...]

    def key(self, number: int, region: Region, cut: int, wanted: int) -> IndexKey:
        """Return the key of the index slot that a cut of region ``number`` uses."""
        return _key(self.groups[number], region, cut, wanted)


def _key(group: int, region: Region, cut: int, wanted: int) -> IndexKey:
    samples, count, kept = comparable((*region.cuts[cut].shape[:2], wanted))
    return group, samples, count, kept


def share_indices(structure: Structure, plan: Plan) -> IndexSharing:
    """Let the first region of a group of blocks pick, and later ones with the same tokens take its choice."""
    with_regions = [call for call in structure.calls if call.block.regions]
    blocks = [index for index, call in enumerate(with_regions) for _ in call.block.regions]
    size = {"region": 0, "block": 1}.get(str(plan.pruning.share), plan.pruning.share) if plan.pruning else 0
    if not isinstance(size, int) or size == 0:
        own: IndexUse = "own"
        return IndexSharing(((own,) * plan.steps,) * len(plan.regions), tuple(blocks))
    groups = tuple(block // size for block in blocks)
    by_step = [_uses_at(structure, plan, groups, step) for step in range(plan.steps)]
    return IndexSharing(tuple(zip(*by_step, strict=True)), groups)


def _uses_at(structure: Structure, plan: Plan, groups: tuple[int, ...], step: int) -> list[IndexUse]:
    keys = [_keys(groups[number], region, plan.action(number, step)) for number, region in enumerate(structure.regions)]
    uses: list[IndexUse] = []
    kept: set[IndexKey] = set()
    for number, mine in enumerate(keys):
        if mine and mine <= kept:
            uses.append("take")
        elif mine and any(mine == other for other in keys[number + 1 :]):
            uses.append("keep")
            kept |= mine
        else:
            uses.append("own")
    return uses


def _keys(group: int, region: Region, action: Action) -> frozenset[IndexKey]:
    """Return the choices of tokens that a region needs for this action."""
    if action.kind != "prune":
        return frozenset()
    wanted = enumerate(wanted_tokens(region, cut, action) for cut in range(len(region.cuts)))
    return frozenset(_key(group, region, cut, count) for cut, count in wanted if count < region.cuts[cut].shape[1])
