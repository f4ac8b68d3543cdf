"""What a report is about."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.image import imread

from soda_compile.acceleration.measurement_folder import Verified
from soda_compile.acceleration.pictures import Image, as_image, relative_error
from soda_compile.errors import OptionError, PlanError
from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import Profile
from soda_compile.plans.sensitivity import Sensitivity


@dataclass(frozen=True, eq=False)
class Pair:
    """A sample without the plan and with it, from the same noise.

    Attributes:
        name: What tells it from other pairs.
        original: Without the plan.
        accelerated: With it.
    """

    name: str
    original: Image
    accelerated: Image

    @property
    def relative_error(self) -> float:
        """Norm of the difference / norm of the original."""
        return relative_error(self.original, self.accelerated)


@dataclass(frozen=True, eq=False)
class Subject:
    """All that is known.

    Attributes:
        sensitivity: What was measured.
        plan: The plan that is looked at; None for none.
        profile: Measured times and sizes; None where only FLOPs are known.
        verified: What plans made of the measurement were seen to do, each with its plan.
        pairs: Samples.

    Raises:
        PlanError: A plan or profile is for another model or number of steps than the sensitivity.
    """

    sensitivity: Sensitivity
    plan: Plan | None = None
    profile: Profile | None = None
    verified: tuple[tuple[Plan, Verified], ...] = ()
    pairs: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        info, plan = self.sensitivity.info, self.plan
        if plan is not None and (plan.regions, plan.steps) != (info.regions, info.steps):
            raise PlanError(
                f"the plan is for {len(plan.regions)} regions and {plan.steps} steps, but the sensitivity has "
                f"{len(info.regions)} and {info.steps}; give the sensitivity that the plan was made from"
            )


def read_pairs(original: Path, accelerated: Path) -> tuple[Pair, ...]:
    """Read pictures, or folders of pictures of equal names.

    Raises:
        OptionError: One is missing or cannot be read, or a pair differs in size.
    """
    if not original.is_dir():
        return (_pair(original.stem, original, accelerated),)
    names = sorted(path.name for path in original.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not names:
        raise OptionError(f"{original} holds no .png or .jpg; give the folder of the samples without the plan")
    return tuple(_pair(Path(name).stem, original / name, accelerated / name) for name in names)


def _pair(name: str, original: Path, accelerated: Path) -> Pair:
    before, after = _image(original), _image(accelerated)
    if before.shape != after.shape:
        raise OptionError(
            f"{original} is {before.shape[1]} x {before.shape[0]} and {accelerated} {after.shape[1]} x "
            f"{after.shape[0]}; give the same sample without and with the plan"
        )
    return Pair(name, before, after)


def _image(path: Path) -> Image:
    try:
        return as_image(imread(path))
    except (OSError, ValueError) as error:
        raise OptionError(f"the sample {path} cannot be read: {error}") from error
