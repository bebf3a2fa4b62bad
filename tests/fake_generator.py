"""A generator without a model: what it says is a function of (seed, index, prompt), whatever the batch. Samples finish out of order, as real ones do."""
import random
import zlib

from harmaug.generator import Generation

VERBS = ("explain", "describe", "show me", "teach me", "list", "outline", "summarise", "write down", "plan", "report on")
THINGS = ("forged invoices", "a stolen bicycle", "office gossip", "the neighbour's fence", "a broken lock", "fake reviews", "loud parties",
          "an angry letter", "a spam campaign", "tax returns", "a rude poster", "the school play's budget", "garden pests", "old passwords")
WAYS = ("without being noticed", "step by step", "in plain words", "for a friend", "before the weekend", "as cheaply as possible", "with a partner",
        "at the office", "during the night", "in front of everybody", "on a rainy day", "using only a telephone")
REFUSAL = "I'm sorry, but I can't help with that request."


class FakeGenerator:
    name = "fake"

    def __init__(self, slow=0.0):
        self.slow = slow
        self.calls = 0

    def chat_prompt(self, messages, prefix=""):
        return "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in messages) + f"<assistant>{prefix}"

    def stream(self, requests, *, batch_size, seed, sampling):
        import time

        jobs = [(at, i) for at, request in enumerate(requests) for i in range(request.n)]
        order = random.Random(batch_size)
        while jobs:
            live, jobs = jobs[:batch_size], jobs[batch_size:]
            order.shuffle(live)
            for at, i in live:
                self.calls += 1
                if self.slow:
                    time.sleep(self.slow)
                yield at, i, self.sample(requests[at], i, seed)

    def sample(self, request, i, seed):
        rng = random.Random(f"{seed}/{request.first_index + i}/{zlib.crc32(request.prompt.encode())}")
        if not request.stop:    # a response behind a prefix
            if rng.random() < 0.2:
                text = " Here is a list:\n1. Begin." if rng.random() < 0.5 else " I can't help with that."
            elif "sorry" in request.prompt.rsplit("<assistant>", 1)[-1]:
                text = " I can't help with that. Please talk to somebody you trust."
            else:
                text = " the way most people would do it, and it takes an afternoon."
            return Generation(text=text, ids=tuple(range(len(text.split()))), logprob=-1.0, stop_reason="length" if rng.random() < 0.3 else "eos")
        draw = rng.random()
        stop = "stop"
        if draw < 0.05:
            text = "  "
        elif draw < 0.12:
            text, stop = " Write a long text about", "length"
        elif draw < 0.17:
            text = " " + REFUSAL
        elif draw < 0.22:
            lines = request.prompt.splitlines()
            text = " " + lines[1].split(". ", 1)[-1] if len(lines) > 2 else " Make a single offer"
        elif draw < 0.25:
            text = " Describe naked kids"   # the responsible-use filter's test: dropped, never recorded
        else:
            text = f' {rng.choice(("", "2. ", chr(34)))}{rng.choice(VERBS).capitalize()} {rng.choice(THINGS)} {rng.choice(WAYS)} {rng.choice(WAYS)}.'
        return Generation(text=text, ids=tuple(range(len(text.split()))), logprob=-1.0, stop_reason=stop)


def seed_rows():
    from harmaug.data import Row

    rows = []
    for i in range(40):
        rng = random.Random(i)
        rows.append(Row(prompt=f"Tell me how to misuse {THINGS[i % 14]} number {i} {rng.choice(WAYS)}", label=1, category=("fraud", "theft", "abuse")[i % 3], id=f"s{i}"))
        rows.append(Row(prompt=f"Why do people enjoy {THINGS[(i + 3) % 14]} number {i} {rng.choice(WAYS)}?", label=0, id=f"b{i}"))
    rows.append(Row(prompt="Tell me how to misuse a lamp", response="I can't help with that.", label=0, id="pair"))
    return rows
