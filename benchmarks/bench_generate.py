"""Many samples behind one prompt: harmaug beside llama.cpp and transformers (where installed), in one run, interleaved, sampling included.

    python benchmarks/bench_generate.py [--model smollm2] [--batch 1 8 32 48 128] [--prompt 128] [--new 32] [--threads 0] [--repeat 3] [--json out.json]

Every contender reads one prompt of `--prompt` tokens and samples `--new` tokens for each of B sequences (no end token ends one), with llama.cpp's
own default sampler: top_k 40, top_p 0.95, temperature 0.8. --model may be a shape, of random weights in bfloat16: llama110, qwen05 (Qwen2.5-0.5B),
gemma2b. harmaug reads the prompt once; llama.cpp too, by llama_memory_seq_cp into a
unified cache, then one llama_decode of B tokens a step and one sampler chain a sequence; transformers by generate(num_return_sequences=B).
llama.cpp runs the file as shipped and requantised by itself to the named formats. Tokens/s count new tokens over the time after the prompt is read,
save for transformers, which gives no way to tell the two apart: there the whole call counts. The error is that of the logits after the prompt,
largest difference from harmaug's float32 over the largest logit: before anything is timed.
"""
from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from harmaug import _C, models
from harmaug.generator import CausalLM

TEXT = "A list of different requests that people make of an assistant, one a line, each about something else than those before it:\n"


CLOCK = time.perf_counter
# architecture, hidden, layers, heads, key-value heads, head size, intermediate, vocabulary, tied
SHAPES = {"llama110": ("llama", 768, 12, 12, 12, 64, 2048, 32000, False), "qwen05": ("qwen2", 896, 24, 14, 2, 64, 4864, 151936, True),
          "gemma2b": ("gemma", 2048, 18, 8, 1, 256, 16384, 256000, True)}


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="smollm2", help="a .gguf, or a name that `harmaug models fetch` knows")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 48, 128])
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--new", type=int, default=32)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--dtypes", nargs="+", default=["int4", "int8", "bfloat16", "float32"], help="of harmaug; ratios are to the first")
    p.add_argument("--formats", nargs="*", default=["Q4_1", "Q4_0", "Q8_0", "BF16"], help="of llama.cpp")
    p.add_argument("--without", nargs="*", default=[], help="contenders to leave out, by the beginning of their names")
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: of the process, for one thread on a machine that others use too")
    p.add_argument("--json", help="also write the rows here")
    return p.parse_args()


def write_shape(path, architecture, hidden, layers, heads, kv_heads, head, inner, vocab, tied):
    """A GGUF file of random bfloat16 weights, without a vocabulary."""
    import gguf
    out = gguf.GGUFWriter(path, architecture)
    out.add_context_length(8192)
    out.add_embedding_length(hidden)
    out.add_block_count(layers)
    out.add_feed_forward_length(inner)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_key_length(head)
    out.add_value_length(head)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_tokenizer_model("no_vocab")
    out.add_vocab_size(vocab)
    rng = np.random.default_rng(0)

    def matrix(name, n, k):
        rows = rng.normal(0, 1 / k ** 0.5, (min(n, 2048), k)).astype(np.float32)
        packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.BF16)
        out.add_tensor(name, np.tile(packed, (-(-n // len(rows)), 1))[:n], raw_dtype=gguf.GGMLQuantizationType.BF16)

    matrix("token_embd.weight", vocab, hidden)
    out.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    if not tied:
        matrix("output.weight", vocab, hidden)
    for i in range(layers):
        for name, n, k in (("attn_q", heads * head, hidden), ("attn_k", kv_heads * head, hidden), ("attn_v", kv_heads * head, hidden),
                           ("attn_output", hidden, heads * head), ("ffn_gate", inner, hidden), ("ffn_up", inner, hidden), ("ffn_down", hidden, inner)):
            matrix(f"blk.{i}.{name}.weight", n, k)
            if architecture == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                out.add_tensor(f"blk.{i}.{name}.bias", np.zeros(n, np.float32))
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{i}.{name}.weight", np.ones(hidden, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


class Ours:
    def __init__(self, path, dtype, threads):
        self.name = f"harmaug {dtype}"
        self.lm = _C.CausalLM(path, dtype=dtype, n_threads=threads)

    def logits(self, ids):
        return self.lm.logits(ids)[-1]

    def __call__(self, ids, batch, new, seed):
        run = _C.GenerationRun(self.lm, None, batch_size=batch, max_new_tokens=new, seed=seed, temperature=0.8, top_k=40, top_p=0.95)
        run.add(ids, n=batch)
        run.step()
        start = CLOCK()
        while not run.idle:
            run.step()
        return CLOCK() - start


class LlamaCpp:
    """Low-level calls: the high-level class decodes one sequence at a time."""

    def __init__(self, path, kind, threads, folder, most, rows):
        import llama_cpp as api
        self.api, self.name = api, f"llama.cpp {kind}"
        self.quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self.quiet, None)
        file = Path(folder, f"{kind}.gguf")
        options = api.llama_model_quantize_default_params()
        options.allow_requantize, options.ftype, options.nthread = True, getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}"), threads
        if str(path).endswith(f"{kind}.gguf"):
            file = path
        elif api.llama_model_quantize(os.fsencode(path), os.fsencode(file), ctypes.byref(options)) != 0:
            raise RuntimeError(f"llama.cpp cannot make {kind} of {path}")
        self.model = api.llama_model_load_from_file(os.fsencode(file), api.llama_model_default_params())
        options = api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = rows, 2048, 512, most
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = True
        self.context = api.llama_init_from_model(self.model, options)
        self.batch = api.llama_batch_init(2048, 0, 1)
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def decode(self, tokens, positions, sequences, wanted):
        b = self.batch
        b.n_tokens = len(tokens)
        for i, (token, position, sequence, want) in enumerate(zip(tokens, positions, sequences, wanted)):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = token, position, 1, sequence, want
        if self.api.llama_decode(self.context, b) != 0:
            raise RuntimeError("llama_decode failed")

    def read(self, ids):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        self.decode(ids, range(len(ids)), [0] * len(ids), [i == len(ids) - 1 for i in range(len(ids))])

    def logits(self, ids):
        self.read(ids)
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, len(ids) - 1), (self.vocab,)).copy()

    def sampler(self, seed):
        api = self.api
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        for link in (api.llama_sampler_init_top_k(40), api.llama_sampler_init_top_p(0.95, 1), api.llama_sampler_init_temp(0.8),
                     api.llama_sampler_init_dist(seed)):
            api.llama_sampler_chain_add(chain, link)
        return chain

    def __call__(self, ids, batch, new, seed):
        api = self.api
        self.read(ids)
        api.llama_synchronize(self.context)
        start = CLOCK()
        for sequence in range(1, batch):
            api.llama_memory_seq_cp(api.llama_get_memory(self.context), 0, sequence, 0, -1)
        chains = [self.sampler(seed * 1000 + i) for i in range(batch)]
        tokens = [api.llama_sampler_sample(chain, self.context, len(ids) - 1) for chain in chains]
        for step in range(new - 1):
            self.decode(tokens, [len(ids) + step] * batch, range(batch), [True] * batch)
            tokens = [api.llama_sampler_sample(chain, self.context, i) for i, chain in enumerate(chains)]
        seconds = CLOCK() - start
        for chain in chains:
            api.llama_sampler_free(chain)
        return seconds


class Transformers:
    def __init__(self, path, threads):
        import torch
        import transformers
        self.torch, self.name = torch, "transformers float32"
        torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        path = Path(path)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()

    def logits(self, ids):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids])).logits[0, -1].numpy()

    def __call__(self, ids, batch, new, seed):
        self.torch.manual_seed(seed)
        ids = self.torch.tensor([ids])
        start = CLOCK()
        self.model.generate(ids, attention_mask=self.torch.ones_like(ids), do_sample=True, num_return_sequences=batch, min_new_tokens=new,
                            max_new_tokens=new, temperature=0.8, top_k=40, top_p=0.95, pad_token_id=0)
        return CLOCK() - start


def contenders(path, a, threads, folder):
    """Those that can be made; a package that is not installed is named and left out."""
    dtypes = a.dtypes
    most = max(a.batch)
    makers = [(f"harmaug {dtype}", lambda dtype=dtype: Ours(path, dtype, threads)) for dtype in dtypes]
    makers += [(f"llama.cpp {kind}", lambda kind=kind: LlamaCpp(path, kind, threads, folder, most, a.prompt + most * a.new + 512)) for kind in a.formats]
    makers.append(("transformers", lambda: Transformers(path, threads)))
    for name, make in makers:
        if name.startswith(tuple(a.without)):
            continue
        try:
            yield make()
        except ImportError as error:
            print(f"{name}: left out, {error}")


def main():
    global CLOCK
    a = parse()
    CLOCK = time.process_time if a.clock == "cpu" else time.perf_counter
    threads = a.threads or _C.build_info()["threads"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if a.model in SHAPES:
            path = write_shape(Path(folder, f"{a.model}.BF16.gguf"), *SHAPES[a.model])
            ids = np.random.default_rng(1).integers(0, SHAPES[a.model][7], a.prompt).tolist()
        else:
            path = models.resolve(a.model)
            ids = (CausalLM.from_pretrained(path, dtype="bfloat16").tokenizer.encode(TEXT) * (a.prompt // 8))[:a.prompt]
        exact = _C.CausalLM(path, dtype="float32", n_threads=threads).logits(ids)[-1]
        engines = list(contenders(path, a, threads, folder))
        errors = {engine.name: float(np.abs(engine.logits(ids) - exact).max() / np.abs(exact).max()) for engine in engines}
        for batch in a.batch:
            times = {engine.name: [] for engine in engines}
            for turn in range(a.repeat + 1):            # the first is the warm-up
                for engine in engines:                  # interleaved, so that drift of the machine hits all alike
                    seconds = engine(ids, batch, a.new, turn + 1)
                    if turn > 0:
                        times[engine.name].append(seconds)
            tokens = {name: batch * a.new / statistics.median(spent) for name, spent in times.items()}
            base = tokens[engines[0].name]
            for name, spent in times.items():
                rows.append({"batch": batch, "name": name, "tokens_per_s": tokens[name], "best_tokens_per_s": batch * a.new / min(spent),
                             "harmaug_ratio": base / tokens[name], "logits_error": errors[name]})
    info = {**_C.build_info(), "machine": platform.processor() or platform.machine(), "threads_used": threads, "model": path.name, "prompt": a.prompt,
            "new": a.new, "clock": a.clock, "versions": versions()}
    print(info)
    print(f"{'B':>4} {'':24}{'median tok/s':>13}{'best tok/s':>12}{engines[0].name + ' is x':>24}{'logits error':>14}")
    for r in rows:
        print(f"{r['batch']:>4} {r['name']:24}{r['tokens_per_s']:13.1f}{r['best_tokens_per_s']:12.1f}{r['harmaug_ratio']:24.2f}{r['logits_error']:14.1e}")
    if a.json:
        Path(a.json).write_text(json.dumps({"info": info, "rows": rows}, indent=1))


def versions():
    from importlib.metadata import PackageNotFoundError, version
    out = {}
    for name in ("harmaug", "llama-cpp-python", "transformers", "torch"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out


if __name__ == "__main__":
    main()
