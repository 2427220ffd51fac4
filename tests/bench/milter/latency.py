"""latency.py FILE SENDER RECIPIENT COUNT NAME=PORT…: how long does one message take, from MAIL to the 250 after its end?

Opens one SMTP session to each port of 127.0.0.1 and sends the message COUNT times through each in turn, so that whatever
else the machine does falls on all alike. Prints a line of JSON for each.
"""

import json
import smtplib
import sys
import time


def main(file, sender, recipient, count, *ways):
    with open(file, "rb") as text:
        message = text.read()
    sessions = []
    for way in ways:
        name, port = way.rsplit("=", 1)
        session = smtplib.SMTP("127.0.0.1", int(port), local_hostname="bench.test")
        session.ehlo()
        sessions.append((name, session, []))
    for _ in range(int(count)):
        for _, session, times in sessions:
            began = time.perf_counter()
            session.sendmail(sender, [recipient], message)
            times.append(time.perf_counter() - began)
    for name, session, times in sessions:
        session.quit()
        times.sort()
        at = lambda percent: round(times[min(len(times) - 1, len(times) * percent // 100)] * 1e6)
        subject, _, transport = name.partition(" ")
        print(json.dumps({"subject": subject, "transport": transport or subject, "messages": len(times),
                          "p50_us": at(50), "p99_us": at(99), "max_us": at(100)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
