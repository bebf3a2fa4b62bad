"""The command ``harmaug models list|fetch|show``."""
from __future__ import annotations

import argparse
import json
from typing import Any

from harmaug import models

__all__ = ["add_models_parser", "run_models"]


def add_models_parser(subparsers: Any) -> None:
    """Adds ``models`` to what ``ArgumentParser.add_subparsers()`` returned; `run_models` runs what it parses."""
    parser = subparsers.add_parser("models", help="list, fetch and check the pinned models", description=models.__doc__)
    actions = parser.add_subparsers(dest="models_action", required=True, metavar="list|fetch|show")
    listing = actions.add_parser("list", help="the known models, and where they are")
    listing.add_argument("--json", action="store_true", help="as JSON")
    fetching = actions.add_parser("fetch", help="download models (name, source, size and licence are told first)")
    fetching.add_argument("names", nargs="+", metavar="NAME", help=", ".join(models.REGISTRY))
    fetching.add_argument("--to", metavar="DIR", help="keep them in DIR/NAME (default: HARMAUG_MODELS, else the cache)")
    showing = actions.add_parser("show", help="one model: source, licence, files, and whether it is intact")
    fetching.add_argument("--offline", action="store_true", help="never use the network")
    showing.add_argument("name", metavar="NAME", help=", ".join(models.REGISTRY))
    showing.add_argument("--verify", action="store_true", help="compute every sha256 again")
    showing.add_argument("--json", action="store_true", help="as JSON")


def run_models(args: argparse.Namespace) -> int:
    """Runs ``harmaug models``. Exit status 0, or 1 when a model that is here is damaged; bad input raises."""
    if args.models_action == "fetch":
        got = models.fetch(args.names, folder=args.to, tell=lambda line: print(line, flush=True))
        for name, path in got.items():
            print(f"{name}: verified, in {path}")
        return 0
    if args.models_action == "show":
        shown = models.show(args.name, verify=args.verify)
        if args.json:
            print(json.dumps(shown, indent=2))
        else:
            print(models.describe(models.REGISTRY[args.name]))
            for name, sha256 in shown["files"].items():
                print(f"  {name}  sha256 {sha256}")
            print(f"  {_where(shown)}{' (every sha256 verified)' if args.verify and shown['path'] else ''}")
        return 1 if shown["damage"] else 0
    rows = models.list_models()
    if args.json:
        print(json.dumps(rows, indent=2))
    for row in [] if args.json else rows:
        print(f"{models.describe(models.REGISTRY[row['name']])}\n  {_where(row)}")
    return 0


def _where(row: dict[str, Any]) -> str:
    if row["damage"]:
        return f"damaged: {row['damage']}; fetch it again with: harmaug models fetch {row['name']}"
    return f"in {row['path']}" if row["path"] else f"not here; fetch it with: harmaug models fetch {row['name']}"
