from __future__ import annotations

from collections.abc import Iterator

import pytest
from crash import shim
from crash.machine import Machine


@pytest.fixture(scope="package")
def machine() -> Iterator[Machine]:
    """A machine with the models and data of the worlds."""
    if why := shim.missing():
        pytest.skip(why)
    with Machine() as machine:
        machine.start(["call:crash.inputs:build", str(machine.inputs)])
        yield machine
