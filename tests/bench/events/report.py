"""machine --rounds N: a line of JSON about this machine.  table FILE: tables of the results, medians over the rounds.

Run by `run`, which says what the parts are.
"""

import json
import os
import sys
from statistics import median


def machine(rounds):
    """Where and when, and how busy it was before anything began."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    load = os.getloadavg()[0]
    line = {"case": "machine", "rounds": rounds, "cores": os.cpu_count(), "load": round(load, 1)}
    print(json.dumps(line | {"model": models[0] if models else "unknown"}))


def number(value):
    """Large ones in whole, small ones with what tells them apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head, rows):
    """A table of Markdown."""
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def publish(lines):
    """What `publish.rs` wrote."""
    disk = [line["syncs_s"] for line in lines if line["case"] == "disk"]
    if disk:
        print(f"\nThe disk: {number(median(disk))} appends of 4 KiB a second, each synced.")
    cases = {}
    for line in lines:
        if line["case"] == "publish":
            cases.setdefault((line["sync"], line["publishers"], line["batch"]), []).append(line)
    for title, what, varied, fixed in (
        ("One publisher", "batch", 2, 1),
        ("Publishers of one event each", "publishers", 1, 2),
    ):
        rows = []
        for case, found in cases.items():
            if case[fixed] == 1:
                values = [median(line[key] for line in found) for key in ("events_s", "cpu_us", "p50_ms", "p99_ms")]
                rows.append([case[0], f"{case[varied]:,}", *map(number, values)])
        if rows:
            print(f"\n{title}:")
            table(["sync", what, "events/s", "CPU µs an event", "p50 ms", "p99 ms"], rows)
    for line in lines:
        if line["case"] == "memory":
            each = number(line["bytes_event"])
            print(f"\nWhat stays of an event that was sent: {each} bytes of the file, for `spool.dedupe`.")


def main(arguments):
    """By the first argument."""
    if arguments[:1] == ["machine"]:
        machine(int(arguments[2]))
        return
    with open(arguments[1], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for line in lines:
        if line["case"] == "machine":
            print(f"{line['cores']} cores of {line['model']}, load {line['load']} before, {line['rounds']} rounds.")
    publish(lines)


main(sys.argv[1:])
