"""A training step of a student: harmaug beside PyTorch and transformers, on the same weights and rows, interleaved in one run.

    python benchmarks/bench_training.py [--models deberta-v3-xsmall minilm …] [--batches 8x128 ragged] [--threads 2] [--repeat 5] [--bf16] [--json out.json]

A step is forward, backward, clipping and AdamW, with dropout 0.1. PyTorch runs transformers' model in train mode (scaled dot product attention where
the family has it) with fused AdamW; --bf16 adds it under autocast, and harmaug's bfloat16. Weights are random in the published shapes. `8x128` is 8 rows of 128 tokens; `ragged`
32 rows of a lognormal length (median 25, sigma 0.8, 4 to 128 tokens), which PyTorch pads to the longest of the batch and harmaug does not. Loss and
gradient norm are compared before anything is timed, dropout off. Peak memory is that of a process of its own that makes three steps (Linux).
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DEBERTA = {"model_type": "deberta-v2", "vocab_size": 128100, "relative_attention": True, "position_buckets": 256, "max_relative_positions": -1,
           "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
           "max_position_embeddings": 512, "layer_norm_eps": 1e-7}
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
MODELS = {"deberta-v3-xsmall": {**DEBERTA, **dict(zip(SHAPE, (384, 12, 6, 1536)))}, "deberta-v3-small": {**DEBERTA, **dict(zip(SHAPE, (768, 6, 12, 3072)))},
          "deberta-v3-base": {**DEBERTA, **dict(zip(SHAPE, (768, 12, 12, 3072)))},
          "minilm": {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, **dict(zip(SHAPE, (384, 6, 12, 1536)))}}
LR, DECAY = 3e-5, 0.1


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", default=["deberta-v3-xsmall", "deberta-v3-small", "minilm"], choices=list(MODELS))
    p.add_argument("--batches", nargs="+", default=["8x128", "ragged"])
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--bf16", action="store_true", help="also harmaug in bfloat16 and PyTorch under bfloat16 autocast")
    p.add_argument("--no-memory", action="store_true")
    p.add_argument("--json", help="also write the rows here")
    p.add_argument("--peak", nargs=3, metavar=("CONTENDER", "FOLDER", "BATCH"), help=argparse.SUPPRESS)
    return p.parse_args()


def batch_of(name, vocab):
    """ids, offsets, hard and soft labels."""
    rng = np.random.default_rng(0)
    if name == "ragged":
        lengths = np.clip(rng.lognormal(np.log(25), 0.8, 32), 4, 128).astype(int)
    else:
        rows, length = (int(n) for n in name.split("x"))
        lengths = np.full(rows, length)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(1000, vocab, offsets[-1]).astype(np.int32)
    return ids, offsets, rng.integers(0, 2, len(lengths)).astype(np.int8), rng.uniform(0.02, 0.98, len(lengths)).astype(np.float32)


def write_model(folder, settings):
    """Random weights under transformers' names, without torch."""
    from harmaug import _C
    from harmaug.data import write_json

    write_json(folder / "config.json", {**settings, "num_labels": 2, "architectures": None})
    rng, at = np.random.default_rng(0), {}
    h, i, n = (settings[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    deberta = settings["model_type"] == "deberta-v2"
    p, names = ("deberta.", ("query_proj", "key_proj", "value_proj")) if deberta else ("bert.", ("query", "key", "value"))

    def linear(name, rows, cols):
        at[name + ".weight"], at[name + ".bias"] = rng.normal(0, 0.02, (rows, cols)).astype(np.float32), np.zeros(rows, np.float32)

    def norm(name):
        at[name + ".weight"], at[name + ".bias"] = np.ones(h, np.float32), np.zeros(h, np.float32)

    def table(name, rows):
        at[name + ".weight"] = rng.standard_normal((rows, h), np.float32) * np.float32(0.02)

    table(p + "embeddings.word_embeddings", settings["vocab_size"])
    norm(p + "embeddings.LayerNorm")
    if deberta:
        table(p + "encoder.rel_embeddings", 512)
        norm(p + "encoder.LayerNorm")
    else:
        table(p + "embeddings.position_embeddings", 512)
        table(p + "embeddings.token_type_embeddings", 2)
    for k in range(n):
        layer = f"{p}encoder.layer.{k}."
        for name in names:
            linear(f"{layer}attention.self.{name}", h, h)
        for name, rows, cols in (("attention.output.dense", h, h), ("intermediate.dense", i, h), ("output.dense", h, i)):
            linear(layer + name, rows, cols)
        norm(layer + "attention.output.LayerNorm")
        norm(layer + "output.LayerNorm")
    linear("pooler.dense" if deberta else "bert.pooler.dense", h, h)
    linear("classifier", 2, h)
    _C.write_safetensors(folder / "model.safetensors", at)
    return folder


class Ours:
    def __init__(self, folder, batch, threads, dropout=0.1, bf16=False):
        from harmaug import _C

        self.ids, self.offsets, self.hard, self.soft = batch
        self.params = _C.EncoderParams.read(folder)
        self.trainer = _C.Trainer(self.params, dropout=dropout, weight_decay=DECAY, n_threads=threads, seed=1, precision="bfloat16" if bf16 else "float32")

    def __call__(self, lr=LR):
        done = self.trainer.step(self.ids, self.offsets, self.hard, self.soft, lr=lr)
        return done["loss"], done["grad_norm"]


class Torch:
    def __init__(self, folder, batch, threads, dropout=0.1, bf16=False):
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.torch, self.bf16 = torch, bf16
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).train()
        params = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW([{"params": [p for p in params if p.ndim > 1], "weight_decay": DECAY},
                                            {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0}], lr=LR, fused=True)
        ids, offsets, hard, soft = batch
        lengths = np.diff(offsets)
        self.ids, self.mask = (torch.zeros(len(lengths), int(lengths.max()), dtype=torch.long) for _ in range(2))
        for i, n in enumerate(lengths):
            self.ids[i, :n], self.mask[i, :n] = torch.from_numpy(ids[offsets[i]:offsets[i] + n].astype(np.int64)), 1
        self.hard = torch.from_numpy(hard.astype(np.int64))
        self.soft = torch.stack([1 - torch.from_numpy(soft), torch.from_numpy(soft)], dim=1)

    def __call__(self, lr=LR):
        torch, f = self.torch, self.torch.nn.functional
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model(input_ids=self.ids, attention_mask=self.mask).logits.float()
        loss = 0.5 * f.cross_entropy(logits, self.hard) + 0.5 * f.kl_div(f.log_softmax(logits, 1), self.soft, reduction="batchmean")
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        return float(loss.detach()), float(norm)


def make(name, *args, **options):
    return (Ours if name.startswith("harmaug") else Torch)(*args, **options, bf16=name.endswith("bf16"))


def peak(name, folder, batch, threads):
    """Peak resident megabytes of a process that makes three steps."""
    out = subprocess.run([sys.executable, __file__, "--peak", name, str(folder), batch, "--threads", str(threads)], check=True, capture_output=True, text=True)
    return float(out.stdout)


def measure(model, batch_name, folder, args):
    batch = batch_of(batch_name, MODELS[model]["vocab_size"])
    names = ["harmaug", "torch", *(["harmaug bf16", "torch bf16"] if args.bf16 else [])]
    exact = [make(name, folder, batch, args.threads, dropout=0.0)(lr=0.0) for name in names]
    contenders = [make(name, folder, batch, args.threads) for name in names]
    times = {name: [] for name in names}
    for turn in range(args.repeat + 1):     # the first does not count
        for name, step in zip(names, contenders):
            time.sleep(0.1)
            start = time.perf_counter()
            step()
            if turn > 0:
                times[name].append(time.perf_counter() - start)
    del contenders
    rows = []
    for name, (loss, norm) in zip(names, exact):
        memory = None if args.no_memory else peak(name, folder, batch_name, args.threads)
        rows.append({"model": model, "batch": batch_name, "contender": name, "median_ms": 1e3 * statistics.median(times[name]), "min_ms": 1e3 * min(times[name]),
                     "loss_error": abs(loss - exact[0][0]), "norm_error": abs(norm / exact[0][1] - 1), "peak_mb": memory})
    for row in rows:
        row["ratio"] = statistics.median(b / a for a, b in zip(times["harmaug"], times[row["contender"]]))
        print(f"{model:18} {batch_name:8} {row['contender']:12} {row['median_ms']:9.1f} {row['min_ms']:9.1f} {row['ratio']:7.2f} {row['loss_error']:9.1e} "
              f"{row['norm_error']:9.1e} {'' if row['peak_mb'] is None else format(row['peak_mb'], '8.0f')}", flush=True)
    return rows


def main():
    args = parse()
    if args.peak:
        name, folder, batch = args.peak
        vocab = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
        step = make(name, folder, batch_of(batch, vocab), args.threads)
        for _ in range(3):
            step()
        status = Path("/proc/self/status").read_text()      # ru_maxrss would begin with what the parent had
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
        return
    import torch
    import transformers

    from harmaug import _C

    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, harmaug on {_C.build_info()['cpu_isa']}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}, {args.threads} threads")
    print(f"{'model':18} {'batch':8} {'contender':12} {'median ms':>9} {'min ms':>9} {'ratio':>7} {'d loss':>9} {'d norm':>9} {'peak MB':>8}")
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        for model in args.models:
            (Path(tmp) / model).mkdir()
            folder = write_model(Path(tmp) / model, MODELS[model])
            for batch in args.batches:
                rows += measure(model, batch, folder, args)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
