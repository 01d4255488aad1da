"""OpenTelemetry with exporters that keep what they are given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from exported import Exported

from enclavia.opentelemetry import EnclaviaInstrumentor


@pytest.fixture
def exported() -> Iterator[Exported]:
    """With the instrumentor on."""
    exported = Exported()
    EnclaviaInstrumentor().instrument(
        tracer_provider=exported.tracers, meter_provider=exported.meters
    )
    try:
        yield exported
    finally:
        EnclaviaInstrumentor().uninstrument()


@pytest.fixture
def plain_exported() -> Exported:
    """Without it: for instrumentations of other libraries."""
    return Exported()
