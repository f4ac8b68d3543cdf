"""Modules that run with other tensors in the places of their parameters, in a way that Dynamo follows."""

from torch.nn.utils.stateless import _reparametrize_module as with_tensors

__all__ = ["with_tensors"]
