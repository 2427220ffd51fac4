"""report.py machine OPTION… | table FILE | json FILE: what run measured, each figure the median of its rounds."""

import argparse
import json
import os
import statistics
import sys
import time

MAILTAP = {"mailtap": "mailtap", "mailtap-normal": "mailtap, sync = normal"}
# What all ratios and differences refer to: the filter that does least, where it is fastest.
NOOP = "c-noop unix"


def machine(options):
    """One line on the machine and how busy it is."""
    parser = argparse.ArgumentParser()
    for name, kind in (("rounds", int), ("sessions", int), ("postfix", str), ("mailtap", str)):
        parser.add_argument("--" + name, type=kind)
    about = vars(parser.parse_args(options))
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    with open("/etc/os-release", encoding="utf-8") as file:
        system = dict(line.strip().split("=", 1) for line in file if "=" in line)
    about |= {"part": "machine", "cpus": os.cpu_count(), "cpu": models[0] if models else "",
              "system": system.get("PRETTY_NAME", "").strip('"'), "kernel": os.uname().release,
              "date": time.strftime("%Y-%m-%d %H:%M"), "load_before": round(os.getloadavg()[0], 2)}
    print(json.dumps(about))


def read(file):
    """The machine, and by part and case the median of each figure."""
    about, cases = {}, {}
    with open(file, encoding="ascii") as lines:
        for found in map(json.loads, lines):
            part = found.pop("part")
            if part == "machine":
                about = found
                continue
            key = tuple(found.pop(name, None) for name in ("subject", "transport", "bytes"))
            if part == "memory":
                key += (found["connections"],)
            cases.setdefault(part, {}).setdefault(key, []).append(found)
    medians = {
        part: {key: {name: statistics.median(round_[name] for round_ in rounds) for name in rounds[0]}
               for key, rounds in by_key.items()}
        for part, by_key in cases.items()
    }
    return about, medians


def as_json(about, medians):
    names = ("subject", "transport", "bytes", "connections")
    parts = {part: [dict(zip(names, key)) | values for key, values in by_key.items()]
             for part, by_key in medians.items()}
    print(json.dumps({"machine": about} | parts, indent=1))


def table(title, heads, rows):
    rows = [[str(cell) for cell in row] for row in rows]
    print(f"\n### {title}\n")
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def ratio(value, base):
    return f"{value / base:.2f}" if base else ""


def of(subject):
    return MAILTAP.get(subject, subject)


def protocol(cases):
    for size in sorted({key[2] for key in cases}):
        rows = []
        for (subject, transport, bytes_), found in cases.items():
            if bytes_ != size:
                continue
            base = cases[("c-noop", "unix", size)]["messages_per_s"]
            rows.append([of(subject), transport, round(found["messages_per_s"]),
                         ratio(found["messages_per_s"], base), round(found["p50_us"]), round(found["p99_us"]),
                         round(found["max_us"]), round(found["cpu_us_per_message"])])
        rows.sort(key=lambda row: row[1], reverse=True)
        table(f"The protocol alone, {size // 1024} KB", ["filter", "over", "messages/s", "÷ " + NOOP, "p50 µs",
              "p99 µs", "max µs", "CPU µs a message"], rows)


def memory(cases):
    rows = {}
    for (subject, _, _, connections), found in cases.items():
        rows.setdefault(subject, {})[connections] = found
    heads = ["filter"]
    for connections in sorted(next(iter(rows.values()))):
        heads += [f"RSS at {connections} KiB", f"most at {connections} KiB"]
    table("Memory, 64 KB messages", heads, [
        [of(subject)] + [round(found[name]) for _, found in sorted(by.items()) for name in ("rss_kib", "most_rss_kib")]
        for subject, by in rows.items()])


def postfix(cases):
    for size in sorted({key[2] for key in cases}):
        rows = []
        for (subject, transport, bytes_), found in cases.items():
            if bytes_ != size:
                continue
            base = cases[("c-noop", "unix", size)]
            rows.append([of(subject), "" if subject == "none" else transport, round(found["accepted_per_s"]),
                         ratio(found["accepted_per_s"], base["accepted_per_s"]), round(found["delivered_per_s"]),
                         ratio(found["delivered_per_s"], base["delivered_per_s"]),
                         round(found["machine_busy_percent"]), round(found["cpu_us_per_message"])])
        rows.sort(key=lambda row: row[1], reverse=True)
        table(f"Within Postfix, {size // 1024} KB", ["filter", "over", "accepted/s", "÷ " + NOOP, "delivered/s",
              "÷ " + NOOP, "machine busy %", "filter's CPU µs a message"], rows)


def latency(cases):
    for size in sorted({key[2] for key in cases}):
        rows = []
        for (subject, transport, bytes_), found in cases.items():
            if bytes_ != size:
                continue
            base = cases[("c-noop", "unix", size)]
            added = [round((found[name] - base[name]) / 1000, 1) for name in ("p50_us", "p99_us")]
            rows.append([of(subject), "" if subject == "none" else transport, round(found["p50_us"] / 1000, 1),
                         round(found["p99_us"] / 1000, 1), *added])
        rows.sort(key=lambda row: row[1], reverse=True)
        table(f"One SMTP session, {size // 1024} KB", ["filter", "over", "p50 ms", "p99 ms", "p50 beyond " + NOOP,
              "p99 beyond " + NOOP], rows)


def main(form, *rest):
    if form == "machine":
        return machine(rest)
    about, medians = read(rest[0])
    if form == "json":
        return as_json(about, medians)
    print(f"{about['cpus']} × {about['cpu']}, {about['system']}, Postfix {about['postfix']}, {about['mailtap']}, "
          f"{about['date']};\nload before {about['load_before']}, {about['sessions']} sessions, "
          f"medians of {about['rounds']} rounds")
    for part, show in (("protocol", protocol), ("memory", memory), ("postfix", postfix), ("latency", latency)):
        if part in medians:
            show(medians[part])
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
