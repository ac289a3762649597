-- What the forecast has learned and is counting, as one document.
CREATE TABLE forecast (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL
);
-- The newest forecast of each cell.
CREATE TABLE forecasts (
    cell TEXT PRIMARY KEY,
    made_ms BIGINT NOT NULL,
    body TEXT NOT NULL
);
