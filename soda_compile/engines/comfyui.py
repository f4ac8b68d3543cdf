"""A node for ComfyUI: compiles a diffusion model with backend "soda", and tells it generations, steps and conditions.

ComfyUI finds it in a folder of its ``custom_nodes`` whose ``__init__.py`` takes both mappings from here. The wrappers
are those of ``comfy.patcher_extension``; checked with ComfyUI 0.8.
"""

from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from soda_compile.engines.goal import checked
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.generation import trajectory

KEY = "soda_compile"


@dataclass(eq=False)
class _Sampling:
    """One run of a sampler.

    Attributes:
        clock: That of its generation; a step is one evaluation of the guider, of which some samplers make several
            for each sigma.
        called: How often the present step called the model for each group of conditions.
    """

    clock: Clock
    called: Counter[str] = field(default_factory=Counter)

    def branch(self, conditions: list[int]) -> str:
        """Name the call that comes now: the conditions that it has in one batch, and the how manieth of these it is."""
        group = ",".join(map(str, conditions))
        self.called[group] += 1
        return f"{group}/{self.called[group]}"

    def advance(self) -> None:
        """End the present step."""
        self.called.clear()
        self.clock.advance()


_sampling: ContextVar[_Sampling | None] = ContextVar("soda_compile_comfyui", default=None)


class SodaCompile:
    """The node. The model that it returns observes its first generations, or follows a plan that is given."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "compile"
    CATEGORY = "model_patches"
    DESCRIPTION = (
        "Compiles the model, measures in the first generations what a step need not compute again, and reuses it in "
        "later ones. A speedup of 2 leaves out half of the FLOPs."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        return {
            "required": {
                "model": ("MODEL",),
                "speedup": ("FLOAT", {"default": 2.0, "min": 1.1, "max": 8.0, "step": 0.1}),
            },
            "optional": {
                "generations": ("INT", {"default": 8, "min": 1, "max": 64, "tooltip": "how many to observe"}),
                "plan": ("STRING", {"default": "", "tooltip": "path of a plan to follow, instead of observing"}),
            },
        }

    def compile(self, model: Any, speedup: float, generations: int = 8, plan: str = "") -> tuple[Any]:
        """Return a clone of a ModelPatcher whose diffusion model is compiled.

        Raises:
            OptionError: If a value cannot be used.
            PlanError: For a plan file that is missing, damaged or of another version.
        """
        return (compile_model(model, {"plan": plan} if plan else {"speedup": speedup, "generations": generations}),)


def compile_model(model: Any, options: dict[str, Any]) -> Any:
    """Return a clone of a ModelPatcher whose diffusion model is compiled with backend "soda".

    Args:
        model: The ModelPatcher; itself it stays as it is.
        options: Those of the backend: a goal such as ``{"speedup": 2.0}``, or ``{"plan": plan}``.

    Raises:
        OptionError: For an unknown option, or a value that cannot be used.
        PlanError: For a plan file that is missing, damaged or of another version.
    """
    from comfy.patcher_extension import WrappersMP  # type: ignore[import-not-found]
    from comfy_api.torch_helpers import set_torch_compile_wrapper  # type: ignore[import-not-found]

    options = checked(options)
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="soda", options=options)
    for place, wrapper in (
        (WrappersMP.SAMPLER_SAMPLE, _in_a_generation),
        (WrappersMP.PREDICT_NOISE, _as_a_step),
        (WrappersMP.APPLY_MODEL, _as_a_branch),
    ):
        compiled.remove_wrappers_with_key(place, KEY)
        compiled.add_wrapper_with_key(place, KEY, wrapper)
    return compiled


def _in_a_generation(executor: Any, guider: Any, *arguments: Any, **options: Any) -> Any:
    with trajectory(guider.inner_model.diffusion_model, manual=True) as generation:
        token = _sampling.set(_Sampling(generation.clock))
        try:
            return executor(guider, *arguments, **options)
        finally:
            _sampling.reset(token)


def _as_a_step(executor: Any, *arguments: Any, **options: Any) -> Any:
    predicted = executor(*arguments, **options)
    if (sampling := _sampling.get()) is not None:
        sampling.advance()
    return predicted


def _as_a_branch(executor: Any, *arguments: Any, **options: Any) -> Any:
    sampling = _sampling.get()
    if sampling is None:
        return executor(*arguments, **options)
    transformer_options = options.get("transformer_options") or arguments[5]
    with sampling.clock.calling(sampling.branch(transformer_options.get("cond_or_uncond", []))):
        return executor(*arguments, **options)


NODE_CLASS_MAPPINGS = {"SodaCompile": SodaCompile}
NODE_DISPLAY_NAME_MAPPINGS = {"SodaCompile": "Compile with soda"}
