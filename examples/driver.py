#!/usr/bin/env python3
"""A driver's app in a terminal, written from docs/protocol.md alone.

    cabrank token --role driver --subject d1 | python3 examples/driver.py ws://127.0.0.1:8080 37.7749 -122.4194

Goes online, pings, takes every offer, drives to the pickup and to the drop-off in straight lines, and says what it does. The
token is read from the first line of standard input. Needs the package `websockets`. Ends with Ctrl-C.
"""

import asyncio
import itertools
import json
import math
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

PING_EVERY_S = float(os.environ.get("PING_EVERY_S", "1"))
SPEED_MPS = float(os.environ.get("SPEED_MPS", "9"))
ARRIVED_M = 15
RETRY_S = 2


class Driver:
    def __init__(self, lat, lon):
        self.at = (lat, lon)
        self.session = None  # to resume after a lost connection
        self.hold = None  # ride and attempt of the offer or the ride we have
        self.goals = []  # what is still to be done: (where, what to report there)
        self.numbers = itertools.count(1)
        self.life = os.getpid()
        self.unanswered = {}  # by id: messages are repeated until their outcome is known

    def message(self, kind, **more):
        """A message with an id of its own: the same id always gets the same outcome."""
        message = {"type": kind, "id": f"{self.life}-{next(self.numbers)}", **more}
        self.unanswered[message["id"]] = message
        return message

    async def say(self, socket, message):
        await socket.send(json.dumps(message))

    async def report(self, socket, kind):
        await self.say(socket, self.message(kind, **self.hold))

    async def hear(self, socket, message):
        kind = message["type"]
        if kind == "outcome":
            await self.outcome(socket, message)
        elif kind == "offer":
            self.hold = {"ride": message["ride"], "attempt": message["attempt"]}
            print("offered", message["ride"], flush=True)
            await self.report(socket, "received")
            await self.report(socket, "accept")
        elif kind == "ride":
            self.hold = {"ride": message["ride"], "attempt": message["attempt"]}
            self.plan(message)
        elif kind in ("withdrawn", "released"):
            if self.hold and self.hold["ride"] == message["ride"]:
                print(kind, message["ride"], message.get("stage", ""), flush=True)
                self.hold, self.goals = None, []
        elif kind == "ping_refused":
            print("a ping was refused:", message["reason"], flush=True)
        elif kind == "error":
            print("not understood:", message["message"], flush=True)
        elif kind == "move":
            await asyncio.sleep(message["after_ms"] / 1000)
            await socket.close()

    async def outcome(self, socket, message):
        said = self.unanswered.get(message["id"])
        if message["result"] == "unknown" and said:
            await asyncio.sleep(0.5)
            return await self.say(socket, said)  # with the same id: it cannot happen twice
        self.unanswered.pop(message["id"], None)
        if "session" in message:
            self.session = message["session"]
            print("online", flush=True)
        if message["result"] == "refused":
            print("refused:", said and said["type"], message.get("why"), flush=True)
            if said and said["type"] == "online":
                self.session = None
                await self.go_online(socket)

    def plan(self, ride):
        """What is left of the ride, as of the stage the server names."""
        pickup = (ride["pickup"]["lat"], ride["pickup"]["lon"])
        end = ride.get("dropoff")
        dropoff = (end["lat"], end["lon"]) if end else pickup
        steps = {"en_route": 0, "arrived": 1, "started": 2}
        if ride["stage"] in steps:
            goals = [(pickup, "arrived"), (pickup, "started"), (dropoff, "completed")]
            print("brings the rider to", *dropoff, flush=True)  # elsewhere than before, if the rider wants it
            self.goals = goals[steps[ride["stage"]] :]

    async def go_online(self, socket):
        session = {"session": self.session} if self.session else {}
        await self.say(socket, self.message("online", classes=["economy"], **session))

    async def drive(self, socket):
        for seq in itertools.count(1):
            if self.goals:
                (lat, lon), what = self.goals[0]
                north = (lat - self.at[0]) * 111_195
                east = (lon - self.at[1]) * 111_195 * math.cos(math.radians(lat))
                away = math.hypot(north, east)
                part = min(1, SPEED_MPS * PING_EVERY_S / max(away, 0.001))
                self.at = tuple(a + (b - a) * part for a, b in zip(self.at, (lat, lon)))
                if away <= ARRIVED_M:
                    self.goals.pop(0)
                    print(what, self.hold["ride"], flush=True)
                    await self.report(socket, what)
            await self.say(socket, {"type": "ping", "lat": self.at[0], "lon": self.at[1], "seq": seq})
            await asyncio.sleep(PING_EVERY_S)

    async def work(self, url, token):
        while True:
            try:
                # As a browser would: the token as a subprotocol item. A header Authorization works as well.
                protocols = ["cabrank.v1.json", f"bearer.{token}"]
                async with connect(f"{url}/v1/driver", subprotocols=protocols) as socket:
                    self.unanswered = {k: m for k, m in self.unanswered.items() if m["type"] != "online"}
                    await self.go_online(socket)
                    for message in list(self.unanswered.values()):
                        await self.say(socket, message)
                    driving = asyncio.create_task(self.drive(socket))
                    try:
                        async for text in socket:
                            await self.hear(socket, json.loads(text))
                    finally:
                        driving.cancel()
                code = socket.close_code
                if code in (4401, 4410):  # the token is over; a newer socket of ours
                    sys.exit(f"closed: {code} {socket.close_reason}")
            except InvalidStatus as refused:
                if refused.response.status_code in (400, 401, 403):
                    sys.exit(refused.response.body.decode())
            except (OSError, ConnectionClosed) as why:
                print("connection lost:", why, flush=True)
            await asyncio.sleep(RETRY_S)


if __name__ == "__main__":
    address, north, east = sys.argv[1:4]
    try:
        asyncio.run(Driver(float(north), float(east)).work(address, sys.stdin.readline().strip()))
    except KeyboardInterrupt:
        pass
