"""Every rule of an upgrade chain, broken alone: each has its own error, which names the link."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from histories import (
    BEGIN,
    DAY,
    HOUR,
    NOW,
    ONE,
    THREE,
    TWO,
    Made,
    authorised,
    began,
    issued,
    upgraded,
    verify,
)

import enclavia
from enclavia._trust.mark import Mark
from enclavia.testing._history import ControlKey, encode, version_of

ZERO = enclavia.Pcrs(pcr0="0" * 96, pcr1="0" * 96, pcr2="0" * 96)
OTHER = version_of("other")


def refused(
    call: Callable[[], object], link: int | None, fragment: str
) -> enclavia.UpgradeChainError:
    with pytest.raises(enclavia.UpgradeChainError) as caught:
        call()
    error = caught.value
    assert fragment in error.reason, error
    assert error.link == link, error
    assert not error.retryable
    assert link is None or f"link {link}" in str(error)
    return error


# -- what holds -------------------------------------------------------------------------------


def test_a_chain_of_years_leads_from_the_pin_to_the_last_version() -> None:
    history = upgraded()
    chain = verify(history)
    assert chain.pcrs == THREE.pcrs
    assert chain.image_digest == THREE.image_digest
    assert chain.enclave_id == history.enclave_id
    assert chain.pinned == 1
    assert chain.row_agrees
    assert [link.kind for link in chain.links] == [
        "boot",
        "boot",
        "upgrade",
        "boot",
        "upgrade",
        "boot",
    ]
    changes = [link.change for link in chain.links]
    assert changes[0].startswith("first boot")
    assert changes[1] == "restart"
    assert "authorises" in changes[2]
    assert "link 2" in changes[3]
    assert "link 4" in changes[5]
    assert [link.index for link in chain.links] == list(range(6))
    assert chain.links[2].pcrs == ONE.pcrs  # in force after it
    assert chain.links[3].pcrs == TWO.pcrs
    assert chain.links[0].timestamp == BEGIN


@pytest.mark.parametrize("pinned", [ONE, TWO, THREE])
def test_any_version_of_the_chain_may_be_pinned(pinned: Any) -> None:
    assert verify(upgraded(), pcrs=pinned.pcrs).pcrs == THREE.pcrs
    assert verify(upgraded(), pcrs=[OTHER.pcrs, pinned.pcrs]).pcrs == THREE.pcrs


def test_an_upgrade_of_settings_alone_is_followed() -> None:
    """The same image digest, other PCRs."""
    history = Made()
    settings = replace(TWO, image_digest=ONE.image_digest)
    history.boots(ONE, 0)
    history.upgrades(settings, 1, 2)
    history.boots(settings, 3)
    assert verify(history).pcrs == TWO.pcrs


def test_an_upgrade_that_did_not_boot_changes_nothing() -> None:
    history = authorised(2)
    chain = verify(history)
    assert chain.pcrs == ONE.pcrs


def test_the_upgrade_after_a_revoked_one_is_followed() -> None:
    history = began()
    history.upgrades(THREE, 1, 1.2)
    bad = history.upgrades(TWO, 2, 5)
    history.revokes(bad, 3)
    chain = verify(history)
    assert "revokes link 2" in chain.links[3].change
    history.boots(THREE, 6)
    assert verify(history).pcrs == THREE.pcrs


def test_an_upgrade_that_is_valid_later_does_not_hide_the_one_before() -> None:
    history = authorised(2)
    history.upgrades(THREE, 1.1, 9)
    history.boots(TWO, 3)
    assert verify(history).pcrs == TWO.pcrs


def test_it_is_valid_from_the_very_moment_on() -> None:
    history = authorised(2)
    history.boots(TWO, 2)
    assert verify(history).pcrs == TWO.pcrs


@pytest.mark.parametrize("form", ["list", "base64", "compressed"])
def test_forms_of_the_control_key(form: str) -> None:
    history = upgraded()
    key: Any = {
        "list": list(history.key.public),
        "base64": base64.b64encode(history.key.public).decode(),
        "compressed": list(history.key.compressed),
    }[form]
    assert verify(history, row=history.row_json(control_public_key=key)).pcrs == THREE.pcrs


def test_lower_case_keys_and_absent_members_of_the_row() -> None:
    history = began()
    pcrs = {name.lower(): value for name, value in ONE.pcrs.as_dict().items()}
    row = json.dumps({"pcrs": pcrs, "image_digest": "x"})
    chain = verify(history, row=row)
    assert chain.pcrs == ONE.pcrs
    assert not chain.row_agrees


def test_the_result_is_a_value() -> None:
    chain = verify(upgraded())
    again = pickle.loads(pickle.dumps(chain))
    assert again == chain
    assert repr(again) == repr(chain)
    assert "authorises" in str(chain)
    assert str(chain.enclave_id) in chain._repr_html_()


def test_what_a_backend_wrote_is_escaped() -> None:
    history = Made()
    history.boots(replace(ONE, image_digest="<script>alert(1)</script>\x1b[2J"), 0)
    chain = verify(history, row=history.row_json())
    assert "<script>" not in chain._repr_html_()
    assert "\x1b" not in str(chain)


# -- rule 2: every link -----------------------------------------------------------------------


def test_user_data_is_the_hash_of_the_payload() -> None:
    history = upgraded()
    specs = history.changed(3, attested=b"another payload")
    refused(lambda: verify(history, specs), 3, "user_data")


@pytest.mark.parametrize("index", [0, 2, 5])
def test_another_enclaves_link(index: int) -> None:
    history = upgraded()
    fields = {**history.specs[index].fields, "enclave_id": bytes(16)}
    refused(lambda: verify(history, history.changed(index, fields=fields)), index, "enclave_id")


def test_another_enclaves_chain() -> None:
    history = upgraded()
    refused(lambda: verify(history, enclave_id=uuid.uuid4()), 0, "enclave_id")


def test_time_goes_on() -> None:
    history = upgraded()
    earlier = BEGIN + DAY - timedelta(milliseconds=1)
    specs = history.changed(2, at=earlier, pki=issued(BEGIN + DAY - HOUR))
    refused(lambda: verify(history, specs), 2, "timestamp")
    same = BEGIN + DAY
    specs = history.changed(2, at=same, pki=issued(same))
    assert verify(history, specs).pcrs == THREE.pcrs


def test_nothing_is_of_the_future() -> None:
    history = upgraded()
    last = history.specs[-1].at
    assert verify(history, at=last).pcrs == THREE.pcrs
    assert verify(history, at=last - timedelta(seconds=60)).pcrs == THREE.pcrs
    early = last - timedelta(seconds=62)
    error = refused(lambda: verify(history, at=early), 5, "in the future")
    assert "clock" in error.reason
    assert verify(history, at=early, clock_leeway=62).pcrs == THREE.pcrs
    refused(lambda: verify(history, at=last - timedelta(seconds=2), clock_leeway=0), 5, "future")


def test_the_last_moment_that_is_not_the_future() -> None:
    history = upgraded()
    last = history.specs[-1].at
    for late, holds in ((999, True), (1000, False)):
        specs = history.changed(5, at=last + timedelta(milliseconds=late))

        def walk(specs: Any = specs) -> enclavia.UpgradeChain:
            return verify(history, specs, at=last - timedelta(seconds=60))

        if holds:
            assert walk().pcrs == THREE.pcrs
        else:
            refused(walk, 5, "in the future")


def test_a_leaf_that_had_expired_by_then() -> None:
    history = upgraded()
    old = issued(history.specs[3].at - 4 * HOUR)
    error = refused(lambda: verify(history, history.changed(3, pki=old)), 3, "its document")
    assert isinstance(error.__cause__, enclavia.CertificateError)


def test_a_leaf_that_was_not_there_yet() -> None:
    history = upgraded()
    later = issued(history.specs[3].at + HOUR)
    error = refused(lambda: verify(history, history.changed(3, pki=later)), 3, "its document")
    assert isinstance(error.__cause__, enclavia.CertificateError)


def test_another_root() -> None:
    error = refused(lambda: verify(upgraded(), root=None), 0, "its document")
    assert isinstance(error.__cause__, enclavia.CertificateError)


def test_a_document_that_is_not_signed_so() -> None:
    history = upgraded()
    links = history.links()
    document = bytearray(base64.b64decode(links[3]["attestation"]))
    document[-1] ^= 1
    links[3] = {**links[3], "attestation": base64.b64encode(document).decode()}
    error = refused(
        lambda: enclavia.verify_upgrade_chain(
            history.row_json(),
            json.dumps(links),
            pcrs=ONE.pcrs,
            enclave_id=history.enclave_id,
            at=NOW,
            root=issued(BEGIN).root_pem,
        ),
        3,
        "its document",
    )
    assert isinstance(error.__cause__, enclavia.SignatureError)


def test_a_debug_document_in_debug_mode_alone() -> None:
    history = began()
    links = history.links()
    document = encode(
        [
            encode({1: -35}),
            {},
            encode(
                {
                    "module_id": "debug",
                    "digest": "SHA384",
                    "timestamp": 0,
                    "pcrs": dict(enumerate(ONE.pcrs.as_tuple())),
                    "certificate": bytes(64),
                    "cabundle": [],
                    "user_data": hashlib.sha256(base64.b64decode(links[0]["payload"])).digest(),
                }
            ),
            bytes(96),
        ]
    )
    links[0] = {**links[0], "attestation": base64.b64encode(document).decode()}

    def walk(**options: Any) -> enclavia.UpgradeChain:
        return enclavia.verify_upgrade_chain(
            history.row_json(),
            json.dumps(links),
            pcrs=ONE.pcrs,
            enclave_id=history.enclave_id,
            at=NOW,
            **options,
        )

    refused(walk, 0, "its document")
    assert walk(debug_mode=True).pcrs == ONE.pcrs


def test_what_a_document_does_not_have_is_passed_over_in_debug_mode_alone() -> None:
    history = began()
    two = {index: value for index, value in enumerate(ONE.pcrs.as_tuple()) if index != 1}
    specs = history.changed(0, document=(("pcrs", two),))
    refused(lambda: verify(history, specs), 0, "PCR1")
    assert verify(history, specs, debug_mode=True).pcrs == ONE.pcrs
    specs = history.changed(0, attested_by=OTHER.pcrs)
    refused(lambda: verify(history, specs, debug_mode=True), 0, "PCR0")


def test_zeros_in_debug_mode() -> None:
    zero = replace(ONE, pcrs=ZERO)
    history = Made()
    history.boots(zero, 0)
    history.upgrades(replace(TWO, pcrs=ZERO), 1, 2)
    history.boots(replace(TWO, pcrs=ZERO), 3)
    chain = verify(history, pcrs=ZERO, debug_mode=True)
    assert chain.pcrs == ZERO
    assert chain.image_digest == TWO.image_digest


# -- rule 3: boots ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["upgrade", "revocation"])
def test_the_first_link_is_a_boot(kind: str) -> None:
    history = Made()
    first = history.boots(ONE, 0)
    if kind == "upgrade":
        history.upgrades(TWO, 1, 2)
    else:
        history.revokes(first, 1)
    refused(lambda: verify(history, history.specs[1:]), 0, "a boot as the first link")


def test_a_boot_attests_its_own_pcrs() -> None:
    history = upgraded()
    refused(lambda: verify(history, history.changed(3, attested_by=ONE.pcrs)), 3, "PCR0")
    refused(lambda: verify(history, history.changed(0, attested_by=TWO.pcrs)), 0, "PCR0")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_pcr_of_a_boot_counts(index: int) -> None:
    history = upgraded()
    values = list(THREE.pcrs.as_tuple())
    values[index] = bytes([1]) * 48
    other = enclavia.Pcrs(pcr0=values[0], pcr1=values[1], pcr2=values[2])
    refused(lambda: verify(history, history.changed(5, attested_by=other)), 5, f"PCR{index}")
    fields = {**history.specs[5].fields, "pcrs": other.as_dict()}
    specs = history.changed(5, fields=fields, attested_by=other)
    refused(lambda: verify(history, specs), 5, "PCRs of another one")


def test_a_boot_that_nobody_authorised() -> None:
    history = began()
    history.boots(TWO, 1)
    refused(lambda: verify(history), 1, "no upgrade")


def test_another_image_under_the_same_pcrs() -> None:
    history = began()
    history.boots(replace(ONE, image_digest="sha256:other"), 1)
    refused(lambda: verify(history), 1, "no upgrade")


def test_a_boot_of_another_image_digest_than_authorised() -> None:
    history = authorised(2)
    history.boots(replace(TWO, image_digest="sha256:other"), 3)
    refused(lambda: verify(history), 2, "an image digest of another one")


def test_a_boot_before_its_time() -> None:
    history = authorised(3)
    history.boots(TWO, 3 - 1 / 86_400_000)
    refused(lambda: verify(history), 2, "no upgrade")


def test_a_boot_of_a_revoked_upgrade() -> None:
    history = authorised(3)
    upgrade = history.specs[1]
    history.revokes(upgrade, 2)
    history.boots(TWO, 4)
    refused(lambda: verify(history), 3, "no upgrade")


def test_the_last_upgrade_counts() -> None:
    history = authorised(2)
    history.upgrades(THREE, 1.1, 2)
    history.boots(TWO, 3)
    error = refused(lambda: verify(history), 3, "PCRs of another one")
    assert "link 2" in error.reason


def test_an_upgrade_starts_from_the_version_in_force() -> None:
    history = began()
    history.upgrades(THREE, 1, 2, start=TWO.pcrs)
    history.boots(THREE, 3)
    refused(lambda: verify(history), 2, "no upgrade")


def test_an_upgrade_of_an_earlier_version_is_none_of_this_one() -> None:
    history = authorised(2)
    history.upgrades(THREE, 1.1, 9)
    history.boots(TWO, 3)
    history.boots(THREE, 10)
    refused(lambda: verify(history), 4, "no upgrade")


def test_an_earlier_version_again() -> None:
    history = upgraded()
    history.boots(TWO, 900)
    error = refused(lambda: verify(history), 6, "no earlier version")
    assert "allow_rollback" in error.reason
    chain = verify(history, allow_rollback=True)
    assert chain.pcrs == TWO.pcrs
    assert "rolled back" in chain.links[6].change


def test_an_earlier_version_again_although_authorised() -> None:
    history = upgraded()
    history.upgrades(ONE, 810, 811)
    history.boots(ONE, 900)
    refused(lambda: verify(history), 7, "no earlier version")
    assert verify(history, allow_rollback=True).pcrs == ONE.pcrs


def test_a_rollback_leads_only_to_what_ran() -> None:
    history = upgraded()
    history.boots(OTHER, 900)
    refused(lambda: verify(history, allow_rollback=True), 6, "no upgrade")


def test_all_zero_pcrs() -> None:
    history = Made()
    history.boots(replace(ONE, pcrs=ZERO), 0)
    refused(lambda: verify(history, pcrs=ZERO), 0, "its document")
    history = began()
    history.upgrades(replace(TWO, pcrs=ZERO), 1, 2)
    refused(lambda: verify(history), 1, "zeros")


# -- rule 4: upgrades and revocations ---------------------------------------------------------


@pytest.mark.parametrize("by", [TWO, OTHER])
def test_an_upgrade_is_attested_by_the_version_in_force(by: Any) -> None:
    history = upgraded()
    refused(lambda: verify(history, history.changed(2, attested_by=by.pcrs)), 2, "in force")


def test_a_revocation_is_attested_by_the_version_in_force() -> None:
    history = authorised(3)
    upgrade = history.specs[1]
    history.revokes(upgrade, 2)
    refused(lambda: verify(history, history.changed(2, attested_by=TWO.pcrs)), 2, "in force")


def test_the_control_key_signs() -> None:
    history = upgraded()
    error = refused(lambda: verify(history, history.changed(2, key=ControlKey())), 2, "signature")
    assert isinstance(error.__cause__, enclavia.SignatureError)
    other = history.row_json(control_public_key=list(ControlKey().public))
    refused(lambda: verify(history, row=other), 2, "signature")


def test_a_revocation_is_signed_too() -> None:
    history = authorised(3)
    upgrade = history.specs[1]
    history.revokes(upgrade, 2)
    refused(lambda: verify(history, history.changed(2, key=ControlKey())), 2, "signature")


def test_no_control_key() -> None:
    history = upgraded()
    refused(lambda: verify(history, row=history.row_json(control_public_key=None)), 2, "key")


@pytest.mark.parametrize("row", [{"upgradable": False}, {"upgradable": None}])
def test_an_enclave_that_is_not_upgradable(row: dict[str, Any]) -> None:
    history = upgraded()
    given = history.row(**row)
    if row["upgradable"] is None:
        del given["upgradable"]  # absent is false
    refused(lambda: verify(history, row=json.dumps(given)), 2, "not upgradable")


@pytest.mark.parametrize("what", ["boot", "nothing", "later", "null"])
def test_a_revocation_names_an_earlier_upgrade(what: str) -> None:
    history = Made()
    first = history.boots(ONE, 0)
    upgrade = history.upgrades(TWO, 1, 9)
    target = {"boot": first, "nothing": replace(first, id=uuid.uuid4())}.get(what, upgrade)
    history.revokes(target, 2)
    specs = list(history.specs)
    if what == "later":
        at = specs[2].at
        specs = [specs[0], replace(specs[2], at=BEGIN + DAY, pki=issued(BEGIN + DAY)),
                 replace(specs[1], at=at, pki=issued(at))]  # fmt: skip
    elif what == "null":
        specs[1] = replace(specs[1], id=None)
    refused(lambda: verify(history, specs), 1 if what == "later" else 2, "revokes")


def test_a_relabelled_upgrade_is_not_the_one_that_was_revoked() -> None:
    history = authorised(9)
    upgrade = history.specs[1]
    history.revokes(upgrade, 2)
    refused(lambda: verify(history, history.changed(1, id=uuid.uuid4())), 2, "revokes")


def test_a_revocation_comes_before_the_upgrade_is_valid() -> None:
    history = authorised(2)
    upgrade = history.specs[1]
    history.revokes(upgrade, 2)
    refused(lambda: verify(history), 2, "before")
    earlier = upgrade.at + DAY - timedelta(milliseconds=1)
    specs = history.changed(2, at=earlier, pki=issued(upgrade.at + DAY - HOUR))
    assert verify(history, specs).pcrs == ONE.pcrs


def test_a_revocation_is_judged_by_its_documents_time() -> None:
    """Not by what the backend, or the payload, says of it."""
    history = authorised(2)
    upgrade = history.specs[1]
    history.revokes(upgrade, 3)
    fields = {**history.specs[2].fields, "issued_at": "2025-01-07T12:00:01Z"}
    specs = history.changed(2, fields=fields, served=(("created_at", "2025-01-07T12:00:01Z"),))
    refused(lambda: verify(history, specs), 2, "before")


def test_an_upgrade_is_revoked_once() -> None:
    history = authorised(9)
    upgrade = history.specs[1]
    history.revokes(upgrade, 2)
    history.revokes(upgrade, 3)
    refused(lambda: verify(history), 3, "twice")


# -- rule 5: pins -----------------------------------------------------------------------------


def test_the_pinned_version_is_on_the_chain() -> None:
    refused(lambda: verify(upgraded(), pcrs=OTHER.pcrs), None, "pinned PCRs")


def test_a_version_that_was_authorised_and_never_ran_is_no_beginning() -> None:
    history = authorised(2)
    refused(lambda: verify(history, pcrs=TWO.pcrs), None, "pinned PCRs")


# -- rule 6: the high-water mark --------------------------------------------------------------


def test_a_mark_is_extended() -> None:
    history = upgraded()
    mark = verify(history, history.specs[:4]).high_water
    assert verify(history, high_water=mark).pcrs == THREE.pcrs
    assert verify(history, history.specs[:4], high_water=mark).pcrs == TWO.pcrs
    assert verify(history, high_water=mark.encode()).pcrs == THREE.pcrs


def test_an_upgrade_may_be_revoked_after_the_mark() -> None:
    history = authorised(9)
    mark = verify(history).high_water
    history.revokes(history.specs[1], 2)
    assert verify(history, high_water=mark).pcrs == ONE.pcrs


@pytest.mark.parametrize(("links", "holds"), [(0, False), (1, True), (1000, True), (1001, False)])
def test_the_length_of_a_mark(links: int, holds: bool) -> None:
    text = json.dumps(
        {
            "version": 1,
            "enclave_id": str(uuid.uuid4()),
            "links": links,
            "payloads": ["00" * 32] * links,
            "revoked": [],
        }
    )
    if holds:
        assert len(Mark.parse(text).payloads) == links
    else:
        refused(lambda: Mark.parse(text), None, "high-water mark")


def test_withheld_links_show() -> None:
    history = upgraded()
    mark = verify(history).high_water
    refused(lambda: verify(history, history.specs[:4], high_water=mark), None, "withheld")


def test_another_past_shows() -> None:
    history = upgraded()
    mark = verify(history).high_water
    again = Made()
    again.enclave_id = history.enclave_id
    again.boots(ONE, 0)
    again.boots(ONE, 1)
    refused(lambda: verify(again, high_water=mark), 0, "past was changed")


def test_a_revocation_that_is_turned_to_another_upgrade_shows() -> None:
    history = began()
    bad = history.upgrades(TWO, 1, 9)
    history.upgrades(THREE, 1.5, 9)
    history.revokes(bad, 2)
    mark = verify(history).high_water
    specs = list(history.specs)
    specs[1], specs[2] = (
        replace(specs[1], id=specs[2].id),
        replace(specs[2], id=specs[1].id),
    )
    verify(history, specs)  # one answer alone does not show it
    refused(lambda: verify(history, specs, high_water=mark), None, "revocations")


def test_a_mark_of_another_enclave() -> None:
    mark = verify(upgraded()).high_water
    refused(lambda: verify(upgraded(), high_water=mark), None, "mark of its own")


@pytest.mark.parametrize(
    "change",
    [
        lambda mark: mark[:-1],
        lambda mark: "",
        lambda mark: "null",
        lambda mark: mark.replace('"version": 1', '"version": 2'),
        lambda mark: mark.replace('"links": 6', '"links": 5'),
        lambda mark: mark.replace("-", ""),  # of the UUID
        lambda mark: mark.replace('"payloads": ["', '"payloads": ["00'),
        lambda mark: '{"version": 1, "enclave_id": 5, "links": 1, "payloads": [], "revoked": []}',
    ],
)  # fmt: skip
def test_a_mark_that_cannot_be_read_is_not_passed_over(change: Callable[[str], str]) -> None:
    history = upgraded()
    mark = verify(history).high_water
    assert change(mark) != mark
    refused(lambda: verify(history, high_water=change(mark)), None, "high-water mark")


def test_an_earlier_version_under_another_digest_is_an_earlier_one() -> None:
    """PCRs say what runs; a digest is a name for it."""
    history = authorised(2)
    history.boots(TWO, 3)
    renamed = replace(ONE, image_digest=THREE.image_digest)
    history.upgrades(renamed, 4, 5)
    history.boots(renamed, 6)
    refused(lambda: verify(history), 4, "no earlier version")
    chain = verify(history, allow_rollback=True)
    assert chain.pcrs == ONE.pcrs
    assert chain.links[4].change.startswith("upgraded")  # which somebody authorised
    unauthorised = authorised(2)
    unauthorised.boots(TWO, 3)
    unauthorised.boots(renamed, 6)
    refused(lambda: verify(unauthorised, allow_rollback=True), 3, "authorises")


def test_a_new_digest_alone_is_no_earlier_version() -> None:
    history = began()
    renamed = replace(ONE, image_digest=THREE.image_digest)
    history.upgrades(renamed, 1, 2)
    history.boots(renamed, 3)
    assert verify(history).image_digest == THREE.image_digest
    history.boots(ONE, 4)
    refused(lambda: verify(history), 3, "no earlier version")
