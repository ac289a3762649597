"""How much was earned? A consumer of Cabrank's topics in another language, with a stock Kafka client.

    pip install -r examples/requirements-kafka.txt
    python examples/revenue.py --brokers 127.0.0.1:9092 --prefix "" --database revenue.db

Reads `payment-events` (docs/asyncapi.json) and keeps the sum in a SQLite file. It shows all a consumer needs to count each
event once: the event's id (inbox), the sums (state) and the offsets are written in one transaction of its own database, so
it does not matter when it is killed or how often an event comes. What it reads of an event is in
services/contracts/revenue.json: the producers' tests hold them to it.
"""

import argparse
import json
import sqlite3
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

TABLES = """
CREATE TABLE IF NOT EXISTS inbox (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS positions (topic TEXT, partition INTEGER, next INTEGER, PRIMARY KEY (topic, partition));
CREATE TABLE IF NOT EXISTS revenue (currency TEXT PRIMARY KEY, rides INTEGER NOT NULL, minor INTEGER NOT NULL);
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--prefix", default="", help="what the city's topics begin with")
    parser.add_argument("--database", required=True)
    parser.add_argument("--once", action="store_true", help="stop at the end of the topic")
    parser.add_argument("--stop-after", type=int, default=0, metavar="N", help="end without a word after N events, for a test")
    asked = parser.parse_args()

    database = sqlite3.connect(asked.database)
    database.executescript(TABLES)
    topic = f"{asked.prefix}payment-events"
    consumer = Consumer({
        "bootstrap.servers": asked.brokers,
        # Positions are in our database: the group is never joined, and its offsets are never committed.
        "group.id": f"{asked.prefix}revenue",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
    })
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    if not partitions:
        sys.exit(f"there is no topic {topic}")
    known = {part: next for part, next in database.execute("SELECT partition, next FROM positions WHERE topic = ?", [topic])}
    consumer.assign([TopicPartition(topic, part, known.get(part, OFFSET_BEGINNING)) for part in partitions])

    ended, seen = set(), 0
    while not (asked.once and len(ended) == len(partitions)):
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            if message.error().code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
            else:
                print(message.error(), file=sys.stderr)
                time.sleep(0.5)
            continue
        ended.discard(message.partition())
        # One transaction: what came, what it means, where to go on.
        with database:
            apply(database, json.loads(message.value()))
            database.execute("INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", [topic, message.partition(), message.offset() + 1])
        seen += 1
        if seen == asked.stop_after:
            return
    for currency, rides, minor in database.execute("SELECT currency, rides, minor FROM revenue ORDER BY currency"):
        print(f"{rides} payments, {minor / 100:.2f} {currency}")


def apply(database, event):
    """An event that comes again changes nothing; one of a kind we do not know is passed over."""
    if database.execute("INSERT OR IGNORE INTO inbox VALUES (?)", [event["id"]]).rowcount == 0:
        return
    sign = {"cabrank.payment.captured.v1": 1, "cabrank.payment.refunded.v1": -1}.get(event["type"])
    if sign is None:
        return
    amount = event["data"]["amount"]
    database.execute("INSERT OR IGNORE INTO revenue VALUES (?, 0, 0)", [amount["currency"]])
    database.execute(
        "UPDATE revenue SET rides = rides + ?, minor = minor + ? WHERE currency = ?",
        [max(sign, 0), sign * amount["minor"], amount["currency"]],
    )


if __name__ == "__main__":
    main()
