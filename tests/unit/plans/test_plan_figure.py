"""Pictures of plans: every action has a colour of its own, prunes too, and the legend names those that occur."""

import numpy as np
import pytest
from random_plans import random_plan

from soda_compile.plans.actions import ACTIONS, PRUNE_RATES, SIDE_RATES, prune
from soda_compile.plans.figure_file import new_figure
from soda_compile.plans.plan_figure import color_of, draw_plan, plans_png
from soda_compile.plans.pruning import Pruning


def test_colours_tell_actions_apart() -> None:
    actions = (*ACTIONS, *(prune(rate) for rate in PRUNE_RATES))
    assert len({color_of(action) for action in actions}) == len(actions)


@pytest.mark.parametrize("pruning", [None, Pruning("drift")])
def test_a_grid_shows_each_action_in_its_colour(pruning: Pruning | None) -> None:
    plan = random_plan(3, ("a", "b", "c"), 12, pruning=pruning)
    axis = new_figure(6, 3).subplots()
    draw_plan(axis, "plan", plan, legend=True)
    (mesh,) = axis.collections
    mesh.update_scalarmappable()
    shown = np.round(mesh.get_facecolors()[:, :3] * 255).astype(int).tolist()
    wanted = [color_of(action) for row in plan.actions for action in row]
    assert ["#" + "".join(f"{value:02x}" for value in colour) for colour in shown] == wanted
    labels = {text.get_text() for text in axis.get_legend().get_texts()}
    assert labels == {str(action) for row in plan.actions for action in row}
    assert plans_png({"plan": plan}).startswith(b"\x89PNG")


def test_prunes_of_several_token_groups_can_be_drawn() -> None:
    assert {color_of(prune(0.5, side)) for side in SIDE_RATES} == {color_of(prune(0.5))}
