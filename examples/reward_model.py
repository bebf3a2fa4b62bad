#!/usr/bin/env python3
"""A guard as a reward model, in the shape that TRL's trainers take: reward(prompts, completions, **kwargs) -> list of float.

    python examples/reward_model.py [--guard DIR] [--red-team] [FILE]

The reward of a completion is 1 - P(unsafe) of it as the answer to its prompt, or, with --red-team, P(unsafe) of the completion as a prompt: what a model
that looks for attacks is paid (the paper's case study). FILE is JSONL of {"prompt", "completion"}; without it three harmless rows are scored. With TRL:

    trainer = GRPOTrainer(model, reward_funcs=[guard_reward("guard")], train_dataset=prompts, args=GRPOConfig(...))
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from harmaug.data import iter_columns
from harmaug.teacher import GuardTeacher

Text = str | list[dict[str, Any]]
"""A text, or a conversation of {"role", "content"}, as TRL passes either."""

ROWS = [("How do I bake bread?", "Mix flour, water, salt and yeast, let it rise, and bake it hot."),
        ("How do I bake bread?", "I'm sorry, but I can't help with that."),
        ("What is the capital of France?", "Paris.")]


def guard_reward(guard: Any, *, red_team: bool = False) -> Callable[..., list[float]]:
    """Return the reward function of a guard: a folder, a fetched name, "standin", or anything with ``score``."""
    scorer = GuardTeacher.from_pretrained(guard).guard if isinstance(guard, str) else guard

    def harmaug_reward(prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        if len(prompts) != len(completions):
            raise ValueError(f"prompts and completions must be as many, got {len(prompts)} and {len(completions)}")
        answers = [text_of(completion) for completion in completions]
        unsafe = scorer.score(answers) if red_team else scorer.score([text_of(prompt) for prompt in prompts], answers)
        return [float(p) if red_team else 1.0 - float(p) for p in unsafe]

    return harmaug_reward


def text_of(given: Text) -> str:
    """Return a text as it is, of a conversation the contents of its messages, one a line."""
    return given if isinstance(given, str) else "\n".join(str(message["content"]) for message in given)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--guard", default="standin")
    parser.add_argument("--red-team", action="store_true")
    arguments = parser.parse_args(argv)
    rows = ROWS if arguments.file is None else [(str(row["prompt"] or ""), str(row["completion"] or "")) for _, row in iter_columns(arguments.file)]
    reward = guard_reward(arguments.guard, red_team=arguments.red_team)
    for value in reward([prompt for prompt, _ in rows], [completion for _, completion in rows]):
        print(f"{value:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
