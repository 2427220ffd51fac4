"""The parts of the tracker's benchmark that are no load tool's: links, idle connections, the report."""

import email
import email.policy
import json
import os
import platform
import re
import socket
import statistics
import sys
import time
import urllib.request
from pathlib import Path

RATIOS = {"clicks": "nginx-302", "plain": "nginx-302", "bad": "nginx-302", "pixels": "nginx-gif"}


def answers(url):
    """Whether somebody answers at all."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    try:
        urllib.request.build_opener(Stay, urllib.request.ProxyHandler({})).open(url, timeout=2)
    except urllib.error.HTTPError:
        pass
    except OSError:
        return 1
    return 0


def message():
    links = "".join(f'<p><a href="https://shop.example/spring?a={n}">link {n}</a></p>\r\n' for n in range(200))
    sys.stdout.write(
        "From: news@shop.example\r\nTo: anna@example.net\r\nSubject: spring\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/html; charset=utf-8\r\n\r\n<html><body>\r\n" + links + "</body></html>\r\n"
    )


def links(clicks, pixels, bad):
    """The message's links and its pixel, and the links with an altered MAC."""
    text = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default).get_content()
    for path, kind in ((clicks, "c"), (pixels, "o")):
        urls = re.findall(rf"http://127\.0\.0\.1:\d+/{kind}/[\w-]+", text)
        if not urls:
            raise SystemExit(f"no {kind} link in the message")
        Path(path).write_text("".join(url + "\n" for url in urls))
        if kind == "c":
            Path(bad).write_text("".join(f"{url[:-2]}{'B' if url[-2] == 'A' else 'A'}{url[-1]}\n" for url in urls))


def rate(path):
    """Requests a second; an error where not all were answered well, which bad tokens are with 404."""
    text = Path(path).read_text()
    found = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", text)
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", text)
    # To h2load a 404 is a failure.
    is_bad = Path(path).name.startswith("bad")
    wrong = [codes.groups()[at] for at in ([0, 1, 3] if is_bad else [2, 3])] if codes else []
    wrong += failed.groups()[1 if is_bad else 0 :] if failed else ()
    if not found or not codes or any(int(number) for number in wrong):
        raise SystemExit(f"not all requests were answered well:\n{text}")
    return float(found.group(1))


def half(clients, *paths):
    """The requests a second of each client at half of the median load."""
    print(max(1, round(statistics.median(map(rate, paths)) / 2 / int(clients))))


def memory(pid):
    """Resident kilobytes of a process and its children."""
    total, pids = 0, {int(pid)}
    for entry in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if int(fields["Pid"]) in pids or int(fields["PPid"]) in pids:
            total += int(fields.get("VmRSS", "0 kB").split()[0])
    return total


def idle(count, address, pid):
    """Memory before and with idle connections, each of which has had one answer."""
    host, port = address.split(":")
    before, held = memory(pid), []
    for _ in range(int(count)):
        connection = socket.create_connection((host, int(port)))
        connection.sendall(b"GET /robots.txt HTTP/1.1\r\nHost: t\r\n\r\n")
        connection.recv(4096)
        held.append(connection)
    time.sleep(0.5)
    print(json.dumps({"connections": len(held), "before_kb": before, "with_kb": memory(pid)}))


def kept(admin, answered):
    """An error where less was recorded than answered, or anything was lost; how many answers did not wait for the spool."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(f"http://127.0.0.1:{admin}/metrics", timeout=10).read().decode()

    def total(name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}(\{{|\s)", line))

    recorded = total("mailtap_tracker_clicks_total") + total("mailtap_tracker_opens_total")
    lost, limited = total("mailtap_tracker_lost_total"), total("mailtap_tracker_limited_total")
    if recorded < int(answered) or lost or limited:
        raise SystemExit(f"{answered} answered, {recorded:.0f} recorded, {lost:.0f} lost, {limited:.0f} limited")
    print(json.dumps({"answered": int(answered), "recorded": int(recorded), "unconfirmed": int(total("mailtap_tracker_unconfirmed_total"))}))


def answered(*paths):
    """How many requests were answered in all these runs."""
    codes = (re.search(r"status codes: (\d+) 2xx, (\d+) 3xx", Path(path).read_text()) for path in paths)
    print(sum(int(code.group(1)) + int(code.group(2)) for code in codes))


def percentile(path):
    """The 99th percentile of the times of h2load's log, in milliseconds."""
    times = sorted(int(line.split("\t")[2]) for line in Path(path).read_text().splitlines())
    return times[min(len(times) - 1, len(times) * 99 // 100)] / 1000 if times else None


def report(form, work, clients, *subjects):
    work = Path(work)
    rates = {subject: statistics.median(map(rate, work.glob(f"{subject}.*.load"))) for subject in subjects}
    result = {
        "machine": {"processors": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()},
        "clients": int(clients),
        "subjects": {
            subject: {
                "requests_per_second": round(rates[subject]),
                "ratio_to_nginx": round(rates[subject] / rates[RATIOS[subject.split("-")[0]]], 3)
                if subject.split("-")[0] in RATIOS
                else None,
                "p99_ms_at_half_load": percentile(work / f"{subject}.times"),
            }
            for subject in subjects
        },
        "kept": {sync: json.loads((work / f"kept-{sync}").read_text()) for sync in ("full", "normal")},
        "idle": {name: json.loads((work / f"{name}.idle").read_text()) for name in ("nginx", "mailtap")},
    }
    if form == "json":
        print(json.dumps(result, indent=2))
        return
    print(f"{'subject':<16}{'requests/s':>12}{'of nginx':>10}{'p99 at half load':>20}")
    for subject, row in result["subjects"].items():
        ratio = f"{row['ratio_to_nginx']:.0%}" if row["ratio_to_nginx"] else "–"
        print(f"{subject:<16}{row['requests_per_second']:>12,}{ratio:>10}{row['p99_ms_at_half_load']:>17.2f} ms")
    for sync, row in result["kept"].items():
        print(f"sync = {sync}: {row['answered']:,} answered, {row['recorded']:,} recorded; {row['unconfirmed']:,} answers did not wait for the spool")
    for name, row in result["idle"].items():
        print(f"{name}: {row['before_kb'] / 1024:.1f} MiB, with {row['connections']:,} idle connections {row['with_kb'] / 1024:.1f} MiB")


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](*sys.argv[2:]))
