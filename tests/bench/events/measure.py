#!/usr/bin/python3
"""The measuring part of tests/bench/events/broker: runs roles, samples their counters, prints JSON lines and tables."""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import urllib.request

TICK = os.sysconf("SC_CLK_TCK")
PATIENCE = 600
# Of a connection of the relay, unless it is configured otherwise.
STREAMS = 100
# Of a message of the peer: about what a click has.
MESSAGE_BYTES = 500


def get(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return answer.read().decode()


def cpu(pid):
    """Seconds of processor time of a process so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def peak_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1))


def brokers(directory):
    """The Erlang machine of the broker in a directory: its HOME is there."""
    real = os.path.realpath(os.path.join(directory, "home"))
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", encoding="ascii") as comm, open(f"/proc/{pid}/environ", "rb") as environ:
                if comm.read().startswith("beam") and f"HOME={real}".encode() in environ.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            continue
    return found


class Run:
    """Processes of one role, measured from a tenth to nine tenths of the events, so that neither start nor end counts."""

    def __init__(self, args, role, names):
        self.args, self.role, self.names = args, role, names
        self.processes = []

    def command(self, name):
        return [self.args.mailtap, "--config", os.path.join(self.args.work, name, "mailtap.toml"), self.role]

    def __enter__(self):
        for name in self.names:
            log = open(os.path.join(self.args.work, "log", f"{self.role}-{name}"), "ab")
            self.processes.append(subprocess.Popen(self.command(name), stdout=log, stderr=log))
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)

    def metric(self, pattern):
        total = 0.0
        for name in self.names:
            with open(os.path.join(self.args.work, name, f"{self.role}.port"), encoding="ascii") as port:
                url = f"http://127.0.0.1:{port.read().strip()}/metrics"
            try:
                total += sum(float(value) for value in re.findall(pattern, get(url)))
            except OSError:
                pass
        return total

    def measure(self, count, others):
        events, end = self.args.events, time.monotonic() + PATIENCE
        watched = {"own": [process.pid for process in self.processes], **others}
        samples = [(time.monotonic(), 0, {name: sum(map(cpu, pids)) for name, pids in watched.items()})]
        while True:
            done = count()
            used = {name: sum(map(cpu, pids)) for name, pids in watched.items()}
            samples.append((time.monotonic(), done, used))
            if done >= events:
                break
            if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
                sys.exit(f"{self.role}: {done:.0f} of {events} events")
            time.sleep(0.02)
        start, first, before = [sample for sample in samples if sample[1] <= events * 0.1][-1]
        stop, last, after = [sample for sample in samples if sample[1] >= events * 0.9][0]
        figures = {"events_s": (last - first) / (stop - start)}
        for name in watched:
            figures[f"{name}_cpu_us"] = (after[name] - before[name]) * 1e6 / (last - first)
        figures["peak_kib"] = max(peak_kib(process.pid) for process in self.processes)
        return figures


def forward(args):
    with Run(args, "forward", args.names) as run:
        count = lambda: run.metric(r"(?m)^mailtap_forward_events_total(?:\{[^}]*\})? (\S+)")
        figures = run.measure(count, {"broker": brokers(args.broker)})
    print(json.dumps({"case": "forward", "clients": args.clients, "queues": args.names[0], **figures}))


def summary(args):
    return json.loads(get(f"http://127.0.0.1:{args.collector}/collector/summary"))


def relay(args):
    with Run(args, "relay", args.names) as run:
        count = lambda: summary(args)["processed"]
        figures = run.measure(count, {"broker": brokers(args.broker), "collector": [args.collector_pid]})
    after = summary(args)
    wrong = {name: after[name] for name in ("duplicates", "dropped", "modified") if after[name]}
    if wrong or after["processed"] != args.events:
        sys.exit(f"relay: {after['processed']} of {args.events} events, {wrong}")
    share = after["requests"] / args.events
    figures["requests_s"] = figures["events_s"] * share
    figures["events_a_request"] = 1 / share
    print(json.dumps({"case": "relay", "clients": args.clients, "relays": len(args.names), **figures}))


class Peer(Run):
    """The program that does the least: see peer.rs."""

    def __init__(self, args, body):
        super().__init__(args, "peer", ["peer"])
        self.body = body

    def command(self, name):
        numbers = ["--events", str(self.args.events), "--in-flight", str(self.args.in_flight), "--bytes", str(MESSAGE_BYTES)]
        where = ["--amqp", self.args.amqp, "--collector", f"127.0.0.1:{self.args.collector}", "--body", self.body]
        return [self.args.peer, *where, *numbers]


def peer(args):
    body, _ = median_request(args)
    with Peer(args, body) as run:
        count = lambda: summary(args)["processed"]
        figures = run.measure(count, {"broker": brokers(args.broker), "collector": [args.collector_pid]})
    figures["requests_s"] = figures["events_s"]
    print(json.dumps({"case": "peer", "clients": args.clients, "relays": len(args.names), **figures}))


def median_request(args):
    """The body of median size that the relay would send, in a file, and how many events it has."""
    with open(args.requests, encoding="utf-8") as lines:
        requests = [json.loads(line) for line in lines]
    requests = sorted((request for request in requests if "body" in request), key=lambda request: request["bytes"])
    middle = requests[len(requests) // 2]
    body = os.path.join(args.work, "body.json")
    with open(body, "w", encoding="utf-8") as file:
        json.dump(middle["body"], file, separators=(",", ":"))
    return body, len(middle["body"]["events"])


def h2load(args):
    body, events = median_request(args)
    url = f"http://127.0.0.1:{args.collector}/mp/collect?measurement_id=G-BENCH&api_secret=secret"
    number = max(args.in_flight, args.events // max(1, events))
    connections = -(-args.in_flight // STREAMS)
    over = ["-c", str(connections), "-m", str(-(-args.in_flight // connections))]
    before = cpu(args.collector_pid)
    said = subprocess.run(
        ["h2load", "-n", str(number), "-t", "1", *over, "-d", body, "-H", "content-type: application/json", url],
        capture_output=True, text=True, check=True,
    ).stdout
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", said)
    good = re.search(r"status codes: (\d+) 2xx", said)
    if not rate or int(good.group(1)) != number:
        sys.exit(f"h2load: {said}")
    figures = {
        "requests_s": float(rate.group(1)),
        "collector_cpu_us": (cpu(args.collector_pid) - before) * 1e6 / number,
        "bytes": os.path.getsize(body),
        "connections": connections,
    }
    print(json.dumps({"case": "h2load", "clients": args.clients, "relays": len(args.names), **figures}))


def machine(args):
    version = subprocess.run([args.mailtap, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    load = os.getloadavg()[0]
    print(
        json.dumps(
            {
                "case": "machine", "mailtap": version, "system": platform.platform(), "processors": os.cpu_count(),
                "load_before": load, "events": args.events, "in_flight": args.in_flight, "rounds": args.rounds,
            }
        )
    )


def medians(path):
    """The medians of each case over the rounds."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    about, cases = rows[0], {}
    for row in rows[1:]:
        cases.setdefault((row["case"], row["clients"], row.get("relays", row.get("queues"))), []).append(row)
    middle = lambda rows, name: statistics.median(row[name] for row in rows)
    merged = []
    for (case, clients, relays), rows in cases.items():
        figures = {name: middle(rows, name) if isinstance(value, float | int) else value for name, value in rows[0].items()}
        merged.append({**figures, "case": case, "clients": clients, "relays": relays} if case != "forward" else figures)
    return about, merged


def with_ratios(path):
    about, cases = medians(path)
    of = {(case["case"], case["clients"], case.get("relays")): case for case in cases}
    for case in cases:
        if case["case"] == "relay":
            for other, ratio in ("h2load", "ratio"), ("peer", "ratio_peer"):
                found = of.get((other, case["clients"], case["relays"]))
                case[ratio] = case["requests_s"] / found["requests_s"] if found else None
    return about, cases


def table(path):
    about, cases = with_ratios(path)
    print(f"{about['mailtap']}, {about['processors']} processors, load {about['load_before']:.1f} before, "
          f"{about['events']} events, {about['in_flight']} in flight, {about['rounds']} rounds\n")
    print("spool → RabbitMQ, with confirms\n\n| clients | events/s | CPU µs an event | of the broker | peak MiB |\n|---|---|---|---|---|")
    for case in cases:
        if case["case"] == "forward":
            queues = "one queue" if case["queues"] == "one" else "two queues"
            print(f"| {case['clients']}, {queues} | {case['events_s']:,.0f} | {case['own_cpu_us']:.0f} | {case['broker_cpu_us']:.0f} "
                  f"| {case['peak_kib'] / 1024:.0f} |")
    print("\nRabbitMQ → collector\n\n| clients | relays | events a request | events/s | requests/s | h2load: requests/s | ratio "
          "| CPU µs an event | of the broker | of the collector | peak MiB |\n" + "|---" * 11 + "|")
    h2load_of = {(case["clients"], case["relays"]): case for case in cases if case["case"] == "h2load"}
    for case in cases:
        if case["case"] == "relay":
            other = h2load_of[case["clients"], case["relays"]]
            print(f"| {case['clients']} | {case['relays']} | {case['events_a_request']:.1f} | {case['events_s']:,.0f} "
                  f"| {case['requests_s']:,.0f} | {other['requests_s']:,.0f} | {case['ratio']:.2f} "
                  f"| {case['own_cpu_us']:.0f} | {case['broker_cpu_us']:.0f} | {case['collector_cpu_us']:.0f} "
                  f"| {case['peak_kib'] / 1024:.0f} |")
    print("\nThe least that can stand between them\n\n| requests/s | the relay's ratio to it | of h2load | CPU µs a message | of the broker "
          "| of the collector |\n" + "|---" * 6 + "|")
    for case in cases:
        if case["case"] == "peer":
            relay = next(other for other in cases if other["case"] == "relay" and
                         (other["clients"], other["relays"]) == (case["clients"], case["relays"]))
            other = h2load_of[case["clients"], case["relays"]]
            print(f"| {case['requests_s']:,.0f} | {relay['ratio_peer']:.2f} | {case['requests_s'] / other['requests_s']:.2f} "
                  f"| {case['own_cpu_us']:.0f} | {case['broker_cpu_us']:.0f} | {case['collector_cpu_us']:.0f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    for name in ("mailtap", "work", "broker", "requests", "results", "amqp", "peer"):
        parser.add_argument(f"--{name}")
    for name in ("events", "clients", "collector", "collector-pid", "in-flight", "rounds"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--names", nargs="+")
    args = parser.parse_args()
    if args.case == "json":
        about, cases = with_ratios(args.results)
        print(json.dumps({"machine": about, "cases": cases}))
    elif args.case == "table":
        table(args.results)
    else:
        {"forward": forward, "relay": relay, "h2load": h2load, "peer": peer, "machine": machine}[args.case](args)


if __name__ == "__main__":
    main()
