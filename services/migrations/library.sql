-- How far each partition of each source has been applied. Written in the transaction of what was applied.
CREATE TABLE positions (
    source TEXT NOT NULL,
    place TEXT NOT NULL,
    next TEXT NOT NULL,
    PRIMARY KEY (source, place)
);
-- Events whose effect is in this database: an event that comes again changes nothing.
CREATE TABLE inbox (
    source TEXT NOT NULL,
    id TEXT NOT NULL,
    seen BIGINT NOT NULL,
    PRIMARY KEY (source, id)
);
CREATE INDEX inbox_by_age ON inbox (seen);
-- What this service says, in the order it was said; others read it from here, or from the topic it is copied to.
CREATE TABLE outbox (
    seq BIGINT PRIMARY KEY,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    body TEXT NOT NULL
);
-- Events that could not be applied, and why.
CREATE TABLE dead_letters (
    source TEXT NOT NULL,
    id TEXT NOT NULL,
    reason TEXT NOT NULL,
    body TEXT NOT NULL,
    set_aside_ms BIGINT NOT NULL,
    PRIMARY KEY (source, id)
);
-- Numbers that only grow; a row is also the lock that keeps them in the order of the commits.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('outbox', 0), ('inbox', 0), ('generation', 0);
