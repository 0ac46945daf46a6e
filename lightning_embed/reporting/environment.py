"""The environment in which something ran, as plain data."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

PACKAGES = ("lightning-embed", "torch", "lightning", "pytorch-lightning", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that matter, the system, and its device; no names of users or machines.

    >>> environment()["Python"] == platform.python_version()
    True
    """
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found
