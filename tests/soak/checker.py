# SPDX-License-Identifier: MIT
"""Clients in several processes at once over common keys, whose outcome is known exactly.

Counters take INCRs from everybody, alone and within MULTI, and optimistic increments by WATCH; at
the end each must hold the number of those that were acknowledged. Each process also has keys of its
own, on which every reply of a pipeline is known beforehand.

    python3 checker.py PORT SEED SECONDS        prints one JSON object: what it did and what was wrong
"""

import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from conftest import ReplyError, Resp  # noqa: E402

COUNTERS = 24
PAIRS = 8
WATCHED = 4


class Checker:
    def __init__(self, port, seed):
        self.random = random.Random(seed)
        self.label = f"p{seed}"
        self.connections = [Resp(port, timeout=60) for _ in range(3)]
        self.model = [{}, {}, {}]
        self.done = {"counter": [0] * COUNTERS, "pair": [0] * PAIRS, "watched": [0] * WATCHED}
        self.problems = []
        self.commands = 0
        self.refused = 0

    def problem(self, text):
        if len(self.problems) < 10:
            self.problems.append(text)

    def one(self, number):
        """Words and what the reply must be (a function of it), for one command of a pipeline."""
        model = self.model[number]
        chance = self.random.random()
        if chance < 0.3:
            i = self.random.randrange(COUNTERS)

            def counted(reply):
                if isinstance(reply, int):
                    self.done["counter"][i] += 1
                    return True
                return False

            return ("INCR", f"counter{i}"), counted
        key = f"{self.label}:{number}:{self.random.randrange(50)}"
        old = model.get(key)
        if chance < 0.5:
            value = f"{key}={self.random.random()}".encode() * self.random.choice((1, 1, 30, 300))
            model[key] = value
            return ("SET", key, value), lambda reply: reply == "OK"
        if chance < 0.75:
            return ("GET", key), lambda reply: reply == old
        if chance < 0.8:
            model[key] = (old or b"") + b"+"
            return ("APPEND", key, "+"), lambda reply: reply == len(old or b"") + 1
        if chance < 0.87:
            model.pop(key, None)
            return ("DEL", key), lambda reply: reply == (old is not None)
        if chance < 0.94:
            return ("EXPIRE", key, 1000), lambda reply: reply == (old is not None)
        other = f"{self.label}:{number}:{self.random.randrange(50)}"
        both = [old, model.get(other)]
        return ("MGET", key, other), lambda reply: reply == both

    def pipeline(self, number):
        connection = self.connections[number]
        wanted = [self.one(number) for _ in range(self.random.choice((1, 5, 30, 200)))]
        connection.send_raw(b"".join(Resp.encode(*words) for words, _ in wanted))
        for words, right in wanted:
            reply = connection.read()
            self.commands += 1
            if not right(reply):
                self.problem(f"{words[:2]} answered {str(reply)[:80]}")

    def transaction(self, number):
        connection = self.connections[number]
        i = self.random.randrange(PAIRS)
        for words in (("MULTI",), ("INCR", f"a{{pair{i}}}"), ("INCR", f"b{{pair{i}}}"), ("EXEC",)):
            connection.send(*words)
        reply = [connection.read() for _ in range(4)][3]
        if isinstance(reply, list) and len(reply) == 2 and reply[0] == reply[1]:
            self.done["pair"][i] += 1
        else:
            self.problem(f"EXEC of pair {i} answered {reply}")

    def optimistic(self, number):
        connection = self.connections[number]
        i = self.random.randrange(WATCHED)
        key = f"watched{i}"
        connection.call("WATCH", key)
        value = int(connection.call("GET", key) or 0)
        for words in (("MULTI",), ("SET", key, value + 1), ("EXEC",)):
            connection.send(*words)
        reply = [connection.read() for _ in range(3)][2]
        if isinstance(reply, ReplyError):
            self.problem(f"EXEC of {key} answered {reply}")
        elif reply is None:
            self.refused += 1
        else:
            self.done["watched"][i] += 1

    def run(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number = self.random.randrange(len(self.connections))
            self.random.choice((self.pipeline, self.transaction, self.optimistic))(number)


if __name__ == "__main__":
    checker = Checker(int(sys.argv[1]), int(sys.argv[2]))
    checker.run(float(sys.argv[3]))
    print(json.dumps({"done": checker.done, "problems": checker.problems,
                      "commands": checker.commands, "conflicts": checker.refused}))
