"""Rewrites a newsletter as one would in Python: the standard e-mail package, BeautifulSoup or lxml, hmac.

rewrite.py --write FILE                            writes the message
rewrite.py --parser NAME --rounds N FILE           prints the median of a message, in microseconds
"""

import argparse
import base64
import email
import email.policy
import hashlib
import hmac
import statistics
import struct
import time

KEY = bytes(32)
LINKS = 200
BYTES = 64 * 1024


def write(path):
    filler = '<td style="padding:4px;color:#222">Lorem ipsum dolor sit amet, consectetur adipiscing elit.</td>\r\n'
    html = "<html><head><title>News</title></head><body><table>\r\n"
    for number in range(LINKS):
        html += f'<tr><td><a class="b" href="https://www.example.org/shop/item?id={number}&amp;src=mail">Item</a></td>\r\n'
        while len(html) < BYTES * (number + 1) // LINKS:
            html += filler
    html += "</table></body></html>\r\n"
    head = "From: a@example.org\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    with open(path, "wb") as file:
        file.write((head + html).encode())


def sign(target, number):
    token = b"\x11" + struct.pack(">I", 1) + bytes(24) + struct.pack(">H", number) + target.encode()
    token += hmac.new(KEY, token, hashlib.sha256).digest()[:16]
    return "https://t.example.org/c/" + base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def by_beautifulsoup(html):
    from bs4 import BeautifulSoup

    page = BeautifulSoup(html, "lxml")
    for number, link in enumerate(page.find_all("a", href=True), 1):
        link["href"] = sign(link["href"], number)
    page.body.append(page.new_tag("img", src="https://t.example.org/o/x"))
    return str(page)


def by_lxml(html):
    from lxml import html as parser

    page = parser.document_fromstring(html)
    for number, link in enumerate(page.iterfind(".//a[@href]"), 1):
        link.set("href", sign(link.get("href"), number))
    page.body.append(parser.Element("img", src="https://t.example.org/o/x"))
    return parser.tostring(page, encoding="unicode")


def rewrite(message, by):
    mail = email.message_from_bytes(message, policy=email.policy.SMTP)
    for part in mail.walk():
        if part.get_content_type() == "text/html":
            part.set_content(by(part.get_content()), subtype="html", cte="8bit")
    return mail.as_bytes()


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--write", action="store_true")
    options.add_argument("--parser", choices=["beautifulsoup", "lxml"], default="lxml")
    options.add_argument("--rounds", type=int, default=100)
    options.add_argument("file")
    options = options.parse_args()
    if options.write:
        write(options.file)
        return
    with open(options.file, "rb") as file:
        message = file.read()
    by = by_lxml if options.parser == "lxml" else by_beautifulsoup
    if rewrite(message, by).count(b"https://t.example.org/c/") != LINKS:
        raise SystemExit("not every link was rewritten")
    times = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        rewrite(message, by)
        times.append(time.perf_counter() - start)
    print(statistics.median(times) * 1e6)


main()
