"""Does the server keep to RFC 6455, as Python's wsproto has it? Reads a driver's token; `python client.py ws://HOST:PORT`.

The cases that are bytes stand in cases.json, which client.mjs in web/test plays, too.
"""
import json
import pathlib
import socket
import sys
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, RejectConnection, RejectData,
                            Request, TextMessage)
from wsproto.extensions import PerMessageDeflate

ADDRESS = urlsplit(sys.argv[1])
TOKEN = sys.stdin.readline().strip()
FRAME_BYTES_MAX = 65_536


class Phone:
    """A greeted socket. Whatever the server sends goes through wsproto, which checks masks, lengths, UTF-8 and codes."""

    def __init__(self, subprotocol="cabrank.v1.json"):
        self.tcp = socket.create_connection((ADDRESS.hostname, ADDRESS.port), timeout=10)
        self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.waiting = self.heard()
        self.say(Request(host=ADDRESS.netloc, target="/v1/driver", subprotocols=[subprotocol, f"bearer.{TOKEN}"],
                         extensions=[PerMessageDeflate()]))
        self.answer = next(self.waiting)
        if isinstance(self.answer, AcceptConnection):
            assert self.answer.subprotocol == subprotocol and not self.answer.extensions, self.answer
            greeting = next(self.waiting)
            assert isinstance(greeting, BytesMessage if "proto" in subprotocol else TextMessage), greeting

    def say(self, *events):
        self.tcp.sendall(b"".join(self.ws.send(event) for event in events))

    def heard(self):
        """What the server says; ends when it hangs up."""
        while True:
            try:
                data = self.tcp.recv(65_536)
            except ConnectionResetError:
                return
            if not data:
                return
            self.ws.receive_data(data)
            yield from self.ws.events()

    def json(self):
        event = next(self.waiting)
        assert isinstance(event, TextMessage) and event.message_finished, event
        return json.loads(event.data)

    def closed(self):
        """The close code; the server has hung up after it."""
        event = next(self.waiting)
        assert isinstance(event, CloseConnection), event
        rest = list(self.waiting)
        assert not rest, rest
        return event.code, event.reason or ""


def online(key):
    return json.dumps({"type": "online", "id": key, "classes": ["economy"]})


def pieces_with_pings_between():
    phone, text = Phone(), online("pieces")
    phone.say(TextMessage(text[:10], message_finished=False), Ping(b"one"), TextMessage(text[10:20], message_finished=False),
              Ping(b"two"), TextMessage(text[20:]))
    assert [bytes(next(phone.waiting).payload) for _ in range(2)] == [b"one", b"two"]
    assert phone.json()["result"] == "done"


def pings_of_all_sizes():
    phone = Phone()
    for payload in (b"", b"x", bytes(range(125))):
        phone.say(Ping(payload))
        pong = next(phone.waiting)
        assert isinstance(pong, Pong) and bytes(pong.payload) == payload, pong


def byte_by_byte():
    phone = Phone()
    for byte in phone.ws.send(TextMessage(online("bytes"))):
        phone.tcp.sendall(bytes([byte]))
    assert phone.json()["result"] in ("done", "already_done")


def goodbyes():
    for code, reason in ((1000, "bye"), (1001, ""), (3000, "ä" * 61), (4999, "")):
        phone = Phone()
        phone.say(CloseConnection(code, reason))
        assert phone.closed() == (code, reason)
    phone = Phone()
    phone.tcp.sendall(bytes.fromhex("8880 00000000"))
    assert phone.closed() == (1005, ""), "without a code there is none in the answer"


def the_largest_message_and_one_more():
    phone = Phone()
    phone.say(TextMessage("x" * FRAME_BYTES_MAX))
    assert phone.json()["type"] == "error"
    phone.say(TextMessage("x" * (FRAME_BYTES_MAX // 2), message_finished=False), TextMessage("x" * (FRAME_BYTES_MAX // 2)))
    assert phone.json()["type"] == "error"
    phone.say(TextMessage("x" * FRAME_BYTES_MAX, message_finished=False), TextMessage("x"))
    assert phone.closed()[0] == 1009


def binary_subprotocol():
    phone = Phone("cabrank.v1.proto")
    phone.say(TextMessage("{}"))
    assert isinstance(next(phone.waiting), BytesMessage), "text where Protobuf is spoken is answered with an error"


def an_unknown_subprotocol_is_refused():
    assert isinstance(Phone("chat").answer, RejectConnection)


def handshakes_that_are_none():
    good = {"Host": ADDRESS.netloc, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Authorization": f"Bearer {TOKEN}"}
    for name, value in (("Sec-WebSocket-Version", "8"), ("Sec-WebSocket-Key", None), ("Upgrade", "h2c"), ("Connection", "close")):
        headers = {**good, name: value}
        with socket.create_connection((ADDRESS.hostname, ADDRESS.port), timeout=10) as tcp:
            lines = [f"{key}: {text}" for key, text in headers.items() if text is not None]
            tcp.sendall("\r\n".join(["GET /v1/driver HTTP/1.1", *lines, "", ""]).encode())
            answer = tcp.recv(65_536).decode()
            assert answer.split()[1] in ("400", "426"), (name, answer)


def play(case):
    phone = Phone()
    phone.tcp.sendall(bytes.fromhex(case["bytes"]) + bytes(case.get("fill", 0)))
    if "answer" in case:
        assert phone.json()["type"] == case["answer"]
    else:
        code, _ = phone.closed()
        assert code in case["close"], f"closed with {code}"


STORIES = (pieces_with_pings_between, pings_of_all_sizes, byte_by_byte, goodbyes, the_largest_message_and_one_more,
           binary_subprotocol, an_unknown_subprotocol_is_refused, handshakes_that_are_none)
CASES = json.loads((pathlib.Path(__file__).parent / "cases.json").read_text())
failed = 0
for name, run in [(story.__name__, story) for story in STORIES] + [(case["name"], lambda case=case: play(case)) for case in CASES]:
    try:
        run()
    except Exception as error:  # All cases are played, and all that fail are named.
        failed += 1
        print(f"FAILED {name}: {type(error).__name__}: {error}")
print(f"wsproto: {len(STORIES) + len(CASES) - failed} of {len(STORIES) + len(CASES)} as RFC 6455 has it")
sys.exit(failed > 0)
