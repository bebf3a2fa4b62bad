"""The training loop in torch and transformers, as an oracle."""
import re

import numpy as np
import tiny_bert
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

TARGETS = ("query", "value", "attention.output.dense", "output.dense", "pooler.dense")
CASES = {"full": {}, "lora": {"rank": 4}, "clipped": {"clip_norm": 0.05, "temperature": 2.0}}
STEPS, WARMUP, LR, DECAY = 10, 3, 3e-3, 0.1


class Lora(torch.nn.Module):
    def __init__(self, linear, a, b, scale):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.a, self.b = torch.nn.Parameter(torch.from_numpy(a.copy())), torch.nn.Parameter(torch.from_numpy(b.copy()))

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.a.T @ self.b.T)


def padded(ids, offsets, types, pad=0):
    lengths = np.diff(offsets)
    out = {
        k: torch.full((len(lengths), int(lengths.max())), pad if k == "input_ids" else 0, dtype=torch.long)
        for k in ("input_ids", "token_type_ids", "attention_mask")
        if types is not None or k != "token_type_ids"
    }
    for i, n in enumerate(lengths):
        out["input_ids"][i, :n] = torch.from_numpy(ids[offsets[i]:offsets[i + 1]].astype(np.int64))
        if types is not None:
            out["token_type_ids"][i, :n] = torch.from_numpy(types[offsets[i]:offsets[i + 1]].astype(np.int64))
        out["attention_mask"][i, :n] = 1
    return out


def loss_of(logits, hard, soft, temperature=1.0, ce=0.5, kl=0.5):
    """Mean loss of rows that have both labels; one or two logits."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    hard, soft = torch.from_numpy(hard.astype(np.int64)), torch.from_numpy(soft)
    q = torch.softmax(torch.stack([torch.log1p(-soft), torch.log(soft)], 1) / temperature, 1)
    term = F.kl_div(F.log_softmax(logits / temperature, 1), q, reduction="batchmean")
    return ce * F.cross_entropy(logits, hard) + kl * temperature**2 * term


def narrow(x):
    return x.float().bfloat16().to(x.dtype)


class Product(torch.autograd.Function):
    """x w^T, its operands and those of both gradients rounded to bfloat16."""

    @staticmethod
    def forward(ctx, x, w):
        x, w = narrow(x), narrow(w)
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        g = narrow(g)
        return g @ w, g.flatten(0, -2).T @ x.flatten(0, -2)


class Rounded(torch.overrides.TorchFunctionMode):
    """Every Linear, and the convolution of DeBERTa, is a Product."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, w, bias = args
            return Product.apply(x, w) + (0 if bias is None else bias)
        if func is F.conv1d:
            x, w, bias, _, padding, _, groups = args
            windows = F.pad(x, 2 * padding).unfold(2, w.shape[2], 1).transpose(1, 2)       # (rows, tokens, channels, kernel)
            parts = zip(windows.chunk(groups, 2), w.chunk(groups), strict=True)
            return (torch.cat([Product.apply(a.flatten(2), b.flatten(1)) for a, b in parts], 2) + bias).transpose(1, 2)
        return func(*args, **(kwargs or {}))


def depth(name, n_layers):
    """Levels below the head."""
    layer = re.search(r"\.layers?\.(\d+)\.", name)
    if layer:
        return n_layers - int(layer[1])
    return n_layers + 1 if "embeddings" in name or ".encoder." in name else 0


def run(folder, rank=0, clip_norm=1.0, temperature=1.0, factors=None, alpha=8.0, lr=LR, layer_decay=1.0, with_types=True, autocast=False):
    """Ten steps: losses, norms, weights by checkpoint name after the last, norm of each weight's whole update."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    names = [n for n, _ in model.named_parameters()]
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    loras = {}
    if rank:
        factors = factors or tiny_bert.lora_start(TARGETS, rank)
        for n, (a, b) in factors.items():
            parent = model.get_submodule(n.rpartition(".")[0])
            loras[n] = Lora(model.get_submodule(n), a, b, alpha / rank)
            loras[n].linear.weight.requires_grad = False
            setattr(parent, n.rpartition(".")[2], loras[n])
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    n_layers = model.config.num_hidden_layers
    optimizer = torch.optim.AdamW([{"params": [p], "weight_decay": DECAY if p.ndim > 1 else 0.0, "lr": lr * layer_decay**depth(n, n_layers)}
                                   for n, p in trained])
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS + 2)
    losses, norms = [], []
    for step in range(STEPS):
        ids, offsets, types, hard, soft = tiny_bert.batch(step)
        inputs = padded(ids, offsets, types if with_types else None, model.config.pad_token_id or 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(**inputs).logits.float()
        loss = loss_of(logits, hard, soft, temperature)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_([p for _, p in trained], clip_norm)))
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    after = {
        n.replace(".linear.", "."): p.detach().numpy()
        for n, p in model.named_parameters()
        if not n.endswith((".a", ".b"))
    }
    for n, lora in loras.items():
        after[n + ".weight"] = after[n + ".weight"] + lora.scale * (lora.b @ lora.a).detach().numpy()
    return np.array(losses), np.array(norms), after, {n: float(np.linalg.norm(after[n] - before[n])) for n in names}
