"""Pins: what is taken, what is refused and how, and every text they come from."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enclavia import Pcrs
from enclavia._identity.pins import matching_set, pin_tuples

HEX = ["4f" * 48, "7e" * 48, "6b" * 48]
PINS = Pcrs(pcr0=HEX[0], pcr1=HEX[1], pcr2=HEX[2])
UPPER = {f"PCR{index}": value for index, value in enumerate(HEX)}
LOWER = {name.lower(): value for name, value in UPPER.items()}

STATUS_JSON = json.dumps(
    {
        "id": "0f8fad5b-d9cb-469f-a165-70867728950e",
        "endpoint": "wss://0f8fad5b.enclaves.beta.enclavia.io",
        "mode": "production",
        "status": "running",
        "pcrs": UPPER,
    },
    indent=2,
)
STATUS_TEXT = f"""
  Name:     hello
  Status:   running
  Endpoint: https://0f8fad5b.enclaves.beta.enclavia.io
  PCRs:
    PCR0: {HEX[0]}
    PCR1: {HEX[1]}
    PCR2: {HEX[2]}
"""
DEPLOY_TEXT = f"""Building image... done
Deployed in 41 s.
  PCRs (pin these in your client):
    PCR0: {HEX[0]}
    PCR1: {HEX[1]}
    PCR2: {HEX[2]}
"""
NITRO_CLI = json.dumps({"Measurements": {"HashAlgorithm": "Sha384 { ... }", **UPPER}}, indent=2)


@pytest.mark.parametrize(
    "text",
    [
        STATUS_JSON,
        STATUS_TEXT,
        DEPLOY_TEXT,
        NITRO_CLI,
        "Start building the Enclave Image...\nEnclave Image successfully created.\n" + NITRO_CLI,
        "[ INFO ] {not json} for a while\n" + NITRO_CLI + "\nbye {\n",
        json.dumps({"pcrs": UPPER}),
        json.dumps({"pcrs": LOWER, "image_digest": "sha256:ab", "upgradable": True}),
        json.dumps(UPPER),
        json.dumps([{"enclave": {"pcrs": LOWER}}]),
        STATUS_JSON.encode(),
        b"\xef\xbb\xbf" + STATUS_JSON.encode(),
        STATUS_TEXT.replace("\n", "\r\n"),
        STATUS_TEXT.upper(),
    ],
    ids=lambda text: repr(text[:24]),
)
def test_parse(text: str | bytes) -> None:
    assert Pcrs.parse(text) == PINS


@pytest.mark.parametrize(
    "filler", ["\n", " \n", " ", "\r", "pcr0 ", "pcr0=", "pcr31", "{", '{"', "[\n"]
)
def test_no_text_takes_forever(filler: str) -> None:
    """In another process: what takes hours cannot be interrupted here."""
    code = (
        "import sys; from enclavia import Pcrs\n"
        "try: Pcrs.parse(sys.argv[1] * (500_000 // len(sys.argv[1])))\n"
        "except ValueError: sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code, filler], timeout=120)
    assert done.returncode == 3


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text(STATUS_JSON)
    assert Pcrs.load(path) == Pcrs.load(str(path)) == PINS
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"status\.json: expected PCR0, PCR1 and PCR2"):
        Pcrs.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got nothing"),
        ("hello", "got 'hello'"),
        ("{}", "expected PCR0, PCR1 and PCR2"),
        (json.dumps({"pcrs": {"PCR0": HEX[0], "PCR2": HEX[2]}}), "PCR1 missing"),
        (f"PCR0: {HEX[0]}\n", "PCR1 and PCR2 missing"),
        (json.dumps({"pcrs": {**UPPER, "PCR1": 5}}), "pcr1: expected hex text, got int"),
        (json.dumps({"pcrs": {**UPPER, "PCR1": "zz"}}), "pcr1: expected 64, 96 or 128 hex digits"),
        (json.dumps({"pcrs": {**UPPER, "PCR1": ""}}), "got 0"),
        (json.dumps([UPPER, {**UPPER, "PCR2": "00" * 48}]), "2 different ones"),
        (STATUS_TEXT + STATUS_TEXT.replace("4f", "5f"), "2 different ones"),
        (STATUS_TEXT.replace(HEX[0], HEX[0][:-1]), "pcr0: expected 64, 96 or 128 hex digits"),
        (b"\xff\xfe\x00", "expected UTF-8"),
        ("[" * 100_000, "expected PCR0, PCR1 and PCR2"),
        ('{"a":' * 5_000, "expected PCR0, PCR1 and PCR2"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_parse_refuses(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pcrs.parse(text)


OTHER = {f"PCR{index}": "ee" * 48 for index in range(3)}
OTHER_TEXT = "".join(f"    {name}: {value}\n" for name, value in OTHER.items())
STATUS = json.loads(STATUS_JSON)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "value",
    [
        {**STATUS, "synchronizer_pcrs": [OTHER, {name.lower(): v for name, v in OTHER.items()}]},
        {"synchronizer_pcrs": [OTHER], **STATUS},
        {"expected": UPPER, "actual": UPPER, "recorded_synchronizer_pcrs": [OTHER]},
        {"expected": UPPER, "actual": LOWER, "recorded_synchronizer_pcrs": OTHER},
        {"enclave_id": "x", "endpoint": "wss://x", "pcrs": LOWER, "debug_mode": False},
    ],
    ids=lambda value: ",".join(value),
)
def test_the_pcrs_of_another_enclave_beside_ours(value: Any, indent: int | None) -> None:
    assert Pcrs.parse("a log line\n" + json.dumps(value, indent=indent) + "\ndone\n") == PINS


def written(*pairs: tuple[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": "{value}"' for name, value in pairs) + "}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#12 RUN pip install evil\n" + json.dumps(OTHER) + "\n" + DEPLOY_TEXT, "2 different ones"),
        (DEPLOY_TEXT + json.dumps(OTHER, indent=2), "2 different ones"),
        (OTHER_TEXT + STATUS_JSON, "2 different ones"),
        ("{" * 255 + json.dumps(OTHER) + "\n" + STATUS_JSON, "2 different ones"),
        ("{" * 4000 + json.dumps(OTHER) + "\n" + STATUS_JSON, "2 different ones|too many braces"),
        (json.dumps({**UPPER, "image": OTHER}), "2 different ones"),
        (json.dumps({"expected": UPPER, "actual": OTHER}), "2 different ones"),
        (json.dumps([{"pcrs": UPPER}, {"pcrs": OTHER}]), "2 different ones"),
        (written(*UPPER.items(), *OTHER.items()), "each key once, got 'pcr[012]' twice"),
        (written(*UPPER.items(), *UPPER.items()), "each key once"),
        (json.dumps({**UPPER, **{k.lower(): v for k, v in OTHER.items()}}), "each key once"),
        (f'{{"pcrs": {json.dumps(OTHER)}, "pcrs": {json.dumps(UPPER)}}}', "each key once"),
        (f'{{"pcrs": {json.dumps(UPPER)}, "pcrs": null}}', "each key once"),
        # Cut off: whose the PCRs are can no longer be told.
        (f'{{"pcrs": null, "synchronizer_pcrs": [{json.dumps(OTHER)}, {{', "expected whole JSON"),
        ('{"synchronizer_pcrs": [\n' + OTHER_TEXT, "expected whole JSON"),
        (json.dumps({"pcrs": None, "synchronizer_pcrs": [OTHER]}), "the image is not built yet"),
        (json.dumps({"synchronizer_pcrs": [OTHER]}), "expected PCR0, PCR1 and PCR2"),
        (
            json.dumps({"error": "no such\nenclave", "kind": "api"}),
            r"an error: 'no such\\nenclave'",
        ),
    ],
)
def test_more_than_one_answer_is_none(text: str, message: str) -> None:
    for given in (text, text.encode()):
        with pytest.raises(ValueError, match=message):
            Pcrs.parse(given)


def test_unrelated_json_with_a_key_twice_does_no_harm() -> None:
    assert Pcrs.parse('{"a": 1, "a": 2}\n' + STATUS_TEXT) == PINS


def test_no_more_is_read_than_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: more than any memory
    with pytest.raises(ValueError, match=r"huge\.json: expected at most 1048576"):
        Pcrs.load(path)
    with pytest.raises(FileNotFoundError):
        Pcrs.load(tmp_path / "none.json")


@pytest.mark.parametrize("value", [None, 5, ["PCR0"], {"pcrs": UPPER}, memoryview(b"x")])
def test_parse_takes_text_alone(value: Any) -> None:
    with pytest.raises(TypeError, match="text: expected str or bytes, got"):
        Pcrs.parse(value)
    with pytest.raises(TypeError, match="path: expected text or a path, got"):
        Pcrs.load(value)


def test_parse_takes_the_same_pins_twice() -> None:
    assert Pcrs.parse(DEPLOY_TEXT + STATUS_TEXT) == PINS


@pytest.mark.parametrize("length", [32, 48, 64])
def test_lengths_and_forms(length: int) -> None:
    raw = [bytes([index]) * length for index in (1, 2, 3)]
    pins = Pcrs(pcr0=raw[0], pcr1=bytearray(raw[1]), pcr2=memoryview(raw[2]))
    text = Pcrs(pcr0="0x" + raw[0].hex(), pcr1=raw[1].hex().upper(), pcr2=f" {raw[2].hex()}\n")
    assert pins == text
    assert hash(pins) == hash(text)
    assert pins.as_tuple() == tuple(raw)
    assert Pcrs.parse(json.dumps(pins.as_dict())) == pins


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (("00" * 47, HEX[1], HEX[2]), ValueError, "pcr0: .* got 94"),
        ((HEX[0], b"1" * 49, HEX[2]), ValueError, "pcr1: expected 32, 48 or 64 bytes, got 49"),
        ((HEX[0], HEX[1], "4g" * 48), ValueError, "pcr2: expected 64, 96 or 128 hex digits, got"),
        ((b"1" * 32, b"1" * 48, b"1" * 32), ValueError, "one length.*pcr1 48"),
        ((HEX[0], HEX[1], None), TypeError, "pcr2: expected hex text or bytes, got NoneType"),
        ((HEX[0], 5, HEX[2]), TypeError, "pcr1: expected hex text or bytes, got int"),
    ],
)
def test_refused(values: tuple[Any, Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Pcrs(pcr0=values[0], pcr1=values[1], pcr2=values[2])


def test_is_a_value() -> None:
    other = Pcrs(pcr0=HEX[0], pcr1=HEX[1], pcr2="00" * 48)
    assert other != PINS
    assert PINS != "PCR0"
    assert len({PINS, copy.deepcopy(PINS), pickle.loads(pickle.dumps(PINS)), other}) == 2
    with pytest.raises(AttributeError):
        PINS.pcr0 = b""
    with pytest.raises(AttributeError):
        del PINS.pcr0
    with pytest.raises(AttributeError):
        PINS.extra = 1  # type: ignore[attr-defined]
    assert repr(PINS) == "Pcrs(pcr0=4f4f4f4f…, pcr1=7e7e7e7e…, pcr2=6b6b6b6b…)"


def test_zero() -> None:
    assert Pcrs(pcr0=b"\0" * 48, pcr1=b"\0" * 48, pcr2=b"\0" * 48).is_zero
    for index in range(3):
        values = [b"\0" * 48] * 3
        values[index] = b"\0" * 47 + b"\1"
        assert not Pcrs(pcr0=values[0], pcr1=values[1], pcr2=values[2]).is_zero


FURTHER = (3, 4, 8, *range(16, 32))
SIGNED = Pcrs(pcr0=HEX[0], pcr1=HEX[1], pcr2=HEX[2], pcr8="8a" * 48)


@pytest.mark.parametrize("index", range(3, 33))
def test_further_pins(index: int) -> None:
    """Those that have a meaning can be pinned, and no other."""
    three: Any = {"pcr0": HEX[0], "pcr1": HEX[1], "pcr2": HEX[2]}
    value = bytes([index]) * 48
    if index not in FURTHER:
        with pytest.raises(TypeError, match=f"argument 'pcr{index}': beside pcr0, .*pcr31"):
            Pcrs(**three, **{f"pcr{index}": value})
        return
    pins = Pcrs(**three, **{f"pcr{index}": value.hex()})
    assert pins == Pcrs(**three, **{f"pcr{index}": value})
    assert dict(pins.further) == {index: value}
    assert pins.as_tuple() == PINS.as_tuple()
    assert pins.as_dict() == {**UPPER, f"PCR{index}": value.hex()}
    assert f", pcr{index}={value.hex()[:8]}…)" in repr(pins)
    assert pins != PINS
    assert len({pins, PINS, copy.deepcopy(pins), pickle.loads(pickle.dumps(pins))}) == 2
    assert pin_tuples(pins) == ((*PINS.as_tuple(), (index, value)),)
    with pytest.raises(TypeError):
        pins.further[index] = b""  # type: ignore[index]
    assert Pcrs(**three, **{f"pcr{index}": None}) == PINS
    with pytest.raises(ValueError, match=f"pcr{index}: expected 32, 48 or 64 bytes, got 47"):
        Pcrs(**three, **{f"pcr{index}": value[1:]})
    with pytest.raises(ValueError, match=f"one length, .*pcr{index} 32"):
        Pcrs(**three, **{f"pcr{index}": value[:32]})
    assert not Pcrs(**three, **{f"pcr{index}": bytes(48)}).is_zero


def test_further_pins_stand_in_order() -> None:
    pins = Pcrs(
        pcr31="31" * 48, pcr0=HEX[0], pcr8="08" * 48, pcr1=HEX[1], pcr3="03" * 48, pcr2=HEX[2]
    )
    assert list(pins.further) == [3, 8, 31]
    assert list(pins.as_dict()) == ["PCR0", "PCR1", "PCR2", "PCR3", "PCR8", "PCR31"]


def test_what_an_earlier_version_has_pickled() -> None:
    old = (
        b"cenclavia._identity.pcrs\n_restore\n(c_codecs\nencode\n(V"
        + b"O" * 48
        + b"\nVlatin1\ntRc_codecs\nencode\n(V"
        + b"~" * 48
        + b"\nVlatin1\ntRc_codecs\nencode\n(V"
        + b"k" * 48
        + b"\nVlatin1\ntRtR."
    )
    assert pickle.loads(old) == PINS
    assert b"_restore" in pickle.dumps(PINS, 0)  # which that version can read


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"pcrs": {**UPPER, "PCR8": "8a" * 48}}),
        json.dumps({"pcrs": {"pcr8": "8a" * 48, **LOWER, "PCR3": None}}),
        json.dumps({"Measurements": {"HashAlgorithm": "Sha384", **UPPER, "PCR8": "8a" * 48}}),
        STATUS_TEXT + f"    PCR8: {'8a' * 48}\n",
        f"PCR8={'8a' * 48}\n" + STATUS_TEXT,
        json.dumps(SIGNED.as_dict()),
    ],
    ids=lambda text: repr(text[:24]),
)
def test_a_text_is_pinned_as_it_stands(text: str) -> None:
    assert Pcrs.parse(text) == SIGNED
    assert Pcrs.parse(text, further=[8]) == SIGNED
    assert Pcrs.parse(text, further=()) == PINS
    with pytest.raises(ValueError, match="expected PCR4 and PCR31 in the text too, got none"):
        Pcrs.parse(text, further=[4, 31])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({**UPPER, "PCR5": "00" * 48}), "got 'PCR5', which cannot be pinned; further="),
        (json.dumps({**UPPER, "PCR08": "00" * 48}), "got 'PCR08', which cannot be pinned"),
        (json.dumps({**UPPER, "PCR32": "00" * 48}), "got 'PCR32', which cannot be pinned"),
        (STATUS_TEXT + f"PCR12: {'00' * 48}\n", "got 'PCR12', which cannot be pinned"),
        (STATUS_TEXT + "PCR8: not signed\n", "pcr8: expected 64, 96 or 128 hex digits, got 'not'"),
        (json.dumps({**UPPER, "PCR8": 8}), "pcr8: expected hex text, got int"),
        (json.dumps({**UPPER, "PCR8": "8a" * 32}), "one length"),
        (json.dumps({"PCR8": "8a" * 48}), "PCR0 and PCR1 and PCR2 missing"),
        (json.dumps({**UPPER, "PCR8": "8a" * 48, "pcr8": "8a" * 48}), "each key once, got 'pcr8'"),
        (json.dumps([UPPER, {**UPPER, "PCR8": "8a" * 48}]), "got 2 different ones"),
        (STATUS_TEXT + json.dumps({**UPPER, "PCR16": "8a" * 48}), "got 2 different ones"),
    ],
)
def test_no_pin_of_a_text_is_lost(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Pcrs.parse(text)
    path = tmp_path / "pins"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"pins: .*{message}"):
        Pcrs.load(path)


def test_further_pcrs_of_a_text_can_be_chosen(tmp_path: Path) -> None:
    """Of what an enclave measures, some is of this instance alone."""
    measured = {f"PCR{index}": f"{index:02x}" * 48 for index in range(32)}
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(measured))
    for further in ((), (8,), [31, 3], range(16, 32), iter((4,))):
        indices = list(further)
        pins = Pcrs.load(path, further=iter(indices))
        assert list(pins.further) == sorted(indices)
        assert all(value == bytes([index]) * 48 for index, value in pins.further.items())
    for further, error, message in [
        ("8", TypeError, "expected indices of PCRs or None, got str"),
        (8, TypeError, "expected indices of PCRs or None, got int"),
        ([True], TypeError, "expected indices of PCRs, got bool"),
        (["8"], TypeError, "expected indices of PCRs, got str"),
        ([5], ValueError, "expected 3, 4, 8, or 16 to 31, got 5"),
        ([0], ValueError, "got 0"),
    ]:
        with pytest.raises(error, match=message):
            Pcrs.load(path, further=further)  # type: ignore[arg-type]
        with pytest.raises(error, match=message):
            Pcrs.parse("", further=further)  # type: ignore[arg-type]


@pytest.mark.parametrize("pins", [[], (), iter(())], ids=["list", "tuple", "iterator"])
def test_no_pins_at_all_are_refused(pins: Any) -> None:
    with pytest.raises(ValueError, match="got an empty list, which no enclave can match"):
        pin_tuples(pins)


@pytest.mark.parametrize("pins", ["", b"", 5, True, ["x"], [None]], ids=repr)
def test_what_holds_no_pins_is_refused(pins: Any) -> None:
    with pytest.raises(TypeError, match="expected Pcrs"):
        pin_tuples(pins)


def test_which_set_agrees_with_what_was_measured() -> None:
    """As the core decides it of a document: each pinned PCR is there and equal."""
    other = Pcrs(pcr0="11" * 48, pcr1=HEX[1], pcr2=HEX[2])
    further = Pcrs(pcr0=HEX[0], pcr1=HEX[1], pcr2=HEX[2], pcr8="22" * 48)
    pins = pin_tuples([other, further, PINS])
    assert pins is not None
    measured = dict(enumerate(PINS.as_tuple()))
    assert matching_set(pins, {**measured, 8: b"\x22" * 48}, False) == 1
    assert matching_set(pins, {**measured, 8: b"\x23" * 48}, False) == 2
    assert matching_set(pins, measured, False) == 2
    assert matching_set(pins, measured, True) == 1  # of what is not there nothing is known
    assert matching_set(pins, {**measured, 2: b"\x33" * 48}, False) is None
    assert matching_set(pins, {**measured, 2: b"\x33" * 48}, True) is None
    assert matching_set(pins, {}, False) is None
