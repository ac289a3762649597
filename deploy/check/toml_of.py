"""Prints the configuration in a rendered chart."""

import sys

import yaml

with open(sys.argv[1], encoding="utf-8") as text:
    objects = [o for o in yaml.safe_load_all(text) if o]
print(next(o for o in objects if o["kind"] == "ConfigMap")["data"]["cabrank.toml"])
