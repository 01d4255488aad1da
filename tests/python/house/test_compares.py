"""What is secret, or decides about trust, is compared in constant time: in the layers that see it
every plain comparison is one of those listed here, with the reason why it may be one."""

from __future__ import annotations

import re
from pathlib import Path

from repository import ROOT

LAYERS = ("base", "cbor", "noise", "attest", "session")

_COMPARE = re.compile(
    r"(?<![\w_])(?:(?:mem|str|strn|strcase|strncase|b)cmp|encl_slice_equal)\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
)

# An attestation document and its certificates pass the router in the clear once the channel's peer
# sends them to anybody who connects: nothing in them is a secret.
PLAIN = {
    "attest/cache.c": {
        "memcmp(cache->entries[i].key, key, crypto_hash_sha256_BYTES)": "digests of certificates"
    },
    "attest/chain.c": {"encl_slice_equal(a->cabundle[0], root)": "two certificates"},
    "attest/document.c": {
        'encl_slice_equal(encl_token_bytes(in, &t), ENCL_SLICE("SHA384", 6))': (
            "a document's text with a constant"
        ),
        "encl_slice_equal(key->text, ENCL_SLICE(fields[i].name, strlen(fields[i].name)))": (
            "the name of a document's field"
        ),
    },
    "attest/es384.c": {"strcmp(group, GROUP)": "the name of a key's curve"},
    "attest/hint.c": {"memcmp(first.data, root.data, root.len)": "two certificates"},
    "attest/keys.c": {"encl_slice_equal(a->text, b->text)": "two keys of a document's map"},
    "attest/payload.c": {
        "encl_slice_equal(key->text, ENCL_SLICE(names[i][0], 4))": "the name of a PCR",
        "encl_slice_equal(key->text, ENCL_SLICE(names[i][1], 4))": "the name of a PCR",
        "encl_slice_equal(key->text, ENCL_SLICE(of_kind[i].name, strlen(of_kind[i].name)))": (
            "the name of a payload's field"
        ),
    },
    "attest/policy.c": {"strcmp(name, PEM_STRING_X509)": "the kind of a PEM block"},
    "base/slice.h": {
        "encl_slice_equal(encl_slice a, encl_slice b)": "whoever calls it is listed here too",
        "memcmp(a.data, b.data, a.len)": "what it does",
    },
}


def compares(path: Path) -> list[str]:
    code = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.DOTALL)
    return [re.sub(r"\s+", " ", match[0]) for match in _COMPARE.finditer(code)]


def test_plain_compares_are_of_what_everybody_may_know() -> None:
    found = {
        f"{layer}/{path.name}": set(compares(path))
        for layer in LAYERS
        for path in sorted((ROOT / "csrc" / layer).glob("*.[ch]"))
    }
    assert {name: calls for name, calls in found.items() if calls} == {
        name: set(reasons) for name, reasons in PLAIN.items()
    }


def test_what_decides_is_compared_in_constant_time() -> None:
    """The nonce with the handshake hash (also where a stub is one), and PCRs with the pins. Tags
    are compared by OpenSSL, which has one place for it and a constant time."""

    def calls(name: str) -> list[str]:
        text = re.sub(r"\s+", " ", (ROOT / "csrc" / name).read_text())
        return re.findall(r"encl_equal_ct\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)", text)

    assert calls("attest/verify.c") == ["a->nonce, nonce", "document, nonce"]
    assert calls("attest/policy.c") == ["pcr_bytes(&pins->pcr[i]), pcr_bytes(&a->pcrs[i])"]
    secmem = (ROOT / "csrc/base/secmem.c").read_text()
    body = re.search(r"^bool encl_equal_ct\(.*?^}", secmem, re.DOTALL | re.MULTILINE)
    assert body is not None and "sodium_memcmp(a.data, b.data, a.len) == 0" in body[0]


def test_the_pattern_finds_calls(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text(
        "/* memcmp(x, y, 1) */ if (memcmp(f(a, g(b)), c, sizeof d) == 0 || sodium_memcmp(a, b, 1) "
        "|| strcmp(a,\n b) || CRYPTO_memcmp(a, b, 2)) {}"
    )
    assert compares(source) == ["memcmp(f(a, g(b)), c, sizeof d)", "strcmp(a, b)"]
