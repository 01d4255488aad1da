"""The cache of verified certificate links."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import attest_ctypes as attest
import pytest
from attest_ctypes import AttestError, LinkCache
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from documents import (
    AT,
    CA1,
    CA2,
    CA3,
    LEAF,
    NONCE,
    NOW,
    ROOT,
    array,
    bstr,
    chain_with,
    document_of,
    good,
    good_pki,
    other_pki,
    pki,
    refuse,
    refuse_chain,
    verify,
)

LINKS = 4


def test_the_cache_is_used() -> None:
    cache, raw = LinkCache(), good().encode()
    verify(raw, cache=cache)
    assert cache.hits == 0
    verify(raw, cache=cache)
    assert cache.hits == LINKS
    verify(good(nonce=bstr(NONCE), user_data=bstr(b"another")).encode(), cache=cache)
    assert cache.hits == 2 * LINKS


@pytest.mark.parametrize("index", range(5))
def test_a_cached_link_expires_with_its_certificates(index: int) -> None:
    cache = LinkCache()
    p = chain_with(index, not_after=NOW + timedelta(minutes=5))
    raw = document_of(p).encode()
    verify(raw, p, cache=cache)
    error = refuse("certificate error", "has expired", raw, p=p, cache=cache, now=AT + 301)
    assert error.message.startswith(f"certificate {index + 1} of 5")
    refuse("certificate error", "not yet valid", raw, p=p, cache=cache, now=AT - 61)
    verify(raw, p, cache=cache)


def test_a_cached_link_says_nothing_about_roles() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    p = chain_with(CA3, key=key)
    cache = LinkCache()
    verify(document_of(p).encode(), p, cache=cache)
    as_leaf = dataclasses.replace(
        p,
        cabundle=p.cabundle[:3],
        leaf_der=p.cabundle[3],
        leaf_key_der=key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    refuse_chain(as_leaf, "expected a leaf, got a CA", cache=cache)
    one_more = dataclasses.replace(p, cabundle=[*p.cabundle, p.leaf_der])
    refuse_chain(one_more, "pathLen", cache=cache)


def test_a_cached_chain_says_nothing_about_another_root() -> None:
    cache, raw = LinkCache(), good().encode()
    verify(raw, cache=cache)
    verify(raw, cache=cache)
    refuse("certificate error", "", raw, root=other_pki().root_der, cache=cache)
    p = good_pki()
    rest = good(cabundle=array([bstr(c) for c in p.cabundle[1:]])).encode()
    refuse("certificate error", "is not issued by", rest, root=other_pki().root_der, cache=cache)


def test_an_issuer_with_the_same_name_and_key_but_other_bytes_is_another_link() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    chain = pki.specs(NOW)
    chain[ROOT] = dataclasses.replace(chain[ROOT], key=key)
    first, renewed = pki.mint(chain=chain), pki.mint(chain=chain)
    assert first.root_der != renewed.root_der
    cache = LinkCache()
    raw = document_of(dataclasses.replace(first, cabundle=first.cabundle[1:])).encode()
    verify(raw, first, cache=cache)
    verify(raw, renewed, cache=cache)
    assert cache.hits == LINKS - 1


@pytest.mark.parametrize("index", [CA1, CA2, CA3, LEAF])
def test_a_failed_link_is_never_cached(index: int) -> None:
    p, cache = good_pki(), LinkCache()
    chain = [*p.cabundle, p.leaf_der]
    chain[index] = chain[index][:-1] + bytes([chain[index][-1] ^ 1])
    broken = dataclasses.replace(p, cabundle=chain[:-1], leaf_der=chain[-1])
    verify(good().encode(), cache=cache)
    for _ in range(2):
        hits = cache.hits
        refuse_chain(broken, "its signature does not verify", cache=cache)
        of_the_changed = 1 if index == len(chain) - 1 else 2  # to its issuer, and to what it issued
        assert cache.hits == hits + len(chain) - 1 - of_the_changed


def test_the_documents_signature_is_never_cached() -> None:
    cache, raw = LinkCache(), good().encode()
    verify(raw, cache=cache)
    refuse("signature error", "", raw.replace(b"i-0123", b"i-0124", 1), cache=cache)
    refuse("signature error", "", raw[:-1] + bytes([raw[-1] ^ 1]), cache=cache)
    refuse("nonce mismatch", "", raw, cache=cache, nonce=b"n" * 32)
    refuse("PCR mismatch", "", raw, cache=cache, pins=[[b"\x55" * 48] * 3])


def test_the_cache_is_bounded() -> None:
    cache, raw = LinkCache(2), good().encode()
    for _ in range(3):
        before = cache.hits
        verify(raw, cache=cache)
        assert cache.hits - before <= 2
    assert cache.hits > 0
    for size in (0, 4097, 2**63):
        with pytest.raises(AttestError, match="1 to 4096 entries"):
            attest.lib().encl_link_cache_free(LinkCache(size).pointer)
