"""What a plan keeps beside the regions' outputs, as regions of the structure."""

from soda_compile.compiler.kept_output import with_output
from soda_compile.compiler.whole_stack import with_stack
from soda_compile.ir.structure import Structure
from soda_compile.plans.plan import Plan


def with_slots(structure: Structure, plan: Plan) -> tuple[Structure, Plan]:
    """Return a structure and a plan in which every kept value is one of a region.

    Args:
        structure: The denoiser.
        plan: Its plan.

    Raises:
        PlanError: If the model cannot keep what the plan asks for.
    """
    return with_output(*with_stack(structure, plan))
