"""What an MRI archive is refused for, by scan or by verify."""

from pathlib import Path
from typing import Any

import pytest

from data_adapters.base import Record, Rejected
from data_adapters.errors import BadFileError
from data_adapters.mri.adapter import MRIAdapter


def reasons(path: Path, **options: Any) -> set[str]:
    """Reasons that scan or verify give; every file must be refused."""
    adapter = MRIAdapter(**options)
    given = set()
    for found in adapter.scan(path):
        if isinstance(found, Rejected):
            assert found.remedy
            given.add(found.reason)
        else:
            with pytest.raises(BadFileError) as error:
                adapter.verify(found)
            assert error.value.remedy
            assert str(path) not in error.value.cause + error.value.remedy
            given.add(error.value.cause)
    return given


def reasons_of_readable(path: Path, **options: Any) -> list[str]:
    """Reasons of what scan refuses; what it does not refuse must be readable."""
    adapter = MRIAdapter(**options)
    found = list(adapter.scan(path))
    for record in found:
        if isinstance(record, Record):
            adapter.verify(record)
    return [item.reason for item in found if isinstance(item, Rejected)]
