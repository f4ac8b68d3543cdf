"""Plans that the user gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soda_compile.integrations.diffusers.schedule_fit import require_scheduler
from soda_compile.integrations.diffusers.scheduler_hook import SchedulerHook
from soda_compile.plans.plan import Plan


@dataclass(frozen=True, eq=False)
class GivenPlans:
    """The same plans for every generation."""

    plans: Mapping[str, Plan]

    def __call__(self, hook: SchedulerHook) -> Mapping[str, Plan]:
        """Return the plans.

        Raises:
            PlanError: They were made for another scheduler.
        """
        return self.require(hook.scheduler)

    def require(self, scheduler: Any) -> Mapping[str, Plan]:
        """Return the plans; see ``__call__``."""
        for plan in self.plans.values():
            require_scheduler(plan, scheduler)
        return self.plans
