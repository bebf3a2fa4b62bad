"""Forward pass of sequence classifiers: harmaug beside PyTorch, ONNX Runtime and OpenVINO, on the same token ids, interleaved in one run.

    python benchmarks/bench_forward.py --models FOLDER [--model deberta-v3-small] [--engines harmaug torch ort ov] [--threads 1 2]
                                       [--shapes 1x32 1x128 1x512 8x128 32xR] [--seconds 4] [--starts 5] [--clock cpu] [--json out.json]

FOLDER holds the models; what is missing there is made: random weights through transformers, ONNX files through torch.onnx, 8-bit ones through onnxruntime's
dynamic quantization or NNCF's quantization after training. Engines: torch (also "torch bfloat16", "torch int8": dynamic quantization), ort (also "ort int8"),
ov (also "ov bfloat16", "ov int8"), harmaug (also "harmaug bfloat16", "harmaug int8").

Each engine has a process of its own for each thread count; the parent gives them turns, so that all see the same machine: a rest, a call that does not count,
calls for some time. Shape BxL: B rows of L random ids. 32xR: 32 rows whose lengths follow real prompts (lognormal, median 25 tokens, sigma 0.8, cut to
4 to 128); harmaug takes them as they are, rivals padded to the longest ("pad") and in chunks of 8 sorted by length, each padded to its longest ("sort").
`x` is the time of the fastest rival of the same storage (float32, bfloat16, int8) over the engine's own, from medians. GF/s counts the products that the
shape needs at least (position projections made beforehand, only the columns of positions in use, the last layer as if all tokens were wanted); % is of the fused
multiply-adds that as many threads reached in this run, in registers. Error: largest |difference| of a logit from torch float32's. MB: peak resident set of a
process that loads the model and scores 1x32. Start: from before the process exists until it has scored 1x32, packed weights in the cache. --clock cpu counts the processor time of all
threads instead of time that passes: what a machine that has other work can still compare, at one thread.
"""
from __future__ import annotations

import json
import os
import resource
import sys
import time

# name -> (family, hidden size, layers, heads)
MODELS = {"deberta-v3-xsmall": ("deberta", 384, 12, 6), "deberta-v3-small": ("deberta", 768, 6, 12), "deberta-v3-base": ("deberta", 768, 12, 12),
          "deberta-v3-large": ("deberta", 1024, 24, 16), "bert-base": ("bert", 768, 12, 12)}
BUCKETS = 256
REST = 0.05                 # s before a turn: other libraries' threads spin for a while
TURN = 0.2

PEAK = """#include <stdio.h>
#include <time.h>
typedef float v __attribute__((vector_size(BYTES)));
int main(void)
{
    double best = 0;
    for (int repeat = 0; repeat < 20; repeat++) {
        struct timespec t0, t1;
        v r0 = {0}, r1 = {0}, r2 = {0}, r3 = {0}, r4 = {0}, r5 = {0}, r6 = {0}, r7 = {0}, r8 = {0}, r9 = {0}, ra = {0}, rb = {0}, x = {1}, y = {1e-9f};
        const long n = 2000000;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        for (long k = 0; k < n; k++) {
#define F(r) __asm__ volatile("vfmadd231ps %1, %2, %0" : "+v"(r) : "v"(x), "v"(y));
            F(r0) F(r1) F(r2) F(r3) F(r4) F(r5) F(r6) F(r7) F(r8) F(r9) F(ra) F(rb)
        }
        clock_gettime(CLOCK_MONOTONIC, &t1);
        const double g = 12.0 * n * (BYTES / 4) * 2 / ((double)(t1.tv_sec - t0.tv_sec) * 1e9 + (double)(t1.tv_nsec - t0.tv_nsec));
        best = g > best ? g : best;
    }
    printf("%f\\n", best);
    return 0;
}
"""


# -- inputs --

def chunks_of(shape, vocab, mode):
    """[(ids, mask)] of int64 arrays, and the row that each of their rows is."""
    import numpy as np

    n, length = shape.split("x")
    rng = np.random.default_rng(7)
    ragged = length == "R"
    lengths = np.clip(np.round(np.exp(rng.normal(np.log(25), 0.8, int(n)))), 4, 128).astype(int) if ragged else np.full(int(n), int(length))
    rows = [rng.integers(5, vocab, k) for k in lengths]
    order = np.argsort(lengths, kind="stable") if mode == "sort" else np.arange(len(rows))
    size = 8 if mode == "sort" else len(rows)
    chunks = []
    for first in range(0, len(rows), size):
        part = [rows[i] for i in order[first:first + size]]
        ids = np.zeros((len(part), max(map(len, part))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(part):
            ids[i, :len(row)], mask[i, :len(row)] = row, 1
        chunks.append((ids, mask))
    return rows, chunks, order


def gigaflops(name, lengths):
    family, h, layers, _ = MODELS[name]
    total = 0.0
    for n in lengths:
        total += layers * (2 * n * h * (4 * h + 8 * h) + 4 * n * n * h)
        if family == "deberta":
            total += layers * 4 * n * h * min(2 * n - 1, 2 * BUCKETS)
    return total / 1e9


# -- engines: load(folder, storage, threads) gives run(ids, mask) --

def torch_engine(folder, storage, threads):
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if storage == "bfloat16" else torch.float32
    attention = "sdpa" if MODELS[os.path.basename(folder)][0] == "bert" else "eager"
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    if storage == "int8":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    def run(ids, mask):
        with torch.inference_mode():
            return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.float().numpy()
    return run


def ort_engine(folder, storage, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(onnx_file(folder, storage), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def ov_engine(folder, storage, threads):
    import numpy as np
    import openvino

    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1",
             "INFERENCE_PRECISION_HINT": "bf16" if storage == "bfloat16" else "f32"}
    core = openvino.Core()
    model = core.read_model(openvino_file(folder) if storage == "int8" else onnx_file(folder, "float32"))
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    return lambda ids, mask: np.array(next(iter(request.infer({"input_ids": ids, "attention_mask": mask}).values())))


ENGINES = {"torch": torch_engine, "ort": ort_engine, "ov": ov_engine}


def split_name(engine):
    library, _, storage = engine.partition(" ")
    return library, storage or "float32"


def loader(engine, folder, threads):
    """-> prepare(shape, vocab, mode) -> a call that scores the shape once and returns (rows, labels) in the order of the rows."""
    library, storage = split_name(engine)
    if library == "harmaug":
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        from harmaug import _C

        cache = os.path.join(folder, "cache")       # what Guard does with the user's cache folder
        os.makedirs(cache, mode=0o700, exist_ok=True)
        encoder = _C.Encoder(folder, dtype=storage, n_threads=threads, cache=cache)
    else:
        run = ENGINES[library](folder, storage, threads)

    def prepare(shape, vocab, mode):
        import numpy as np

        rows, chunks, order = chunks_of(shape, vocab, mode)
        if library == "harmaug":
            ids = np.concatenate(rows).astype(np.int32)
            offsets = np.cumsum([0, *map(len, rows)])
            return lambda: encoder.logits(ids, offsets)

        def once():
            parts = [run(ids, mask) for ids, mask in chunks]
            out = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
            out[order] = np.concatenate(parts)
            return out
        return once
    return prepare


# -- a worker: one engine, one thread count; commands and answers are lines of JSON --

def worker(engine, folder, threads, clock_name):
    clock = time.process_time if clock_name == "cpu" else time.perf_counter
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)           # what libraries print is no answer
    prepare = loader(engine, folder, threads)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        vocab = min(json.load(f)["vocab_size"], 128000)
    prepare("1x32", vocab, "pad")()
    print(json.dumps({"cpu": time.process_time(), "at": time.time(), "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), file=answers)
    once = None
    for line in sys.stdin:
        command = json.loads(line)
        if "shape" in command:
            once = prepare(command["shape"], vocab, command["mode"])
            print(json.dumps({"logits": once().tolist()}), file=answers)
            continue
        once()
        times, end = [], time.perf_counter() + TURN
        while not times or time.perf_counter() < end:
            start = clock()
            once()
            times.append(clock() - start)
        print(json.dumps(times), file=answers)


class Worker:
    def __init__(self, engine, folder, threads, clock):
        import subprocess

        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        env = {**os.environ, **dict.fromkeys(names, str(threads)), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
        env.pop("OPENBLAS_CORETYPE", None)
        started = time.time()
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--worker", engine, folder, str(threads), clock], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE if engine != "harmaug" else None)
        first = self.answer()
        self.start, self.mb = first["cpu"] if clock == "cpu" else first["at"] - started, first["mb"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            error = self.process.stderr.read().strip().splitlines()[-1:] if self.process.stderr else []
            raise RuntimeError(f"{self.process.args[3]}: {error}")
        return json.loads(line)

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


# -- models --

def onnx_file(folder, storage):
    return os.path.join(folder, f"{storage}.onnx")


def openvino_file(folder):
    return os.path.join(folder, "openvino_int8.xml")


def make_model(folder):
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        DebertaV2Config,
        DebertaV2ForSequenceClassification,
    )

    family, h, layers, heads = MODELS[os.path.basename(folder)]
    torch.manual_seed(0)
    shape = {"hidden_size": h, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * h, "num_labels": 2}
    if family == "bert":
        model = BertForSequenceClassification(BertConfig(**shape))
    else:
        model = DebertaV2ForSequenceClassification(DebertaV2Config(
            **shape, vocab_size=128100, type_vocab_size=0, relative_attention=True, max_relative_positions=-1, position_buckets=BUCKETS,
            pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False, pooler_hidden_act="gelu"))
    with torch.no_grad():
        for name, p in model.named_parameters():    # attention that is not uniform, norms and biases that are not trivial
            if "LayerNorm.weight" in name:
                p.copy_(1 + 0.1 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.copy_(0.02 * torch.randn_like(p))
            elif "query" in name or "key" in name:
                p.copy_(torch.randn_like(p) * 1.5 / h**0.5)
            elif "dense.weight" in name or "value" in name:
                p.copy_(torch.randn_like(p) * 0.7 / p.shape[1]**0.5)
    model.save_pretrained(folder)


def make_onnx(folder, storage):
    path = onnx_file(folder, storage)
    if storage == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(onnx_file(folder, "float32"), path, weight_type=QuantType.QInt8)
        return
    import torch
    from transformers import AutoModelForSequenceClassification

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    model = Logits(AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")).eval()
    ids = torch.randint(5, 30000, (2, 24))
    axes = {0: torch.export.Dim("rows", min=1, max=4096), 1: torch.export.Dim("length", min=2, max=512)}
    with torch.no_grad():
        torch.onnx.export(model, (ids, torch.ones_like(ids)), path, dynamo=True, external_data=True, verbose=False,
                          input_names=["input_ids", "attention_mask"], output_names=["logits"],
                          dynamic_shapes={"input_ids": axes, "attention_mask": axes})


def make_openvino(folder):
    import nncf
    import numpy as np
    import openvino

    rng = np.random.default_rng(0)
    vocab = 30000 if os.path.basename(folder) == "bert-base" else 128000
    rows = [rng.integers(5, vocab, (1, n)) for n in rng.integers(16, 96, 24)]
    calibration = nncf.Dataset([{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in rows])
    model = nncf.quantize(openvino.Core().read_model(onnx_file(folder, "float32")), calibration, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(model, openvino_file(folder), compress_to_fp16=False)


def make_missing(folder, engines):
    if not os.path.exists(os.path.join(folder, "config.json")):
        make_model(folder)
    wanted = {"float32"} if any(split_name(e)[0] in ("ort", "ov") for e in engines) else set()
    wanted |= {"int8"} if "ort int8" in engines else set()
    for storage in sorted(wanted):
        if not os.path.exists(onnx_file(folder, storage)):
            make_onnx(folder, storage)
    if "ov int8" in engines and not os.path.exists(openvino_file(folder)):
        make_openvino(folder)


# -- measuring --

def peak_gflops(threads):
    """Fused multiply-adds of float32 that `threads` processes reach together, in registers; None where no compiler or no such instruction is."""
    import subprocess
    import tempfile

    from harmaug import _C

    wide = any(isa.startswith("avx512") for isa in _C.build_info()["cpu_isa_usable"])
    with tempfile.TemporaryDirectory() as folder:
        program, source = os.path.join(folder, "peak"), os.path.join(folder, "peak.c")
        with open(source, "w", encoding="utf-8") as f:
            f.write(PEAK)
        command = [os.environ.get("CC", "cc").split()[-1], "-O2", f"-DBYTES={64 if wide else 32}", "-mavx512f" if wide else "-mfma", source, "-o", program]
        if subprocess.run(command, capture_output=True).returncode != 0:
            return None
        running = [subprocess.Popen([program], stdout=subprocess.PIPE, text=True) for _ in range(threads)]
        return sum(float(p.communicate()[0]) for p in running)


def measure_shape(name, shape, workers, threads, peak, seconds, vocab):
    import statistics

    import numpy as np

    lengths = [len(row) for row in chunks_of(shape, vocab, "pad")[0]]
    modes = {engine: ["pad", "sort"] if shape.endswith("R") and not engine.startswith("harmaug") else ["pad"] for engine in workers}
    contenders = [(engine, mode) for engine in workers for mode in modes[engine]]
    times = {c: [] for c in contenders}
    logits = {}
    end = time.perf_counter() + seconds * len(contenders)
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for engine, mode in contenders:
            if len(modes[engine]) > 1 or rounds == 0:
                logits[engine, mode] = np.array(workers[engine].ask(shape=shape, mode=mode)["logits"])
            time.sleep(REST)
            times[engine, mode] += workers[engine].ask()
        rounds += 1
    medians = {c: statistics.median(t) for c, t in times.items()}
    exact = logits.get(("torch", "pad"))
    out = []
    for engine, mode in contenders:
        library, storage = split_name(engine)
        rivals = [m for (e, _), m in medians.items() if split_name(e)[1] == storage and split_name(e)[0] != "harmaug"]
        median = medians[engine, mode]
        rate = gigaflops(name, lengths) / median
        out.append({"model": name, "shape": shape, "threads": threads, "engine": engine, "mode": mode if len(modes[engine]) > 1 else "",
                    "median_ms": median * 1e3, "min_ms": min(times[engine, mode]) * 1e3, "x": min(rivals) / median if rivals else None, "gflops": rate,
                    "of_peak": rate / peak if peak else None, "error": float(np.abs(logits[engine, mode] - exact).max()) if exact is not None else None,
                    "runs": len(times[engine, mode])})
        print("{model:18}{shape:>7}{threads:3} {engine:17}{mode:5}{median_ms:10.2f}{min_ms:10.2f}".format(**out[-1])
              + "".join(f"{'-' if v is None else format(v, f):>{w}}" for v, f, w in
                        ((out[-1]["x"], ".2f", 7), (rate, ".0f", 7), (out[-1]["of_peak"], ".0%", 6), (out[-1]["error"], ".1e", 9))), flush=True)
    return out


def measure_starts(name, folder, engines, starts, clock):
    import statistics

    samples = {engine: [] for engine in engines}
    for number in range(-1, starts):
        for engine in engines if number >= 0 else [e for e in engines if e.startswith("harmaug")]:
            time.sleep(REST)
            worker = Worker(engine, folder, 1, clock)
            samples[engine] += [(worker.start, worker.mb)] if number >= 0 else []
            worker.close()
    out = []
    for engine, pairs in samples.items():
        out.append({"model": name, "engine": engine, "start_s": statistics.median(p[0] for p in pairs), "mb": statistics.median(p[1] for p in pairs)})
        print("{model:18} {engine:17} start {start_s:6.3f} s, peak {mb:6.0f} MB".format(**out[-1]), flush=True)
    return out


def parse():
    import argparse

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", required=True)
    p.add_argument("--model", nargs="+", default=["deberta-v3-small"], choices=MODELS)
    p.add_argument("--engines", nargs="+", default=["harmaug", "torch", "ort", "ov"])
    p.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    p.add_argument("--shapes", nargs="+", default=["1x32", "1x128", "1x512", "8x128", "32xR"])
    p.add_argument("--seconds", type=float, default=4.0, help="for each engine and shape")
    p.add_argument("--starts", type=int, default=5, help="processes for the start and the peak of memory; 0: not measured")
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    p.add_argument("--json", help="also write the rows here")
    return p.parse_args()


def main():
    import importlib.metadata

    args = parse()
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from harmaug.versions import versions

    machine = {**versions(), "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv)}
    for package in ("torch", "transformers", "onnxruntime", "openvino", "nncf"):
        try:
            machine[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            machine[package] = "not installed"
    for threads in args.threads:
        machine[f"GF/s of {threads} threads in registers"] = peak_gflops(threads)
    for key, value in machine.items():
        print(f"{key}: {value}")
    rows, starts = [], []
    for name in args.model:
        folder = os.path.join(os.path.abspath(args.models), name)
        make_missing(folder, args.engines)
        if args.starts > 0:
            starts += measure_starts(name, folder, args.engines, args.starts, args.clock)
        print(f"\n{'':46}{'median ms':>15}{'min ms':>10}{'x':>7}{'GF/s':>7}{'%':>6}{'error':>9}")
        for threads in args.threads:
            workers = {engine: Worker(engine, folder, threads, args.clock) for engine in args.engines}
            for shape in args.shapes:
                rows += measure_shape(name, shape, workers, threads, machine[f"GF/s of {threads} threads in registers"], args.seconds,
                                      30000 if name == "bert-base" else 128000)
            for worker_ in workers.values():
                worker_.close()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"machine": machine, "rows": rows, "starts": starts}, f, indent=1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    else:
        main()
