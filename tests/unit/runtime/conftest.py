"""A denoiser whose graphs run node by node: what is tested does not depend on how they are compiled."""

from collections.abc import Iterator

import pytest
import torch
from plain_models import DitBlock, Listed
from random_plans import random_plan
from subject import STEPS, Subject
from torch import nn
from tracing import eager_graphs

import soda_compile


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with eager_graphs():
        torch.manual_seed(0)
        model = Listed(DitBlock).eval().requires_grad_(False)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        x, t = torch.zeros(2, 9, 4), torch.zeros(2)
        structure = soda_compile.inspect(model, x, t)
        plan = random_plan(5, structure.region_names, STEPS, fingerprint=structure.fingerprint)
        yield Subject(model, plan)
