#!/usr/bin/env python3
"""A rider's app in a terminal, written from docs/protocol.md alone.

    cabrank token --role rider --subject ann | python3 examples/rider.py http://127.0.0.1:8080 37.7749 -122.4194 37.7899 -122.4000

Asks for a ride and tells what happens to it until its end; Ctrl-C calls it off. Two more numbers: once in the car, the rider
wants to be brought there instead. The token is read from the first line of standard input. Needs the package `websockets`. Exit
code 0: the ride was driven; 1: it was not.
"""

import asyncio
import json
import sys
import time
import urllib.error
import urllib.request
import uuid

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

ENDS = ("completed", "cancelled", "unfulfilled")
RETRY_S = 1


def call(url, token, body, method="POST", **headers):
    """Asks until the server answers for good: a repeated request with the same key cannot happen twice."""
    data = json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **headers}
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            problem = json.load(refused)
            name = problem["type"].rsplit(":", 1)[-1]
            if refused.code not in (429, 503) or name == "shard_full":
                sys.exit(f"{problem['title']}: {problem['detail']}")
            time.sleep(int(refused.headers.get("Retry-After", RETRY_S)))
        except OSError as why:
            print("no answer, trying again:", why, flush=True)
            time.sleep(RETRY_S)


def quoted(quote):
    """What is known before the ride is asked for, in words."""
    when = quote.get("pickup_time")
    if when is None:
        said = "nobody can say when a car would be there"
    else:
        basis = f"learned from {when['rides']} rides" if when["rides"] else "a guess"
        said = f"a car in {when['low_s']} to {when['high_s']} s, {when['share']:.0%} of the time ({basis})"
    return f"{quote['cars_near']} cars near: {said}"


def tell_point(told):
    """Zones may have points where riders are fetched instead."""
    if point := told.get("pickup_point"):
        at = point["at"]
        print(f"fetched at {point['name']} ({point['zone']}): {at['lat']}, {at['lon']}", flush=True)


def tell(message):
    kind = message["type"]
    if kind == "ride":
        driver = f" by {message['driver']}" if "driver" in message else ""
        print(f"{message['stage']}{driver}", flush=True)
    elif kind == "cars_near":
        print(f"{len(message['cars'])} cars near", flush=True)
    elif kind == "driver_at" and "remaining_s" in message:
        print(f"the car is {message['remaining_s']} s away", flush=True)
    elif kind == "error":
        print("not understood:", message["message"], flush=True)


async def lead_to(url, token, ride, place):
    """Another destination, with a key of its own, while the socket is read on."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    asked = asyncio.to_thread(call, f"{url}/v1/rides/{ride}/destination", token, {"to": place}, "PUT", **key)
    print("brought elsewhere:", (await asked)["result"], flush=True)


async def follow(url, token, ride, elsewhere):
    """Tells what happens to the ride; its end."""
    while True:
        try:
            protocols = ["cabrank.v1.json", f"bearer.{token}"]
            async with connect(f"{url.replace('http', 'ws', 1)}/v1/rider", subprotocols=protocols) as socket:
                async for text in socket:
                    message = json.loads(text)
                    if message["type"] == "move":  # this gateway goes down: connect again
                        await asyncio.sleep(message["after_ms"] / 1000)
                        break
                    tell(message)
                    if message["type"] == "ride" and message["ride"] == ride and message["stage"] in ENDS:
                        return message["stage"]
                    if elsewhere and message["type"] == "ride" and message["stage"] == "started":
                        place, elsewhere = elsewhere, None
                        await lead_to(url, token, ride, place)
            if socket.close_code in (4401, 4410):  # the token is over; a newer socket of ours
                sys.exit(f"closed: {socket.close_code} {socket.close_reason}")
        except InvalidStatus as refused:
            if refused.response.status_code in (400, 401, 403):
                sys.exit(refused.response.body.decode())
        except (OSError, ConnectionClosed) as why:
            print("connection lost:", why, flush=True)
        # The end may have come while nobody listened.
        asked = urllib.request.Request(f"{url}/v1/rides/{ride}", headers={"Authorization": f"Bearer {token}"})
        try:
            stage = json.load(urllib.request.urlopen(asked, timeout=10))["stage"]
            if stage in ENDS:
                return stage
        except OSError:
            pass
        await asyncio.sleep(RETRY_S)


def main():
    url, *places = sys.argv[1:8]
    token = sys.stdin.readline().strip()
    lat, lon, to_lat, to_lon, *other = map(float, places)
    elsewhere = dict(zip(("lat", "lon"), other))
    wish = {"pickup": {"lat": lat, "lon": lon}, "dropoff": {"lat": to_lat, "lon": to_lon}, "class": "economy"}
    print(quoted(call(f"{url}/v1/quote", token, wish)), flush=True)
    opened = call(f"{url}/v1/rides", token, wish, **{"Idempotency-Key": str(uuid.uuid4())})
    ride = opened["ride"]
    print("asked for ride", ride, flush=True)
    tell_point(opened)
    try:
        end = asyncio.run(follow(url, token, ride, elsewhere))
    except KeyboardInterrupt:
        print("calling it off:", call(f"{url}/v1/rides/{ride}/cancel", token, {})["result"], flush=True)
        end = "cancelled"
    sys.exit(0 if end == "completed" else 1)


if __name__ == "__main__":
    main()
