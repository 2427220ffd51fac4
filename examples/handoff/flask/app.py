"""A website that greets who came by a link in its mail: python3 app.py PORT ISSUER AUDIENCE"""

import secrets
import sys
from urllib.parse import quote, urlencode

from flask import Flask, redirect, request, session

from handoff import Verifier


def create_app(issuer, audience):
    app = Flask(__name__)
    app.secret_key = secrets.token_bytes(32)      # of your own, and lasting, in earnest
    app.config.update(SESSION_COOKIE_SECURE=True, SESSION_COOKIE_HTTPONLY=True, SESSION_COOKIE_SAMESITE="Lax")
    verifier = Verifier(issuer, audience)

    @app.before_request
    def hand_off():
        if "mt" not in request.args:
            return None
        visitor = verifier.verify(request.args["mt"])
        if visitor:
            session["recipient"] = visitor["recipient"]
        # Known or not, the token leaves the address bar, the history and the Referer.
        path = "/" + quote(request.path.lstrip("/"))      # two slashes, or a backslash: another host
        rest = urlencode([pair for pair in request.args.items(multi=True) if pair[0] != "mt"])
        answer = redirect(path + (f"?{rest}" if rest else ""), 303)
        answer.headers.update({"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        return answer

    @app.get("/", defaults={"path": ""})
    @app.get("/<path:path>")
    def page(path):
        known = session.get("recipient")
        return (f"recipient {known}\n" if known else "nobody we know\n"), {"Content-Type": "text/plain"}

    return app


if __name__ == "__main__":
    create_app(sys.argv[2], sys.argv[3]).run(port=int(sys.argv[1]))
