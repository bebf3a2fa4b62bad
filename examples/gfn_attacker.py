#!/usr/bin/env python3
"""A GFlowNet-style attacker, the paper's other baseline: a small language model tuned to write prompts that a guard flags.

SmolLM2-135M with a LoRA adapter (PyTorch, peft) learns by trajectory balance (Malkin et al. 2022, arXiv 2201.13259; for
red-teaming Lee et al. 2024, arXiv 2405.18540) to sample a prompt x in proportion to the reward
R(x) = P_teacher(unsafe | x)^(1/beta) * p_ref(x), where p_ref is the model before tuning. Half of the steps learn from
new samples (half of these at a temperature drawn from [0.5, 2]), half from a buffer of the best different ones.
Its samples then go through the filters that augmented rows go through, but for the one of texts that are cut, as 20 tokens
cut most of them, and are written with the teacher's score.

    python examples/gfn_attacker.py --data SEED.jsonl --evaluation TEST.jsonl --out DIR --rows 800

The published budget is 5,000 steps of 128 prompts with GPT-2; the default here is 300 steps of 32 prompts of at most 20
tokens, an hour and a half on one core with AVX2. Near-duplicates in the buffer are told by character 5-grams, not by edit distance,
which is the other departure. A killed run goes on from its last checkpoint when the same command is given again, and
refuses other settings of the training and another teacher; more --steps leave the reward's warm-up as it was begun.
Needs `pip install torch peft transformers gguf` beside harmaug.
"""
from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import peft
import torch
import transformers
from tqdm import tqdm

from harmaug import Guard, models, safety, teacher
from harmaug.augment import INSTRUCTION, PREFIX, AugmentConfig, Draw, Judge, clean
from harmaug.categories import default_table
from harmaug.data import Row, iter_rows, write_rows
from harmaug.filters import jaccard
from harmaug.generator import CausalLM, Generation
from harmaug.runs import sha256

AT_ONCE = 64      # rows sampled together when training is over
NOT_OF_TRAINING = ("out", "data", "evaluation", "rows", "steps")      # arguments that a checkpoint may go on with others of


@dataclasses.dataclass
class Sampled:
    """Prompts of a batch: their tokens behind the shared beginning, the end token included where one was drawn."""

    ids: torch.Tensor       # (batch, tokens), padded with the end token
    lengths: torch.Tensor   # (batch,)


class Attacker:
    """The language model with its adapter, and the beginning that every prompt is sampled behind."""

    def __init__(self, name: str, n_tokens: int, min_tokens: int, rank: int, seed: int) -> None:
        torch.manual_seed(seed)
        native = CausalLM.from_pretrained(name)
        self.tokenizer, self.name = native.tokenizer, native.name
        beginning = native.chat_prompt([{"role": "user", "content": INSTRUCTION}], PREFIX)
        self.beginning = torch.tensor([native.encode(beginning)])
        self.end = native.stop_ids[0]
        # one line only, and one way to end it
        size = int(native.config["vocab_size"])
        self.banned = torch.tensor([i for i in range(size) if i != self.end
                                    and (i in native.stop_ids or b"\n" in self.tokenizer.token_bytes(i))])
        self.n_tokens, self.min_tokens = n_tokens, min_tokens
        folder = models.resolve(name)
        files = sorted(folder.glob("*.gguf")) if folder.is_dir() else [folder]
        one = {"gguf_file": files[0].name} if files else {}
        base = transformers.AutoModelForCausalLM.from_pretrained(
            folder if folder.is_dir() else folder.parent, dtype=torch.float32, **one)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        self.model = peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
        self.model.eval()       # no dropout: a prompt's probability is one number

    def _begin(self, batch: int) -> Any:
        """Keys and values of the beginning for a batch, computed once."""
        cache = self.model(self.beginning[:, :-1], use_cache=True).past_key_values
        cache.batch_repeat_interleave(batch)
        return cache

    def _allowed(self, logits: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Log-probabilities, (batch, tokens, vocabulary), of tokens from place `first` on, without the banned ones."""
        logits = logits.index_fill(-1, self.banned, -torch.inf)
        short = max(min(self.min_tokens - first, logits.shape[1]), 0)
        mask = torch.zeros(logits.shape[1], logits.shape[2], dtype=torch.bool)
        mask[:short, self.end] = True
        return logits.masked_fill(mask, -torch.inf).log_softmax(-1)

    @torch.no_grad()
    def sample(self, batch: int, temperature: float) -> Sampled:
        """Draw prompts; one that has not ended after n_tokens ends there."""
        cache, last = self._begin(batch), self.beginning[:, -1:].expand(batch, 1)
        ids, lengths = torch.full((batch, self.n_tokens), self.end), torch.full((batch,), self.n_tokens)
        live = torch.ones(batch, dtype=torch.bool)
        for i in range(self.n_tokens):
            out = self.model(last, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            log_p = self._allowed(out.logits[:, -1:], i)[:, 0]
            last = torch.multinomial((log_p / temperature).softmax(-1), 1)
            ids[live, i] = last[live, 0]
            ended = live & (last[:, 0] == self.end)
            lengths[ended] = i + 1
            live &= ~ended
            if not live.any():
                break
        return Sampled(ids, lengths)

    def log_probs(self, sampled: Sampled) -> torch.Tensor:
        """Return log p(x), (batch,), with gradient unless that is off."""
        batch, n = sampled.ids.shape
        tokens = torch.cat([self.beginning[:, -1:].expand(batch, 1), sampled.ids[:, :-1]], dim=1)
        out = self.model(tokens, past_key_values=self._begin(batch), use_cache=True)
        each = self._allowed(out.logits).gather(-1, sampled.ids[..., None])[..., 0]
        return torch.where(torch.arange(n) < sampled.lengths[:, None], each, 0.0).sum(-1)

    def reference(self, sampled: Sampled) -> torch.Tensor:
        """Return log p_ref(x), (batch,): of the model without its adapter."""
        with torch.no_grad(), self.model.disable_adapter():
            return self.log_probs(sampled)

    def texts(self, sampled: Sampled) -> list[str]:
        return [clean(self.tokenizer.decode(row[:n].tolist()))
                for row, n in zip(sampled.ids, sampled.lengths, strict=True)]


class Buffer:
    """The samples of highest reward, no two of them near each other."""

    def __init__(self, size: int, near: float) -> None:
        self.size, self.near = size, near
        self.rows: list[tuple[float, str, list[int], float]] = []       # log R without p_ref, text, ids, log p_ref

    def add(self, reward: float, text: str, ids: list[int], reference: float) -> None:
        alike = [i for i, row in enumerate(self.rows) if jaccard(row[1], text) >= self.near]
        if any(self.rows[i][0] >= reward for i in alike) or not text:
            return
        self.rows = [row for i, row in enumerate(self.rows) if i not in alike]
        self.rows.append((reward, text, ids, reference))
        self.rows.sort(key=lambda row: -row[0])
        del self.rows[self.size:]

    def draw(self, batch: int, rng: np.random.Generator, end: int) -> tuple[Sampled, torch.Tensor, torch.Tensor]:
        """Return samples, their log-rewards and their log p_ref; better ones are drawn more often, by rank."""
        weights = 1.0 / (1 + np.arange(len(self.rows)))
        chosen = [self.rows[i] for i in rng.choice(len(self.rows), batch, p=weights / weights.sum())]
        longest = max(len(row[2]) for row in chosen)
        ids = torch.tensor([row[2] + [end] * (longest - len(row[2])) for row in chosen])
        return (Sampled(ids, torch.tensor([len(row[2]) for row in chosen])),
                torch.tensor([row[0] for row in chosen]), torch.tensor([row[3] for row in chosen]))


class Run:
    """Training: the attacker, log Z, the buffer and the step, all of which a checkpoint holds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.attacker = Attacker(arguments.generator, arguments.tokens, arguments.min_tokens, arguments.rank,
                                 arguments.seed)
        folder = models.resolve(arguments.teacher or teacher.standin_folder())
        self.guard, self.teacher, self.planned = Guard.from_pretrained(folder), sha256(folder), arguments.steps
        self.log_z = torch.nn.Parameter(torch.zeros(()))
        self.adapter = [p for p in self.attacker.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([{"params": self.adapter, "lr": arguments.lr},
                                            {"params": [self.log_z], "lr": arguments.lr_z}], weight_decay=0.0)
        self.buffer = Buffer(arguments.buffer, 1 - arguments.tolerance)
        self.step = 0
        self.checkpoint = arguments.out / "checkpoint.pt"
        if self.checkpoint.exists():
            self._load()

    def rewards(self, texts: list[str]) -> np.ndarray:
        """Return P(unsafe) of each, 0 for an empty text and for what the responsible-use filter blocks."""
        usable = np.array([bool(text) and not safety.blocked(text) for text in texts])
        return np.where(usable, self.guard.score([text or " " for text in texts]), 0.0)

    def train(self) -> None:
        arguments, attacker = self.arguments, self.attacker
        columns = ("step", "policy", "loss", "log_z", "reward", "buffer_reward", "buffer")
        log = arguments.out / "log.csv"
        lines = log.read_text().splitlines()[:self.step + 1] if self.step else [",".join(columns)]
        log.write_text("\n".join(lines) + "\n")
        with log.open("a", newline="") as file, tqdm(total=arguments.steps, initial=self.step, unit="step") as bar:
            writer = csv.writer(file)
            for self.step in range(self.step + 1, arguments.steps + 1):
                rng = np.random.default_rng([arguments.seed, self.step])
                torch.manual_seed(int(rng.integers(2**31)))
                online = len(self.buffer.rows) < arguments.batch or rng.random() < 0.5
                if online:
                    temperature = float(rng.uniform(0.5, 2.0)) if rng.random() < 0.5 else 1.0
                    sampled = attacker.sample(arguments.batch, temperature)
                    scores = self.rewards(texts := attacker.texts(sampled))
                    log_r, reference = torch.tensor(np.log(np.maximum(scores, 1e-6))).float(), attacker.reference(sampled)
                    for i, text in enumerate(texts):
                        if not safety.blocked(text):
                            ids = sampled.ids[i, :sampled.lengths[i]].tolist()
                            self.buffer.add(float(log_r[i]), text, ids, float(reference[i]))
                else:
                    sampled, log_r, reference = self.buffer.draw(arguments.batch, rng, attacker.end)
                # the reward is sharpened over the first third of the run, as long as it was to be when it began
                warm = min(1.0, 3 * self.step / self.planned)
                target = log_r / (arguments.beta * (2.0 - warm)) + reference
                loss = ((self.log_z + attacker.log_probs(sampled) - target) ** 2).mean()
                if not torch.isfinite(loss):
                    raise SystemExit(f"step {self.step}: the loss is {loss.item()}; the checkpoint before it is kept")
                self.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.adapter, 1.0)
                for group, lr in zip(self.optimizer.param_groups, (arguments.lr, arguments.lr_z), strict=True):
                    group["lr"] = lr * min(1.0, self.step / arguments.warmup)
                self.optimizer.step()
                best = float(np.exp([row[0] for row in self.buffer.rows]).mean()) if self.buffer.rows else 0.0
                mean = float(log_r.exp().mean())
                writer.writerow([self.step, "online" if online else "replay", f"{loss.item():.4f}",
                                 f"{self.log_z.item():.4f}", f"{mean:.4f}", f"{best:.4f}", len(self.buffer.rows)])
                file.flush()
                bar.set_postfix(loss=f"{loss.item():.1f}", reward=f"{mean:.2f}", refresh=False)
                bar.update()
                if self.step % 10 == 0 or self.step == arguments.steps:
                    self._save()

    def write_rows(self) -> dict[str, int]:
        """Sample rows, filter them and write them with the teacher's score; returns the account."""
        arguments = self.arguments
        torch.manual_seed(arguments.seed)
        seeds = list(iter_rows(arguments.data)) if arguments.data else []
        held_out = [row for file in arguments.evaluation for row in iter_rows(file)]
        judge = Judge(AugmentConfig(seed=arguments.seed), default_table(), seeds, held_out, self.attacker.name, {})
        draw = Draw(kind="harmful", category=None, prompt="", exemplars=(), first_key=0, n=AT_ONCE)
        account: dict[str, int] = judge.account["harmful"]
        rows: list[Row] = []
        while len(rows) < arguments.rows and account["done"] < 20 * arguments.rows:
            sampled = self.attacker.sample(AT_ONCE, 1.0)
            texts = self.attacker.texts(sampled)
            scores = self.guard.score([text or " " for text in texts])
            for i, (text, score) in enumerate(zip(texts, scores, strict=True)):
                ids = tuple(sampled.ids[i, :sampled.lengths[i]].tolist())
                row, kept = judge(draw, account["done"], Generation(text=text, ids=ids, logprob=math.nan, stop_reason="eos"))
                if kept:
                    rows.append(msgspec.structs.replace(row, unsafe_score=float(score), source="gfn", id=f"gfn:{len(rows)}"))
                if len(rows) == arguments.rows:
                    break
        write_rows(arguments.out / "rows.jsonl", rows)
        return account

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.arguments).items() if name not in NOT_OF_TRAINING}

    def _save(self) -> None:
        state = {"arguments": self._settings(), "step": self.step, "log_z": self.log_z.detach(), "adapter": [p.detach() for p in self.adapter],
                 "optimizer": self.optimizer.state_dict(), "buffer": self.buffer.rows, "teacher": self.teacher, "planned": self.planned}
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        for name, value in self._settings().items():
            before = state.get("arguments", {}).get(name, value)
            if before != value:
                raise SystemExit(f"{self.checkpoint}: trained with --{name.replace('_', '-')} {before}, not {value}: take it back, or "
                                 "use another --out")
        if state.get("teacher", self.teacher) != self.teacher:      # an older checkpoint tells neither teacher nor planned
            raise SystemExit(f"{self.checkpoint}: trained with a teacher of other files (sha256 {state['teacher'][:12]}, now {self.teacher[:12]}): take it "
                             "back, or use another --out")
        self.planned = state.get("planned", self.planned)
        with torch.no_grad():
            self.log_z.copy_(state["log_z"])
            for parameter, value in zip(self.adapter, state["adapter"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffer.rows, self.step = [tuple(row) for row in state["buffer"]], state["step"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for checkpoint.pt, log.csv and rows.jsonl")
    add("--data", type=Path, help="seed rows: no sample near one of them is kept")
    add("--evaluation", type=Path, action="append", default=[], help="evaluation rows, likewise; may be repeated")
    add("--generator", default="smollm2", help="a fetched name, a folder or a GGUF file of a Llama-like model")
    add("--teacher", help="the guard that gives the reward (default: the stand-in teacher)")
    add("--rows", type=int, default=800, help="rows to write")
    add("--steps", type=int, default=300)
    add("--batch", type=int, default=32)
    add("--tokens", type=int, default=20, help="most tokens of a prompt")
    add("--min-tokens", type=int, default=5)
    add("--beta", type=float, default=0.1, help="the reward is P(unsafe) to the power 1 / beta")
    add("--buffer", type=int, default=1000)
    add("--tolerance", type=float, default=0.25, help="distance (1 - Jaccard) below which two samples are one")
    add("--rank", type=int, default=16)
    add("--lr", type=float, default=1e-4)
    add("--lr-z", type=float, default=0.1)
    add("--warmup", type=int, default=20)
    add("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(mode=0o700, parents=True, exist_ok=True)       # it holds what must not be passed on
    run = Run(arguments)
    run.train()
    account = run.write_rows()
    print(", ".join(f"{name} {n:,}" for name, n in account.items()) + f"; {arguments.out / 'rows.jsonl'}")


if __name__ == "__main__":
    main()
