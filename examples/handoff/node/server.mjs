// A website that greets who came by a link in its mail: node server.mjs PORT ISSUER AUDIENCE

import { createServer } from "node:http";
import { randomBytes } from "node:crypto";
import { Verifier } from "./handoff.mjs";

const [port, issuer, audience] = process.argv.slice(2);
const verifier = new Verifier({ issuer, audience });
const sessions = new Map();

const server = createServer(async (request, response) => {
  const url = new URL(`http://site.invalid/${request.url}`);
  const token = url.searchParams.get("mt");
  if (token !== null) {
    const visitor = await verifier.verify(token);
    if (visitor) {
      const id = randomBytes(16).toString("base64url");
      sessions.set(id, visitor);
      response.setHeader("Set-Cookie", `session=${id}; Path=/; Secure; HttpOnly; SameSite=Lax`);
    }
    // Known or not, the token leaves the address bar, the history and the Referer.
    url.searchParams.delete("mt");
    const path = url.pathname.replace(/^\/+/, "/");      // two slashes: another host
    response.writeHead(303, { Location: path + url.search, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer" });
    return response.end();
  }
  const session = /(?:^|; )session=([\w-]+)/.exec(request.headers.cookie ?? "");
  const visitor = session && sessions.get(session[1]);
  const text = visitor ? `recipient ${visitor.recipient}\n` : "nobody we know\n";
  response.writeHead(200, { "Content-Type": "text/plain; charset=utf-8", "Content-Length": Buffer.byteLength(text) });
  response.end(text);
});
server.listen(Number(port), "127.0.0.1", () => console.log(`listening on ${server.address().port}`));
