"""Skips the whole stack of blocks at some steps: its residual, last output minus first input, is predicted.

Which steps, and how, a rule says. Blocks are wrapped in eager mode; a skipped step runs the ends of the model alone.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from torch import Tensor, nn

from benchmarks.leaderboard.branch_rules import Clock
from benchmarks.leaderboard.installed import Installed
from benchmarks.leaderboard.subject import Subject, modules_at
from benchmarks.suite.runner import bytes_in


class StackRule(Protocol):
    """Decides for each step."""

    def skips(self, step: int, block: nn.Module, arguments: dict[str, Any]) -> bool:
        """Whether the stack is skipped, told from the first block and its arguments by name."""

    def residual(self, step: int) -> Tensor:
        """The predicted residual of a skipped step."""

    def computed(self, step: int, residual: Tensor) -> None:
        """Take the residual of a step that was computed."""

    def reset(self) -> None:
        """Forget the last generation."""


class Stack:
    """The wrapped blocks of one denoiser."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList, rule: StackRule) -> None:
        self.rule, self.clock = rule, Clock(model)
        self.metadata: Any = TransformerBlockRegistry.get(type(blocks[0]))
        self.skipped, self.entered = False, torch.empty(0)
        for number, block in enumerate(blocks):
            first, last = number == 0, number == len(blocks) - 1
            block.forward = self._wrapped(block, block.forward, first, last)

    def _wrapped(self, block: nn.Module, original: Callable[..., Any], first: bool, last: bool) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            hidden = arguments[self.metadata.hidden_states_argument_name]
            if first:
                self.entered = hidden
                self.skipped = self.rule.skips(self.clock.step, block, arguments)
            if self.skipped:
                out = hidden + self.rule.residual(self.clock.step) if last else hidden
                return self._result(out, arguments)
            result = original(*args, **kwargs)
            if last:
                self.rule.computed(self.clock.step, self._hidden(result) - self.entered)
            return result

        return forward

    def _hidden(self, result: Any) -> Tensor:
        found: Tensor = result[self.metadata.return_hidden_states_index] if isinstance(result, tuple) else result
        return found

    def _result(self, hidden: Tensor, arguments: dict[str, Any]) -> Any:
        other = self.metadata.return_encoder_hidden_states_index
        if other is None:
            return hidden
        result = [arguments[self.metadata.encoder_hidden_states_argument_name]] * 2
        result[self.metadata.return_hidden_states_index] = hidden
        return tuple(result)

    def reset(self) -> None:
        self.clock.reset()
        self.rule.reset()


def stack_rule(subject: Subject, rule: StackRule) -> Installed:
    """Run a subject under a rule.

    Raises:
        NotImplementedError: If what its blocks take and give is not known.
    """
    pipe = subject.fresh()
    model = getattr(pipe, subject.denoiser)
    blocks = modules_at(subject, model)
    try:
        stack = Stack(model, blocks, rule)
    except (KeyError, ValueError) as error:
        raise NotImplementedError(f"diffusers does not say what {type(blocks[0]).__name__} takes and gives") from error
    return Installed(pipe, subject.steps, stack.reset, lambda: bytes_in(vars(rule)))
