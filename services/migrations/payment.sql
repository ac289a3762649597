-- One row a ride: what the provider holds, has given us, has given back. Tokens only; no card data exists here.
CREATE TABLE payments (
    ride TEXT PRIMARY KEY,
    rider TEXT NOT NULL,
    method TEXT NOT NULL,
    held_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    state TEXT NOT NULL,
    authorisation TEXT,
    captured_minor BIGINT NOT NULL,
    refunded_minor BIGINT NOT NULL,
    why TEXT
);
-- Calls to the provider. A ride's calls happen in the order of `step`, each until it has an answer.
CREATE TABLE calls (
    ride TEXT NOT NULL,
    step BIGINT NOT NULL,
    amount_minor BIGINT NOT NULL,
    is_done BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_ms BIGINT NOT NULL,
    PRIMARY KEY (ride, step)
);
CREATE INDEX calls_due ON calls (is_done, next_ms);
