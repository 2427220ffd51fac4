"""filter.py noop|body SOCKET: the filters noop.c and body.c, in Python on python3-milter."""

import sys

import Milter


class Noop(Milter.Base):
    """Has no callback of its own: python3-milter then switches everything off that it can."""


class Body(Milter.Base):
    """Replaces the body by itself and adds a header."""

    @Milter.noreply
    def body(self, chunk):
        self.chunks = getattr(self, "chunks", [])
        self.chunks.append(chunk)
        return Milter.CONTINUE

    def eom(self):
        self.addheader("X-Bench", "yes")
        self.replacebody(b"".join(getattr(self, "chunks", [])))
        self.chunks = []
        return Milter.ACCEPT

    def abort(self):
        self.chunks = []
        return Milter.CONTINUE


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("noop", "body"):
        sys.exit("usage: filter.py noop|body unix:/PATH|inet:PORT@HOST")
    body = sys.argv[1] == "body"
    Milter.factory = Body if body else Noop
    Milter.set_flags(Milter.ADDHDRS | Milter.CHGBODY if body else 0)
    Milter.runmilter("bench", sys.argv[2], 7210)
