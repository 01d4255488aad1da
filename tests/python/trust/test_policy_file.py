"""A policy's file: what it may say, what is refused and how, and the schema that is published."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import enclave_peer
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavia import Pcrs, Policy, PolicyUpgrades, PolicyVersion

ONE = {f"PCR{index}": f"{index + 1:02x}" * 48 for index in range(3)}
TWO = {f"pcr{index}": f"{index + 17:02x}" * 48 for index in (0, 1, 2, 8)}
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
TOML = f"""
format = 1
endpoint = "wss://0f8fad5b.enclaves.example"
mode = "production"

[[versions]]
name = "2026-11-20"
not_after = 2027-01-31T13:00:00+01:00
pcrs = {{ PCR0 = "{ONE["PCR0"]}", PCR1 = "{ONE["PCR1"]}", PCR2 = "{ONE["PCR2"]}" }}

[[versions]]
name = "next"

[versions.pcrs]
pcr0 = "{TWO["pcr0"]}"
pcr1 = "{TWO["pcr1"]}"
pcr2 = "{TWO["pcr2"]}"
pcr8 = "{TWO["pcr8"]}"

[upgrades]
backend = "https://backend.example"
enclave_id = "{UUID.upper()}"
high_water = "mark.json"
"""
GOOD: dict[str, Any] = {
    "format": 1,
    "endpoint": "wss://0f8fad5b.enclaves.example",
    "mode": "production",
    "versions": [
        {"name": "2026-11-20", "not_after": "2027-01-31T12:00:00Z", "pcrs": ONE},
        {"name": "next", "pcrs": TWO},
    ],
    "upgrades": {
        "backend": "https://backend.example",
        "enclave_id": UUID,
        "allow_rollback": False,
        "high_water": "mark.json",
    },
}
SMALLEST = {"format": 1, "versions": [{"name": "a", "pcrs": ONE}]}


def read(document: object) -> Policy:
    return Policy.parse(json.dumps(document))


def changed(document: dict[str, Any], *where: Any, to: Any) -> dict[str, Any]:
    made = copy.deepcopy(document)
    table: Any = made
    for key in where[:-1]:
        table = table[key]
    if to is ...:
        del table[where[-1]]
    else:
        table[where[-1]] = to
    return made


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    expected = Policy(
        endpoint="wss://0f8fad5b.enclaves.example",
        mode="production",
        versions=(
            PolicyVersion(
                "2026-11-20",
                Pcrs(pcr0=b"\x01" * 48, pcr1=b"\x02" * 48, pcr2=b"\x03" * 48),
                datetime(2027, 1, 31, 12, tzinfo=UTC),
            ),
            PolicyVersion("next", Pcrs(**TWO)),  # type: ignore[arg-type]
        ),
        root=None,
        upgrades=PolicyUpgrades(
            backend="https://backend.example",
            enclave_id=UUID,
            high_water=str(tmp_path / "mark.json"),
        ),
    )
    for name, text in (("policy.toml", TOML), ("policy.json", json.dumps(GOOD, indent=2))):
        path = tmp_path / name
        path.write_text(text)
        for given_path in (path, str(path)):
            assert Policy.load(given_path) == expected
        assert Policy.parse(text, folder=tmp_path) == expected
        assert Policy.parse(b"\xef\xbb\xbf" + text.encode(), folder=tmp_path) == expected
    assert pickle.loads(pickle.dumps(expected)) == expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        expected.mode = "debug"  # type: ignore[misc]


def test_what_may_be_left_out() -> None:
    policy = read(SMALLEST)
    assert (policy.endpoint, policy.mode, policy.root, policy.upgrades) == (
        None,
        "production",
        None,
        None,
    )
    assert policy.versions[0].not_after is None
    assert read({"format": 1, "mode": "debug"}).versions == ()
    assert read({"format": 1, "mode": "debug"}).pins is None


SIGNED: dict[str, Any] = {
    "format": 1,
    "versions": [
        {
            "name": "a",
            "pcrs": "pcrs.json",
            "sigstore": {
                "bundle": "bundle.json",
                "identity": "https://github.com/acme/enclave/.github/workflows/a.yml@refs/heads/a",
                "issuer": "https://token.actions.githubusercontent.com",
                "repository": "https://github.com/acme/enclave",
                "ref": "refs/heads/a",
                "subject": "pcrs.json",
                "predicate_type": "https://slsa.dev/provenance/v1",
                "trusted_root": "trusted_root.json",
            },
        }
    ],
}
"""Whose files are not there: what the file says is looked at first."""


def signed_so(key: str, to: Any) -> Any:
    return changed(SIGNED, "versions", 0, "sigstore", key, to=to)


# A policy, and what is said of it. The schema refuses all of these too.
REFUSED: list[tuple[Any, str]] = [
    (changed(SMALLEST, "format", to=...), "format: expected 1, .* got none"),
    (changed(SMALLEST, "format", to=2), "format: expected 1, which this version of enclavia reads"),
    (changed(SMALLEST, "format", to="1"), "format: expected a whole number, got text"),
    (changed(SMALLEST, "format", to=True), "format: expected a whole number, got a boolean"),
    (changed(SMALLEST, "format", to=None), "format: expected a whole number, got null"),
    (changed(SMALLEST, "pcrs", to=ONE), "pcrs: expected no such key, got one"),
    (changed(SMALLEST, "Mode", to="debug"), "Mode: expected no such key, got one"),
    (changed(SMALLEST, "endpoint", to=""), "endpoint: expected text, got an empty one"),
    (changed(SMALLEST, "endpoint", to=5), "endpoint: expected text, got a number"),
    (changed(SMALLEST, "endpoint", to=None), "endpoint: expected text, got null"),
    (changed(SMALLEST, "mode", to="Debug"), "mode: expected 'production' or 'debug', got 'Debug'"),
    (changed(SMALLEST, "mode", to=True), "mode: expected text, got a boolean"),
    (changed(SMALLEST, "root", to=[]), "root: expected text, got an array"),
    (changed(SMALLEST, "root", to=" "), "root: expected text, got an empty one"),
    (changed(SMALLEST, "versions", to=...), "versions: expected at least one, got none"),
    (changed(SMALLEST, "versions", to=[]), "versions: expected at least one, got none"),
    (changed(SMALLEST, "versions", to={}), "versions: expected an array of tables, got a table"),
    (changed(SMALLEST, "versions", to=[{}] * 257), "versions: expected at most 256, got 257"),
    (changed(SMALLEST, "versions", 0, to="a"), r"versions\[0\]: expected a table, got text"),
    (changed(SMALLEST, "versions", 0, "name", to=...), r"versions\[0\].name: expected a value"),
    (changed(SMALLEST, "versions", 0, "name", to=""), r"versions\[0\].name: .*got an empty one"),
    (changed(SMALLEST, "versions", 0, "name", to="a" * 101), r"name: expected at most 100"),
    (changed(SMALLEST, "versions", 0, "name", to=1), r"versions\[0\].name: .*got a number"),
    (
        changed(SMALLEST, "versions", 0, "not_afte", to="2027-01-31T12:00:00Z"),
        r"versions\[0\].not_afte: expected no such key, got one",
    ),
    (changed(SMALLEST, "versions", 0, "not_after", to=5), r"\[0\].not_after: .*got a number"),
    (changed(SMALLEST, "versions", 0, "not_after", to=None), r"\[0\].not_after: .*got null"),
    (changed(SMALLEST, "versions", 0, "pcrs", to=...), r"versions\[0\].pcrs: expected a value"),
    (changed(SMALLEST, "versions", 0, "pcrs", to=[]), r"\[0\].pcrs: expected a table, got an arra"),
    (changed(SMALLEST, "versions", 0, "pcrs", "PCR1", to=...), r"pcrs.PCR1: .*got none"),
    (changed(SMALLEST, "versions", 0, "pcrs", "PCR1", to=5), r"pcrs.PCR1: expected text, got a n"),
    (
        changed(SMALLEST, "versions", 0, "pcrs", "PCR1", to="zz" * 48),
        "pcr1: expected 64, 96 or 128",
    ),
    (
        changed(SMALLEST, "versions", 0, "pcrs", "PCR1", to="11" * 47),
        "pcr1: expected 64, 96 or 128",
    ),
    (changed(SMALLEST, "versions", 0, "pcrs", "PCR5", to="55" * 48), "pcrs.PCR5: expected PCR0 to"),
    (changed(SMALLEST, "versions", 0, "pcrs", "PCR08", to="55" * 48), "pcrs.PCR08: expected PCR0"),
    (changed(SMALLEST, "versions", 0, "pcrs", "PCR32", to="55" * 48), "pcrs.PCR32: expected PCR0"),
    (changed(SMALLEST, "versions", 0, "pcrs", "Pcr8", to="55" * 48), "pcrs.Pcr8: expected PCR0"),
    (changed(SMALLEST, "versions", 0, "pcrs", "pcr1", to="02" * 48), "pcrs.pcr1: .*it twice"),
    (changed(SMALLEST, "versions", 0, "pcrs", to="a"), r"\[0\].pcrs: expected a table, got text"),
    (changed(SIGNED, "versions", 0, "pcrs", to=ONE), r"\[0\].pcrs: expected text, got a table"),
    (changed(SIGNED, "versions", 0, "pcrs", to=""), r"\[0\].pcrs: expected text, got an empty"),
    (changed(SIGNED, "versions", 0, "sigstore", to=[]), r"\[0\].sigstore: expected a table, got"),
    (changed(SIGNED, "versions", 0, "sigstore", to=None), r"\[0\].sigstore: .*got null"),
    *(
        (signed_so(key, ...), rf"\[0\].sigstore.{key}: expected a value, got none")
        for key in ("bundle", "identity", "issuer")
    ),
    *(
        (signed_so(key, value), rf"\[0\].sigstore.{key}: expected text, got {got}")
        for key in SIGNED["versions"][0]["sigstore"]
        for value, got in (("", "an empty one"), (" ", "an empty one"), (5, "a number"))
    ),
    (signed_so("identities", "any"), r"\[0\].sigstore.identities: expected no such key"),
    (signed_so("repository", "acme/enclave"), r"\[0\].sigstore: repository: expected its URL"),
    (signed_so("ref", "main"), r"\[0\].sigstore: ref: expected a full one"),
    (
        changed(signed_so("predicate_type", ...), "versions", 0, "pcrs", to=...),
        r"\[0\].sigstore: pcrs: expected a signed file, or predicate_type= of the statement",
    ),
    (changed(SMALLEST, "upgrades", to=[]), "upgrades: expected a table, got an array"),
    (changed(SMALLEST, "upgrades", to=None), "upgrades: expected a value, got null"),
    (changed(GOOD, "upgrades", "backend", to=...), "upgrades.backend: expected a value, got none"),
    (changed(GOOD, "upgrades", "backend", to=""), "upgrades.backend: expected text, got an empty"),
    (changed(GOOD, "upgrades", "enclave_id", to=...), "upgrades.enclave_id: expected a value"),
    (changed(GOOD, "upgrades", "enclave_id", to="x"), "upgrades.enclave_id: expected a UUID"),
    (changed(GOOD, "upgrades", "enclave_id", to=UUID.replace("-", "")), "expected a UUID with hyp"),
    (changed(GOOD, "upgrades", "allow_rollback", to=1), "allow_rollback: expected true or false"),
    (changed(GOOD, "upgrades", "allow_rollback", to="true"), "allow_rollback: expected true or fa"),
    (changed(GOOD, "upgrades", "high_water", to=True), "upgrades.high_water: expected text"),
    (changed(GOOD, "upgrades", "token", to="secret"), "upgrades.token: expected no such key"),
]
# What a schema cannot say.
REFUSED_BEYOND: list[tuple[Any, str]] = [
    (
        changed(GOOD, "versions", 1, "name", to="2026-11-20"),
        r"versions\[1\].name: expected each once, got '2026-11-20'",
    ),
    (
        changed(GOOD, "versions", 1, "pcrs", to=ONE),
        r"versions\[1\].pcrs: expected others than those of '2026-11-20', got the same",
    ),
    (
        changed(SMALLEST, "versions", 0, "pcrs", to=dict.fromkeys(ONE, "00" * 48)),
        r"versions\[0\].pcrs: expected those of a production enclave, got zeros",
    ),
    (changed(GOOD, "versions", 1, "pcrs", "pcr8", to="11" * 32), r"\[1\].pcrs: .*one length"),
    (changed(SMALLEST, "versions", 0, "name", to="a\nb"), "expected at most 100 printable"),
    *(
        (
            changed(SMALLEST, "versions", 0, "not_after", to=text),
            r"\[0\].not_after: expected a date and time with its offset .*, got '",
        )
        for text in (
            "",
            "tomorrow",
            "2027-01-31",
            "2027-01-31T12:00:00",
            "2027-02-30T12:00:00Z",
            "0001-01-01T00:00:00+23:59",
            "1801 (expired)",
        )
    ),
]


@pytest.mark.parametrize(("document", "message"), [*REFUSED, *REFUSED_BEYOND])
def test_refused(document: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(document)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"policy\.json: .*{message}"):
        Policy.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "format: expected 1, .* got none"),
        ("format = 1\nformat = 1", "got what is no TOML"),
        ("format = 1\nmode = production", "got what is no TOML"),
        ('{"format": 1, "format": 1}', "each key once, got the key 'format' twice"),
        ('{"format": 1, "versions": [{"name": "a", "name": "b"}]}', "'name' twice"),
        ('{"format": NaN}', "got NaN, which JSON does not have"),
        ("{", "got what is no JSON"),
        ("[]", "format: expected a value|no TOML"),
        ('{"a":' * 50_000, "nested too deep"),
        ("a = " + "[" * 50_000, "nested too deep|no TOML"),
        ('{"format": ' + "9" * 5000 + "}", "format|digits"),
        (b"\xff", "got what is not UTF-8"),
        ("#" * (1024 * 1024 + 1), "expected at most 1048576 characters"),
        (
            'format = 1\nversions = [{name = "a", not_after = 2027-01-31T12:00:00}]',
            r"versions\[0\].pcrs: expected a value",
        ),
        (
            f'format = 1\n[[versions]]\nname = "a"\npcrs = {{PCR0="{ONE["PCR0"]}", '
            f'PCR1="{ONE["PCR1"]}", PCR2="{ONE["PCR2"]}"}}\nnot_after = 2027-01-31T12:00:00',
            r"expected a date and time with its offset \(.*\), got one without an offset",
        ),
        (
            f'format = 1\n[[versions]]\nname = "a"\npcrs = {{PCR0="{ONE["PCR0"]}", '
            f'PCR1="{ONE["PCR1"]}", PCR2="{ONE["PCR2"]}"}}\nnot_after = 2027-01-31',
            r"expected a date and time with its offset \(.*\), got a date",
        ),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_texts_that_are_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy.parse(text)


@pytest.mark.parametrize("value", [None, 5, {}, memoryview(b"x")])
def test_wrong_types(value: Any) -> None:
    with pytest.raises(TypeError, match="text: expected str or bytes, got"):
        Policy.parse(value)
    with pytest.raises(TypeError, match="path: expected text or a path, got"):
        Policy.load(value)


def test_roots(tmp_path: Path) -> None:
    pem = enclave_peer.root()
    (tmp_path / "root.pem").write_bytes(pem)
    (tmp_path / "root.der").write_bytes(enclave_peer.pki().root_der)
    beside = {**SMALLEST, "root": "root.pem"}
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(beside))
    assert Policy.load(path).root == pem  # relative to the policy, wherever the program runs
    assert Policy.parse(json.dumps(beside), folder=tmp_path).root == pem
    assert (
        read({**SMALLEST, "root": str(tmp_path / "root.der")}).root == enclave_peer.pki().root_der
    )
    assert read({**SMALLEST, "root": pem.decode()}).root == pem
    with pytest.raises(
        FileNotFoundError, match="root: expected the path of a file with a certificate"
    ):
        Policy.parse(json.dumps({**SMALLEST, "root": "none.pem"}), folder=tmp_path)


def test_which_versions_are_allowed() -> None:
    policy = read(GOOD)
    end = datetime(2027, 1, 31, 12, tzinfo=UTC)
    for moment, names in (
        (end - timedelta(days=100), ["2026-11-20", "next"]),
        (end, ["2026-11-20", "next"]),
        (end + timedelta(microseconds=1), ["next"]),
    ):
        assert [version.name for version in policy.allowed(moment)] == names
        pins = policy.pins
        assert pins is not None
        assert [each.name for each in pins.in_force(moment.timestamp())] == names
    with pytest.raises(ValueError, match="expected an aware datetime"):
        policy.allowed(datetime(2027, 1, 1))


# -- the schema ----------------------------------------------------------------------------------


def conforms(document: object) -> bool:
    return bool(jsonschema.Draft202012Validator(Policy.schema()).is_valid(document))


def test_the_schema_is_one() -> None:
    schema = Policy.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    schema["title"] = "changed"
    assert Policy.schema()["title"] != "changed"


def test_the_schema_takes_signed_versions() -> None:
    """(That such policies are read is in test_sigstore_pins.py.)"""
    assert conforms(SIGNED)
    assert conforms(changed(SIGNED, "versions", 0, "pcrs", to=...))
    for key in ("repository", "ref", "subject", "predicate_type", "trusted_root"):
        assert conforms(signed_so(key, ...))


@pytest.mark.parametrize("document", [GOOD, SMALLEST, {"format": 1, "mode": "debug"}])
def test_the_schema_takes_what_is_taken(document: dict[str, Any]) -> None:
    assert conforms(document)
    read(document)


@pytest.mark.parametrize("document", [document for document, _ in REFUSED])
def test_the_schema_refuses_what_is_refused(document: Any) -> None:
    assert not conforms(document)


def tables(document: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [where] if isinstance(document, dict) else []
    items: Any = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        if isinstance(value, dict | list):
            found += tables(value, (*where, key))
    return found


@pytest.mark.parametrize("where", tables(GOOD), ids=repr)
def test_no_table_takes_a_key_that_nobody_reads(where: tuple[Any, ...]) -> None:
    document = changed(GOOD, *where, "surplus", to="x")
    assert not conforms(document)
    with pytest.raises(ValueError, match=r"surplus: expected"):
        read(document)


def drawn_policy() -> st.SearchStrategy[Any]:
    """Policies that are nearly right: a good one with one value replaced, or left out."""
    places: list[tuple[Any, ...]] = []
    for table in tables(GOOD):
        inside: Any = GOOD
        for key in table:
            inside = inside[key]
        places += [(*table, key) for key in inside]
    value = st.one_of(
        st.just(...),
        st.none(),
        st.booleans(),
        st.integers(-2, 300),
        st.text(max_size=12),
        st.sampled_from(["debug", "production", UUID, "ab" * 32, "ab" * 48, "ab" * 64]),
        st.lists(st.none(), max_size=2),
        st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    )
    change: Callable[..., Any] = lambda where, to: changed(GOOD, *where, to=to)  # noqa: E731
    return st.builds(change, st.sampled_from(places), value)


@settings(max_examples=300, deadline=None)
@given(drawn_policy())
def test_whatever_is_taken_conforms(document: Any) -> None:
    """A policy that this takes passes also where it is checked before, in an editor or a pipeline;
    and nothing but ValueError is raised."""
    try:
        read(document)
    except ValueError:
        return
    assert conforms(document), document
