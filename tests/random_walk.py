"""A seeded walk over what users do to an accelerated pipeline, beside a twin that nobody accelerated.

After each action both draw the same: the accelerated pipeline computes everything, so the samples must agree. Run for
longer with ``python tests/random_walk.py --actions 2000``.
"""

import argparse
import copy
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from pipelines import SMALL_SD3 as SD3
from pipelines import STEPS
from torch import Generator, Tensor

import soda_compile
from soda_compile.plans.plan import compute_all_plan

PLAN = compute_all_plan(tuple(SD3.regions), STEPS)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # of the norm of the sample


@dataclass
class Walk:
    """Two pipelines to which the same is done, one of them accelerated.

    Attributes:
        draw: Draws actions and their values.
        pipe: The accelerated pipeline.
        twin: The other.
        adapters: Names of the adapters that are loaded.
        done: Actions so far, by name.
    """

    draw: random.Random
    pipe: Any = field(default_factory=SD3.build)
    twin: Any = field(default_factory=SD3.build)
    adapters: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    _made: int = 0
    _fused: bool = False

    def __post_init__(self) -> None:
        soda_compile.accelerate(self.pipe, PLAN)

    def run(self, actions: int) -> None:
        """Do so many actions, and compare after each."""
        for _ in range(actions):
            name = self.draw.choice(ACTIONS)
            getattr(self, name)()
            self.done[name] += 1
            self.compare(name)

    def compare(self, after: str, pipe: Any = None) -> None:
        """Draw from both."""
        options = self.options()
        found, wanted = (self.sample(each, options).float() for each in (pipe or self.pipe, self.twin))
        error = (found - wanted).norm() / wanted.norm()
        assert error <= TOLERANCE[self.twin.transformer.dtype], f"after {after} ({dict(self.done)}): off by {error:.2g}"

    def options(self) -> dict[str, Any]:
        """Arguments of a call, drawn anew."""
        options: dict[str, Any] = {"seed": self.draw.randrange(5), "batch": self.draw.choice((1, 1, 2))}
        options["num_inference_steps"] = self.draw.choice((STEPS, STEPS, STEPS, 3))
        options["guidance_scale"] = self.draw.choice((1.0, 5.0))
        if self.adapters and not self._fused:
            options["joint_attention_kwargs"] = {"scale": self.draw.choice((0.3, 0.7, 1.0))}
        return options

    def sample(self, pipe: Any, options: dict[str, Any]) -> Tensor:
        """One generation."""
        batch, dtype = options["batch"], pipe.transformer.dtype
        inputs = SD3.inputs(Generator().manual_seed(7), batch)
        cast = {name: value.to(dtype) for name, value in inputs.items() if isinstance(value, Tensor)}
        return SD3.draw(pipe, **{**options, **cast})

    @property
    def _wrapped(self) -> bool:
        """Whether peft's layers are in the denoiser, which outlast the adapters."""
        return any("base_layer" in name for name in self.twin.transformer.state_dict())

    def both(self, change: Callable[[Any], Any]) -> None:
        """Do the same to both."""
        for each in (self.pipe, self.twin):
            change(each)

    # Actions

    def nothing(self) -> None:
        """Only another call."""

    def interrupt(self) -> None:
        """A generation is interrupted, or fails, or stops."""
        kind = self.draw.choice(("interrupt", "raise"))

        def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            if step == 1:
                pipe._interrupt = True
                if kind == "raise":
                    raise KeyboardInterrupt
            return {}

        with suppress(KeyboardInterrupt):
            SD3.draw(self.pipe, callback_on_step_end=stop, **self._cast())

    def _cast(self) -> dict[str, Any]:
        inputs = SD3.inputs(Generator().manual_seed(7), 1)
        dtype = self.pipe.transformer.dtype
        return {name: value.to(dtype) for name, value in inputs.items() if isinstance(value, Tensor)}

    def request(self) -> None:
        """A copy of the pipeline with a copy of its scheduler draws."""
        request = copy.copy(self.pipe)
        request.scheduler = copy.deepcopy(self.pipe.scheduler)
        self.compare("request", request)

    def derived(self) -> None:
        """A pipeline made from the components draws."""
        dtype = self.pipe.transformer.dtype  # diffusers casts all components to float32 unless it is told otherwise
        made = diffusers.StableDiffusion3Pipeline.from_pipe(self.pipe, torch_dtype=dtype)
        made.set_progress_bar_config(disable=True)
        self.compare("from_pipe", made)

    def accelerate_again(self) -> None:
        """The acceleration is taken back and made anew, with another plan in between."""
        soda_compile.restore(self.pipe)
        if self.draw.random() < 0.5:
            self.compare("restore")
        soda_compile.accelerate(self.pipe, PLAN)

    def scheduler(self) -> None:
        """The scheduler is replaced by another object, of this or of another shift."""
        shift = self.draw.choice((1.0, 3.0))
        made = [diffusers.FlowMatchEulerDiscreteScheduler(shift=shift) for _ in range(2)]
        self.twin.scheduler = made[0]
        kind = type(self.pipe.scheduler)
        self.pipe.scheduler = self.draw.choice((made[1], kind.from_config(made[1].config)))

    def dtype(self) -> None:
        """The weights change their dtype."""
        dtype = self.draw.choice((torch.float32, torch.bfloat16))
        state = {name: value.float() for name, value in SD3.denoiser().state_dict().items()}
        self.both(lambda pipe: pipe.transformer.to(dtype))
        if dtype == torch.float32 and not self._wrapped:  # both at their full precision again
            self.both(lambda pipe: pipe.transformer.load_state_dict(state))

    def add_adapter(self) -> None:
        """An adapter is added, and is active then."""
        import peft

        if len(self.adapters) >= 3 or self._fused:
            return
        self._made += 1
        self.adapters.append(f"adapter{self._made}")
        config = peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False)

        def add(pipe: Any) -> None:
            torch.manual_seed(self._made)
            pipe.transformer.add_adapter(config, adapter_name=self.adapters[-1])

        self.both(add)

    def set_adapters(self) -> None:
        """Other adapters, or other weights of them, become active."""
        if self.adapters and not self._fused:
            names = self.draw.sample(self.adapters, self.draw.randint(1, len(self.adapters)))
            weights = [self.draw.choice((0.25, 0.5, 1.0)) for _ in names]
            self.both(lambda pipe: pipe.transformer.set_adapters(names, weights))

    def fuse(self) -> None:
        """Adapters are added to the weights, or taken out again."""
        if self.adapters and self.twin.transformer.dtype == torch.float32:  # where a rounding more does not show
            self._fused = not self._fused
            self.both(lambda pipe: pipe.transformer.fuse_lora() if self._fused else pipe.transformer.unfuse_lora())
            mine, others = (pipe.transformer.state_dict() for pipe in (self.pipe, self.twin))
            for name, value in mine.items():  # a product that is rounded otherwise must not add up over the walk
                torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-6)
            self.pipe.transformer.load_state_dict(others)

    def unload(self) -> None:
        """All adapters go."""
        if self.adapters and not self._fused:
            names, self.adapters = self.adapters, []
            self.both(lambda pipe: pipe.transformer.delete_adapters(names))

    def save(self) -> None:
        """The denoiser is saved, and what was saved draws the same."""
        if self.adapters or self._fused or self.twin.transformer.dtype != torch.float32:
            return
        if self._wrapped:
            return  # diffusers does not load what is saved of peft's layers
        with tempfile.TemporaryDirectory() as folder:
            self.pipe.transformer.save_pretrained(folder)
            loaded = diffusers.SD3Transformer2DModel.from_pretrained(folder)
        made = SD3.assemble(loaded)
        made.set_progress_bar_config(disable=True)
        made.scheduler = self.twin.scheduler
        self.compare("save_pretrained", made)

    def hook(self) -> None:
        """A hook on the denoiser sees its calls, and goes."""
        seen: list[int] = []
        handle = self.pipe.transformer.register_forward_hook(lambda *_: seen.append(1))
        self.compare("a hook")
        handle.remove()
        assert seen

    def attention(self) -> None:
        """The attention backend is set."""
        self.both(lambda pipe: pipe.transformer.set_attention_backend("native"))


ACTIONS = (
    "nothing", "interrupt", "request", "derived", "accelerate_again", "scheduler", "dtype", "add_adapter",
    "set_adapters", "fuse", "unload", "save", "hook", "attention",
)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    walk = Walk(random.Random(arguments.seed))
    try:
        walk.run(arguments.actions)
    finally:
        print(f"{walk.done.total()} actions: {dict(walk.done)}")
        print(soda_compile.stats(walk.pipe))
