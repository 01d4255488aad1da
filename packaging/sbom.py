"""The list of what a wheel carries, in CycloneDX (ECMA-424); PEP 770 says where it lies."""

from __future__ import annotations

import datetime
import uuid

from cyclonedx.builder.this import this_component
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from sources import Source

OWN_LICENCE = "MIT OR Apache-2.0"
# Any fixed name will do: the document's serial number must follow from what it says.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:enclavia:sbom")


def pedigree(source: Source) -> Pedigree | None:
    """What was changed of a released source."""
    notes = "; ".join(f"{e.file}: {e.old} became {e.new}" for e in source.edits)
    return Pedigree(notes=notes) if notes else None


def component(source: Source) -> Component:
    """One library as it was released; its hash is that of the released archive."""
    return Component(
        type=ComponentType.LIBRARY,
        name=source.name,
        version=source.version,
        cpe=source.cpe,
        purl=PackageURL("generic", name=source.name, version=source.version),
        bom_ref=f"{source.name}@{source.version}",
        licenses=[LicenseExpression(source.spdx)],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=source.sha256)],
        pedigree=pedigree(source),
    )


def document(libraries: list[Source], version: str, platform: str, epoch: int) -> str:
    """The same text for the same arguments."""
    bom = Bom()
    bom.serial_number = uuid.uuid5(
        NAMESPACE, f"{version} {platform} " + " ".join(f"{s.name}={s.version}" for s in libraries)
    )
    bom.metadata.timestamp = datetime.datetime.fromtimestamp(epoch, datetime.UTC)
    bom.metadata.tools.components.add(this_component())
    own = Component(
        type=ComponentType.LIBRARY,
        name="enclavia",
        version=version,
        purl=PackageURL("pypi", name="enclavia", version=version),
        bom_ref=f"enclavia@{version}",
        licenses=[LicenseExpression(OWN_LICENCE)],
    )
    bom.metadata.component = own
    for source in libraries:
        bom.components.add(component(source))
    bom.register_dependency(own, list(bom.components))
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
