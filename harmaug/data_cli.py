"""The command ``harmaug data list|fetch``."""
from __future__ import annotations

import argparse
import json
from typing import Any

import msgspec

from harmaug import datasets

__all__ = ["add_data_parser", "run_data"]


def add_data_parser(subparsers: Any) -> None:
    """Add ``data`` to what ``ArgumentParser.add_subparsers()`` returned; `run_data` runs what it parses."""
    parser = subparsers.add_parser("data", help="list and fetch public sets", description=datasets.__doc__)
    actions = parser.add_subparsers(dest="data_action", required=True, metavar="list|fetch")
    listing = actions.add_parser("list", help="the known sets: source, licence, rows, layout")
    listing.add_argument("--json", action="store_true", help="as JSON")
    fetching = actions.add_parser("fetch", help="convert sets into rows (source and licence are told first)")
    fetching.add_argument("names", nargs="+", metavar="NAME", help=", ".join(datasets.MANIFEST))
    fetching.add_argument("--from", dest="source", metavar="DIR", help="take the files from DIR; no network")
    fetching.add_argument("--offline", action="store_true", help="never use the network")


def run_data(args: argparse.Namespace) -> int:
    """Run ``harmaug data``; bad input raises."""
    if args.data_action == "fetch":
        for name in args.names:
            datasets.fetch(name, args.source, tell=lambda line: print(line, flush=True))
        return 0
    entries = list(datasets.MANIFEST.values())
    if args.json:
        print(json.dumps([msgspec.to_builtins(entry) for entry in entries], indent=2))
        return 0
    for entry in entries:
        print(f"{entry.name}: {entry.title}\n  {entry.rows} rows; licence {entry.licence}"
              f"{'; terms to accept' * entry.gated}{'; over-refusal' * entry.over_refusal}\n  {entry.citation}")
        for line in [entry.note] * bool(entry.note) + [f"{entry.address(file)} sha256 {file.sha256}" for file in entry.files]:
            print(f"  {line}")
    return 0
