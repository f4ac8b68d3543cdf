"""Plans with fitted weights, compiled, against hooks in eager mode."""

import pytest
import small_denoiser as small
import torch
from tracing import graphs_as_they_are

from soda_compile.compiler.analyse import analyse_model
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program
from soda_compile.plans.fitted_weights import FittedWeights
from soda_compile.plans.plan import Plan

# Rows are CCrC2, CCC12, CrCr1, CC1Cr.
WEIGHTS = (
    FittedWeights(1, 0, (0.8,)),
    FittedWeights(2, 1, (1.5, -0.25)),
    FittedWeights(3, 0, (1.1,)),
    FittedWeights(4, 2, (2.0, -1.5, 0.25)),
)
FITTED = small.make_plan(weights=WEIGHTS)


def test_the_compiled_denoiser_gives_what_hooks_give(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs_as_they_are(monkeypatch)
    model, inputs = small.Denoiser(), small.calls()
    given = small.generate(small.compiled(model, plan=FITTED), inputs)
    torch.testing.assert_close(given, small.reference(model, FITTED, inputs), **small.ROUNDING)
    polynomial = small.reference(model, small.PLAN, inputs)
    assert (given - polynomial).flatten(1).norm(dim=1)[1:].min() > 1e-2


def test_weights_need_no_code_of_their_own_where_a_forecast_has_coefficients() -> None:
    model = small.Denoiser()
    structure = analyse_model(model, small.calls()[0], {})

    def subgraphs(plan: Plan) -> set[str]:
        lowering = Lowering(target="eager")
        build_program(structure, plan, lowering)
        return set(lowering.compiled)

    forecasts = small.make_plan(weights=[each for each in WEIGHTS if each.order])
    assert subgraphs(forecasts) == subgraphs(small.PLAN)
    assert subgraphs(FITTED) != subgraphs(small.PLAN)  # reuse multiplies then


def test_each_set_has_a_register_of_its_own() -> None:
    structure = analyse_model(small.Denoiser(), small.calls()[0], {})
    same = (FittedWeights(1, 0, (1.0,)), FittedWeights(3, 0, (1.0,)))
    program = build_program(structure, small.make_plan(weights=same), Lowering(target="eager"))
    assert set(program.weights) == {(1, 0), (3, 0)}
    assert len(set(program.weights.values())) == 2
    assert all(program.tensors[register].tolist() == [1.0] for register in program.weights.values())
