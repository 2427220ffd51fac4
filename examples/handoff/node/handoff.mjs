// Verifies mailtap's hand-off. Node.js 18 or later, no packages.
//
// const verifier = new Verifier({ issuer: "https://t.example.org", audience: "www.example.org" });
// const visitor = await verifier.verify(token);     // { recipient, campaign, link }, or null

import { createPublicKey, verify } from "node:crypto";

const BASE64URL = /^[A-Za-z0-9_-]+$/;
const KEYS_FRESH_MS = 300_000;       // as the answer's max-age says
const KEYS_AGAIN_MS = 10_000;        // an unknown key asks for the set again, but not at every request
const LONGEST_LIFE_S = 600;          // nothing that claims to live longer is remembered, or believed
const CLOCK_SKEW_S = 5;

export class Verifier {
  #issuer; #audience; #jwks; #spend; #now; #keys = new Map(); #fetched = -Infinity;

  // spend(jti, untilSeconds) says once, and only once, true for each jti. The one below is for a single process: where
  // several serve the site, let them share a store, like Redis: SET jti 1 NX EXAT until.
  constructor({ issuer, audience, jwks = `${issuer}/.well-known/jwks.json`, spend = spendInMemory(), now = Date.now }) {
    this.#issuer = issuer; this.#audience = audience; this.#jwks = jwks; this.#spend = spend; this.#now = now;
  }

  async verify(token) {
    if (typeof token !== "string" || token.length > 2_000) return null;
    const parts = token.split(".");
    if (parts.length !== 3 || !parts.every((part) => BASE64URL.test(part))) return null;
    const header = json(parts[0]);
    // The algorithm is ours to choose, never the token's.
    if (header === null || header.alg !== "EdDSA" || typeof header.kid !== "string") return null;
    const key = await this.#key(header.kid);
    if (!key) return null;
    const signature = Buffer.from(parts[2], "base64url");
    if (signature.length !== 64 || signature.toString("base64url") !== parts[2]) return null;
    if (!verify(null, Buffer.from(`${parts[0]}.${parts[1]}`), key, signature)) return null;
    const claims = json(parts[1]);
    const seconds = this.#now() / 1000;
    if (claims === null || claims.iss !== this.#issuer || claims.aud !== this.#audience) return null;
    if (!Number.isInteger(claims.exp) || !Number.isInteger(claims.iat)) return null;
    if (claims.exp <= seconds || claims.exp > seconds + LONGEST_LIFE_S) return null;
    if (claims.iat > seconds + CLOCK_SKEW_S) return null;
    if (typeof claims.sub !== "string" || typeof claims.jti !== "string") return null;
    if (!(await this.#spend(claims.jti, claims.exp))) return null;
    return { recipient: claims.sub, campaign: claims.campaign ?? null, link: claims.link };
  }

  async #key(kid) {
    const age = this.#now() - this.#fetched;
    if (age > KEYS_FRESH_MS || (!this.#keys.has(kid) && age > KEYS_AGAIN_MS)) await this.#fetch();
    return this.#keys.get(kid);
  }

  async #fetch() {
    this.#fetched = this.#now();
    try {
      const answer = await fetch(this.#jwks, { signal: AbortSignal.timeout(2_000), redirect: "error" });
      if (!answer.ok) return;
      const keys = new Map();
      for (const jwk of (await answer.json()).keys) {
        if (jwk.kty !== "OKP" || jwk.crv !== "Ed25519" || typeof jwk.kid !== "string") continue;
        keys.set(jwk.kid, createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: jwk.x }, format: "jwk" }));
      }
      this.#keys = keys;
    } catch {
      // The keys known so far stay; a visitor who can't be verified is a visitor like any other.
    }
  }
}

export function spendInMemory(most = 100_000) {
  const spent = new Map();
  return (jti, until) => {
    const now = Date.now() / 1000;
    for (const [known, end] of spent) {
      if (end > now && spent.size < most) break;
      spent.delete(known);
    }
    if (spent.has(jti)) return false;
    spent.set(jti, until);
    return true;
  };
}

function json(part) {
  try {
    const value = JSON.parse(Buffer.from(part, "base64url").toString("utf8"));
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}
