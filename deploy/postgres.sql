-- A database for each service of compose.yaml.
CREATE DATABASE "order";
CREATE DATABASE payment;
CREATE DATABASE forecast;
