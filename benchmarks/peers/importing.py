"""Importing packages of PyTorch's surroundings where PyTorch is the CPU build."""

import importlib

import torch


def import_without_operators(name: str):
    """Imports a package that needs torchvision where its operators cannot be loaded.

    There is no torchvision built for the CPU-only PyTorch. Its Python part imports, if
    descriptions of operators that are not there are not registered; no network of ours or
    theirs uses them.
    """
    register = torch.library.register_fake

    def register_present(name, *arguments, **named):
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return register(name, *arguments, **named)

    torch.library.register_fake = register_present
    try:
        return importlib.import_module(name)
    finally:
        torch.library.register_fake = register
