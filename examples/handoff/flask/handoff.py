"""Verifies mailtap's hand-off. Python 3.9 or later, and the package `cryptography`.

verifier = Verifier(issuer="https://t.example.org", audience="www.example.org")
visitor = verifier.verify(token)      # a dict with recipient, campaign and link, or None
"""

import base64
import binascii
import http.client
import json
import re
import threading
import time
import urllib.request

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEYS_FRESH = 300       # seconds, as the answer's max-age says
KEYS_AGAIN = 10        # an unknown key asks for the set again, but not at every request
LONGEST_LIFE = 600     # nothing that claims to live longer is remembered, or believed
CLOCK_SKEW = 5
BASE64URL = re.compile(r"[A-Za-z0-9_-]+\Z")


class SpentInMemory:
    """Says once, and only once, True for each jti.

    For a single process. Where several serve the site, let them share a store, like Redis: SET jti 1 NX EXAT until.
    """

    def __init__(self, most=100_000):
        self._spent, self._most, self._lock = {}, most, threading.Lock()

    def __call__(self, jti, until):
        with self._lock:
            now = time.time()
            while self._spent:
                oldest = next(iter(self._spent))
                if self._spent[oldest] > now and len(self._spent) < self._most:
                    break
                del self._spent[oldest]
            if jti in self._spent:
                return False
            self._spent[jti] = until
            return True


class Verifier:
    def __init__(self, issuer, audience, jwks=None, spend=None):
        self._issuer, self._audience = issuer, audience
        self._jwks = jwks or f"{issuer}/.well-known/jwks.json"
        self._spend = spend or SpentInMemory()
        self._keys, self._fetched, self._lock = {}, float("-inf"), threading.Lock()

    def verify(self, token):
        if not isinstance(token, str) or len(token) > 2_000:
            return None
        parts = token.split(".")
        if len(parts) != 3 or not all(BASE64URL.match(part) for part in parts):
            return None
        header = _object(parts[0])
        # The algorithm is ours to choose, never the token's.
        if header is None or header.get("alg") != "EdDSA" or not isinstance(header.get("kid"), str):
            return None
        key = self._key(header["kid"])
        signature = _bytes(parts[2])
        if key is None or signature is None or len(signature) != 64:
            return None
        try:
            key.verify(signature, f"{parts[0]}.{parts[1]}".encode())
        except InvalidSignature:
            return None
        claims, now = _object(parts[1]), time.time()
        if claims is None or claims.get("iss") != self._issuer or claims.get("aud") != self._audience:
            return None
        issued, ends = claims.get("iat"), claims.get("exp")
        if type(issued) is not int or type(ends) is not int:
            return None
        if ends <= now or ends > now + LONGEST_LIFE or issued > now + CLOCK_SKEW:
            return None
        if not isinstance(claims.get("sub"), str) or not isinstance(claims.get("jti"), str):
            return None
        if not self._spend(claims["jti"], ends):
            return None
        return {"recipient": claims["sub"], "campaign": claims.get("campaign"), "link": claims.get("link")}

    def _key(self, kid):
        with self._lock:
            age = time.monotonic() - self._fetched
            if age > KEYS_FRESH or (kid not in self._keys and age > KEYS_AGAIN):
                self._fetch()
            return self._keys.get(kid)

    def _fetch(self):
        self._fetched = time.monotonic()
        try:
            with urllib.request.urlopen(self._jwks, timeout=2) as answer:
                keys = json.loads(answer.read(1_000_000))["keys"]
            fresh = {}
            for jwk in keys:
                if jwk.get("kty") == "OKP" and jwk.get("crv") == "Ed25519":
                    fresh[jwk["kid"]] = Ed25519PublicKey.from_public_bytes(_bytes(jwk["x"]))
            self._keys = fresh
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # The keys known so far stay; a visitor who can't be verified is a visitor like any other.
            pass


def _bytes(part):
    """base64url in its one canonical form."""
    try:
        value = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        return None
    return value if base64.urlsafe_b64encode(value).rstrip(b"=").decode() == part else None


def _object(part):
    try:
        value = json.loads(_bytes(part) or b"")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
