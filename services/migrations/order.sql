-- The read model: one row a ride, folded from its events. Can be emptied and rebuilt from the log.
CREATE TABLE orders (
    ride TEXT PRIMARY KEY,
    rider TEXT NOT NULL,
    class TEXT NOT NULL,
    pickup_lat_e7 BIGINT NOT NULL,
    pickup_lon_e7 BIGINT NOT NULL,
    dropoff_lat_e7 BIGINT,
    dropoff_lon_e7 BIGINT,
    state TEXT NOT NULL,
    driver TEXT,
    requested_ms BIGINT NOT NULL,
    assigned_ms BIGINT,
    arrived_ms BIGINT,
    started_ms BIGINT,
    ended_ms BIGINT,
    ended_by TEXT,
    last_seq BIGINT NOT NULL
);
CREATE INDEX orders_by_time ON orders (requested_ms, ride);
CREATE INDEX orders_by_rider ON orders (rider, requested_ms);
CREATE INDEX orders_by_driver ON orders (driver, requested_ms);
CREATE TABLE order_history (
    ride TEXT NOT NULL,
    ride_seq BIGINT NOT NULL,
    name TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    driver TEXT,
    PRIMARY KEY (ride, ride_seq)
);
-- The money of each ride, and what is waited for. Not rebuilt: it remembers what was asked of others.
CREATE TABLE sagas (
    ride TEXT PRIMARY KEY,
    rider TEXT NOT NULL,
    state TEXT NOT NULL,
    hold TEXT NOT NULL,
    hold_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    surge_permille BIGINT NOT NULL,
    due_minor BIGINT NOT NULL,
    charged_for TEXT,
    lines TEXT NOT NULL,
    why TEXT,
    deadline TEXT,
    deadline_ms BIGINT
);
CREATE INDEX sagas_by_deadline ON sagas (deadline_ms);
-- Rides to be called off, until the gateway has taken it.
CREATE TABLE cancels (
    ride TEXT PRIMARY KEY,
    reason TEXT NOT NULL
);
