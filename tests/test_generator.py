"""Sampling: what a sample says depends on its prompt, the sampler, and (seed, index), and on nothing else."""
import math

import numpy as np
import pytest
from tiny_llama import TEMPLATE, TOKENS, Tiny, forward, weights, write_folder, write_gguf

from harmaug import _C
from harmaug.chat import ChatTemplate
from harmaug.generator import CausalLM, Generation, Request, SamplerConfig

C = Tiny()
TEXT = "the rain in the thin air, then"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_gguf(path, C, weights(C))
    return path


@pytest.fixture(scope="module")
def lm(path):
    return CausalLM.from_pretrained(path, dtype="float32")


def native(path, dtype="float32", n_threads=1):
    return _C.CausalLM(path, dtype=dtype, n_threads=n_threads)


def collect(model, prompts, *, n=3, batch_size=8, max_new_tokens=12, order=None, **options):
    """{(prompt, sample): (ids, logprob)} out of one run; `order` is the order in which prompts are added."""
    run = _C.GenerationRun(model, None, batch_size=batch_size, max_new_tokens=max_new_tokens, stop_ids=range(3, 40), **options)
    order = list(order if order is not None else range(len(prompts)))
    for i in order:
        run.add(prompts[i], n=n, first_index=100 * i)
    out = {}
    while not run.idle:
        run.step()
        for request, sample, _, ids, logprob, reason in run.take():
            out[order[request], sample] = (ids, logprob, reason)
    assert len(out) == n * len(prompts)
    return out


def prompts_of_many_kinds():
    rng = np.random.default_rng(8)
    head = rng.integers(0, C.vocab, 40).tolist()
    return [head + rng.integers(0, C.vocab, int(m)).tolist() for m in (1, 3, 30, 31, 24)] + [head[:20], head, rng.integers(0, C.vocab, 5).tolist(), [7], [7, 9]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_nothing_but_prompt_and_index_matters(path, isa, dtype):
    """Batch sizes, thread counts, the order of prompts, shared prefixes and refills: not a bit of ids or log-probabilities changes."""
    prompts = prompts_of_many_kinds()
    options = {"seed": 3, "temperature": 1.3, "top_p": 0.97, "typical_p": 0.95, "repetition_penalty": 1.1, "frequency_penalty": 0.2, "min_new_tokens": 2,
               "banned": [[50], [7, 60], [7, 9, 61]]}
    want = collect(native(path, dtype), prompts, **options)
    assert len({reason for _, _, reason in want.values()}) > 1 and len({len(ids) for ids, _, _ in want.values()}) > 4     # there were refills
    for batch_size in (1, 2, 5, 32):
        assert collect(native(path, dtype), prompts, batch_size=batch_size, **options) == want
    assert collect(native(path, dtype, 2), prompts, **options) == want
    assert collect(native(path, dtype), prompts, order=range(len(prompts) - 1, -1, -1), **options) == want
    for i, prompt in enumerate(prompts):        # alone, with no prompt before it
        run = _C.GenerationRun(native(path, dtype), None, batch_size=2, max_new_tokens=12, stop_ids=range(3, 40), **options)
        run.add(prompt, n=3, first_index=100 * i)
        while not run.idle:
            run.step()
        assert {(i, s): (ids, logprob, reason) for _, s, _, ids, logprob, reason in run.take()} == {k: v for k, v in want.items() if k[0] == i}


def test_common_prefixes_are_read_once(path):
    prompts = prompts_of_many_kinds()
    run = _C.GenerationRun(native(path), None, batch_size=4, max_new_tokens=5)
    for prompt in prompts[:5]:
        run.add(prompt, n=2)
    while not run.idle:
        run.step()
    totals = run.totals
    assert totals["prompt_tokens"] == sum(map(len, prompts[:5]))
    assert totals["prompt_tokens_computed"] == len(prompts[0]) + sum(len(p) - 40 for p in prompts[1:5])
    assert totals["new_tokens"] == 5 * 2 * 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_samples_follow_the_models_logits(path, isa, dtype):
    """Every token of a sample is what the sampler draws from the logits of a fresh pass over all tokens before it."""
    model = native(path, dtype)
    prompts = prompts_of_many_kinds()
    got = collect(model, prompts, seed=9, temperature=1.1, top_k=20, n=2)
    for (i, _), (ids, logprob, _) in got.items():
        logits = model.logits(prompts[i] + list(ids))[len(prompts[i]) - 1:-1].astype(np.float64)
        log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
        assert abs(log_p[np.arange(len(ids)), ids].sum() - logprob) < 1e-3 * len(ids)
        rank = (logits > logits[np.arange(len(ids)), ids][:, None]).sum(-1)
        assert rank.max() <= 20


def test_greedy_is_the_argmax_of_the_equations(tmp_path):
    c = Tiny(tied=True)
    w = write_gguf(tmp_path / "m.gguf", c, weights(c))
    run = _C.GenerationRun(native(tmp_path / "m.gguf"), None, temperature=0.0, max_new_tokens=20)
    ids = [5, 6, 7, 8]
    run.add(ids)
    while not run.idle:
        run.step()
    for token in run.take()[0][3]:
        logits = np.sort(forward(c, w, ids)[-1])
        if logits[-1] - logits[-2] > 1e-3:
            assert token == forward(c, w, ids)[-1].argmax()
        ids.append(token)


def test_sampled_frequencies(lm):
    """The first tokens of 4,000 samples follow the filtered distribution: Pearson's chi-square, 0.999 quantile at 40 degrees of freedom is 73.4."""
    ids = lm.tokenizer.encode(TEXT)
    p = _C.sampler_probabilities(lm.logits(ids)[-1], temperature=1.2, top_k=41)
    got = lm.generate(TEXT, n=4000, max_new_tokens=1, temperature=1.2, top_k=41, seed=1)
    count = np.bincount([g.ids[0] for g in got], minlength=C.vocab)
    assert not count[p == 0].any()
    kept = p > 0
    assert ((count - 4000 * p)[kept] ** 2 / (4000 * p[kept])).sum() < 73.4


def test_stream_equals_generate(lm):
    texts = ["the", "in the", TEXT, "<|im_start|>user\nthin<|im_end|>\n", "er " * 40]
    sampling = SamplerConfig(temperature=1.2, max_new_tokens=9)
    requests = [Request(prompt=text, n=3, first_index=10 * i, stop=("e",)) for i, text in enumerate(texts)]
    got = list(lm.stream(iter(requests), batch_size=4, seed=5, sampling=sampling))
    assert [(r, i) for r, i, _ in got] == [(r, i) for r in range(5) for i in range(3)]
    want = [lm.generate(text, 3, max_new_tokens=9, temperature=1.2, seed=5, stop="e", stop_after_text=True, first_index=10 * i) for i, text in enumerate(texts)]
    assert [g for _, _, g in got] == [g for row in want for g in row]
    assert list(lm.stream([], seed=1)) == []


def test_stream_reads_requests_as_it_needs_them(lm):
    read = []

    def requests():
        for i in range(1000):
            read.append(i)
            yield Request(prompt=TEXT, first_index=i)

    stream = lm.stream(requests(), batch_size=4, sampling=SamplerConfig(max_new_tokens=3))
    for _ in range(5):
        next(stream)
    assert len(read) <= 20
    stream.close()


def test_seeds_and_indices(lm):
    def texts(**options):
        return [g.ids for g in lm.generate(TEXT, max_new_tokens=6, temperature=1.5, **options)]

    all_ten = texts(n=10, seed=2)
    assert texts(n=10, seed=2) == all_ten
    assert texts(n=4, seed=2, first_index=6) == all_ten[6:]
    assert texts(n=10, seed=3) != all_ten
    assert len(set(all_ten)) == 10
    assert texts(n=1, seed=2**64 - 1, first_index=2**63) != texts(n=1, seed=2**64 - 2, first_index=2**63)
    assert lm.generate(TEXT, n=0) == []


def test_end_tokens_end_a_sample(path, lm):
    assert set(lm.stop_ids) == {2, 0}       # eos_token_id, and <|endoftext|> by its name
    got = lm.generate(TEXT, n=300, max_new_tokens=30, temperature=3.0, seed=4)
    ended = [g for g in got if g.stop_reason == "eos"]
    assert ended and all(g.ids[-1] in (0, 2) and not set(g.ids[:-1]) & {0, 2} for g in ended)
    assert all(len(g.ids) == 30 for g in got if g.stop_reason == "length")
    assert all(math.isfinite(g.logprob) and g.logprob < 0 for g in got)


def raw(ids):
    """Bytes of token ids, from the vocabulary."""
    from tiny_llama import byte_alphabet
    back = {c: bytes([b]) for b, c in enumerate(byte_alphabet())}
    return b"".join(b"" if TOKENS[i].startswith("<|") else b"".join(back[c] for c in TOKENS[i]) for i in ids)


def test_text_is_the_bytes_of_the_tokens(lm):
    for g in lm.generate(TEXT, n=50, max_new_tokens=20, temperature=2.0):
        assert g.text == raw(g.ids).decode("utf-8", "replace")


def find_stop(text, stops, after_text):
    """Where the earliest stop string begins, or -1, written the slow way."""
    begin = len(text) - len(text.lstrip(b" \t\n\r\v\f")) if after_text else 0
    found = [at for at in (text.find(stop, begin) for stop in stops) if at >= 0]
    return min(found, default=-1)


@pytest.mark.parametrize("stops", [["e"], ["th"], [" t", "he"], ["er", "the"], ["hein", "n "], ["\n"]], ids=str)
@pytest.mark.parametrize("after_text", [False, True])
def test_stop_strings(tmp_path, stops, after_text):
    """Wherever token boundaries fall: the unstopped sample with the same numbers, cut at the first stop string."""
    c = Tiny(layers=1)
    w = weights(c, seed=2)
    w["lm_head.weight"] *= 0.02             # nearly uniform over ...
    letters = {i for i, token in enumerate(TOKENS) if token in ("t", "h", "e", "i", "n", "r", "Ġ", "Ċ", "th", "the", "Ġthe", "in", "er")}
    w["lm_head.weight"][:, 0] = 0
    w["model.norm.weight"][0] = 1e3
    w["model.embed_tokens.weight"][:, 0] = 30.0
    w["lm_head.weight"][sorted(letters), 0] = 0.01      # ... these
    write_gguf(tmp_path / "m.gguf", c, w)
    lm = CausalLM.from_pretrained(tmp_path / "m.gguf", dtype="float32")
    free = lm.generate("the", n=200, max_new_tokens=12, seed=1)
    got = lm.generate("the", n=200, max_new_tokens=12, seed=1, stop=stops, stop_after_text=after_text)
    stopped = 0
    for f, g in zip(free, got):
        assert f.ids[:len(g.ids)] == g.ids
        at = find_stop(raw(f.ids), [s.encode() for s in stops], after_text)
        if at < 0 or g.stop_reason == "eos":
            assert g == f
            continue
        stopped += 1
        assert g.stop_reason == "stop" and g.text.encode() == raw(f.ids)[:at]
        assert find_stop(raw(g.ids), [s.encode() for s in stops], after_text) == at          # the last token completes it ...
        assert find_stop(raw(g.ids[:-1]), [s.encode() for s in stops], after_text) < 0       # ... and none before did
    assert stopped > 20


def test_banned_tokens_and_words(lm):
    free = lm.generate(TEXT, n=300, max_new_tokens=12, temperature=2.0, seed=3)
    common = sorted(set(range(3, C.vocab)), key=lambda i: -sum(g.ids.count(i) for g in free))[:5]
    assert all(any(i in g.ids for g in free) for i in common)
    got = lm.generate(TEXT, n=300, max_new_tokens=12, temperature=2.0, seed=3, banned_ids=common)
    assert not any(set(common) & set(g.ids) for g in got)
    pair = next((a, b) for g in free for a, b in zip(g.ids, g.ids[1:]) if a > 2 and b > 2)
    run = _C.GenerationRun(lm._model, None, batch_size=8, max_new_tokens=12, temperature=2.0, seed=3, banned=[list(pair)], stop_ids=lm.stop_ids)
    run.add(lm.tokenizer.encode(TEXT), n=300)
    while not run.idle:
        run.step()
    samples = [ids for _, _, _, ids, _, _ in run.take()]
    assert not any(pair in zip(ids, ids[1:]) for ids in samples) and sum(ids == g.ids for ids, g in zip(samples, free)) > 200
    run = _C.GenerationRun(lm._model, None, batch_size=8, max_new_tokens=1, temperature=9.0, banned=[list(pair)])
    run.add([*lm.tokenizer.encode(TEXT), pair[0]], n=2000)      # a prompt that ends with the run's beginning
    while not run.idle:
        run.step()
    assert pair[1] not in {ids[0] for _, _, _, ids, _, _ in run.take()}
    words = lm.generate(TEXT, n=300, max_new_tokens=12, temperature=2.0, seed=3, bad_words=["the", "in"])
    for word in ("the", " the", "in", " in"):
        run = tuple(lm.tokenizer.encode(word))
        assert not any(g.ids[i:i + len(run)] == run for g in words for i in range(len(g.ids)))


def test_minimum_length_and_stop_tokens(lm):
    options = {"n": 200, "max_new_tokens": 20, "temperature": 3.0, "seed": 4}
    stops = list(range(10, 60))
    free = lm.generate(TEXT, stop_token_ids=stops, **options)
    assert min(len(g.ids) for g in free) < 4 and {g.stop_reason for g in free} == {"eos", "length"}
    assert all(g.ids[-1] in {0, 2, *stops} for g in free if g.stop_reason == "eos")
    got = lm.generate(TEXT, stop_token_ids=stops, min_new_tokens=6, **options)
    assert all(len(g.ids) >= 6 and not set(g.ids[:6]) & {0, 2, *stops} for g in got)
    early = lm.generate(TEXT, stop=["a", "e", "t", "i"], min_new_tokens=6, **options)
    assert all(len(g.ids) >= 6 for g in early) and any(g.stop_reason == "stop" for g in early)


def test_repetition_is_discouraged(lm):
    def repeats(**options):
        return sum(len(g.ids) - len(set(g.ids)) for g in lm.generate(TEXT, n=100, max_new_tokens=30, seed=8, **options))

    assert repeats(presence_penalty=20.0) < 0.2 * repeats()
    assert repeats(repetition_penalty=3.0) < repeats() < repeats(frequency_penalty=-3.0)


def test_folder_with_tokenizer_json(tmp_path, lm):
    import json

    from tiny_llama import MERGES, SPECIAL
    from tokenizers import Tokenizer as HF
    from tokenizers import decoders, models, pre_tokenizers
    hf = HF(models.BPE({token: i for i, token in enumerate(TOKENS)}, [tuple(m.split(" ")) for m in MERGES]))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens(SPECIAL)
    folder = write_folder(tmp_path / "model", C, weights(C))
    hf.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}))
    other = CausalLM.from_pretrained(folder, dtype="float32")
    assert other.name == "model" and other.licence is None and other.stop_ids == (2,)
    messages = [{"role": "user", "content": "the rain"}]
    assert other.chat_prompt(messages, "Sure") == lm.chat_prompt(messages, "Sure")
    ids = lm.tokenizer.encode(TEXT)
    assert other.tokenizer.encode(TEXT) == ids
    np.testing.assert_array_equal(other.logits(ids), lm.logits(ids))
    assert [g.ids for g in other.generate(TEXT, n=3)] == [g.ids for g in lm.generate(TEXT, n=3)] or lm.stop_ids != other.stop_ids


def test_chat_prompt(lm):
    prompt = lm.chat_prompt([{"role": "user", "content": "the rain "}], "I have an idea: ")
    assert prompt == "<|im_start|>user\nthe rain <|im_end|>\n<|im_start|>assistant\nI have an idea: "
    assert prompt.tail == "<|im_start|>assistant\nI have an idea: "
    ids = lm.tokenizer.encode(prompt)
    assert ids[0] == 1 and ids.count(2) == 1
    assert isinstance(lm.generate(prompt, max_new_tokens=2)[0], Generation)


def test_templates_render_as_in_a_sandbox():
    def render(source, prefix="", **options):
        return ChatTemplate(source=source, name="m", **options).render([{"role": "user", "content": "hi"}], prefix)

    assert render("{{ bos_token }}{% for m in messages %}\n  {% if loop.first %}\n{{ m.content }}{{ eos_token }}\n  {% endif %}\n{% endfor %}",
                  bos_token="<s>", eos_token="</s>") == "<s>hi</s>\n"
    assert render("{% generation %}a{% endgeneration %}{% for i in [1, 2] %}{% break %}{% endfor %}{{ {'k': 'é'} | tojson }}") == 'a{"k": "é"}'
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    with pytest.raises(ValueError, match="m: chat template: no system turn"):
        render("{{ raise_exception('no system turn') }}")
    with pytest.raises(ValueError, match="m: chat template"):
        render("{% if %}")
    with pytest.raises(ValueError, match="m: chat template"):
        render("{{ messages.append(1) }}")
    with pytest.raises(ValueError, match="m: chat template"):
        render("{{ ''.__class__.__mro__[1].__subclasses__() }}")


@pytest.mark.parametrize("prompt, options, message", [
    ("", {}, "the prompt is empty"),
    ([], {}, "the prompt is empty"),
    ([0, 99999], {}, "token 1: id 99999 lies outside the vocabulary"),
    ([-1], {}, "id -1 is no token id"),
    ([1] * 100, {"max_new_tokens": 61}, "a prompt of 100 tokens and max_new_tokens = 61 exceed the model's context of 160"),
    ("a", {"max_new_tokens": 160}, "max_new_tokens must be in 1..159"),
    ("a", {"temperature": -1}, "temperature must be >= 0"),
    ("a", {"top_p": 0}, "top_p"),
    ("a", {"seed": -1}, "seeds, indices and counts"),
    ("a", {"first_index": -1}, "seeds, indices and counts"),
    ("a", {"batch_size": 0}, "batch_size must be in 1..65536"),
    ("a", {"stop": ""}, "a stop string must have 1..4096 bytes"),
    ("a", {"min_new_tokens": 65}, "min_new_tokens must be in 0..max_new_tokens = 64, got 65"),
    ("a", {"banned_ids": [1, 264]}, "banned id 264 lies outside the vocabulary of 264"),
    ("a", {"banned_ids": range(264)}, "no token can come next: every one is banned"),
    ("a", {"bad_words": [" "]}, "bad_words: ' ' has no text"),
    ("a", {"typical_p": 0.0}, "typical_p"),
    ("a", {"repetition_penalty": -1.0}, "repetition_penalty"),
    ("a", {"stop_token_ids": [-2]}, "id -2 is no token id"),
])
def test_errors(lm, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        lm.generate(prompt, **options)


def test_errors_name_the_request(lm):
    with pytest.raises(ValueError, match="request 1: the prompt is empty"):
        list(lm.stream([Request(prompt="a"), Request(prompt="")]))
    with pytest.raises(ValueError, match="request 0: a prompt of 201 tokens"):
        list(lm.stream([Request(prompt="a" * 201)]))


def test_whole_context_can_be_used(lm):
    got = lm.generate([5] * 100, max_new_tokens=60, temperature=0.0)
    assert got[0].stop_reason in ("length", "eos")


def test_models_without_template(tmp_path):
    import gguf
    write_gguf(tmp_path / "m.gguf", C, weights(C), vocabulary=False, extra=lambda out: (
        out.add_tokenizer_model("gpt2"), out.add_tokenizer_pre("smollm"), out.add_token_list(TOKENS),
        out.add_token_types([gguf.TokenType.NORMAL] * len(TOKENS)), out.add_token_merges(["t h"])))
    lm = CausalLM.from_pretrained(tmp_path)     # a folder that holds one .gguf
    with pytest.raises(ValueError, match="has no chat template"):
        lm.chat_prompt([{"role": "user", "content": "a"}])
    assert lm.stop_ids == ()


def test_failed_runs_and_misuse(path):
    with pytest.raises(TypeError, match="lm must be a harmaug._C.CausalLM"):
        _C.GenerationRun(object(), None)
    with pytest.raises(TypeError, match="tokenizer must be a harmaug._C.Tokenizer"):
        _C.GenerationRun(native(path), object())
    run = _C.GenerationRun(native(path), None)
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        run.add([1], stops=(b"a",))
    with pytest.raises(ValueError, match="number of samples must be >= 1"):
        run.add([1], n=0)
    assert run.idle and run.take() == [] and run.waiting == 0
    run.step()


def test_logits_that_are_no_numbers_are_an_error(tmp_path):
    w = weights(C)
    w["lm_head.weight"][7, 3] = np.nan
    lm = _C.CausalLM(write_folder(tmp_path, C, w), dtype="float32")
    run = _C.GenerationRun(lm, None)
    run.add([1, 2])
    with pytest.raises(ValueError, match="logits are not finite"):
        while not run.idle:
            run.step()
    with pytest.raises(RuntimeError, match="has failed before"):
        run.step()


def test_memory_stays_flat(path):
    import resource
    model = native(path)

    def work():
        run = _C.GenerationRun(model, None, batch_size=4, max_new_tokens=4)
        for i in range(3):
            run.add([1, 2, 3 + i], n=3)
        run.step()
        if not run.idle:
            run.step()
        model.logits([1, 2, 3])

    for _ in range(50):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        work()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096      # kilobytes
