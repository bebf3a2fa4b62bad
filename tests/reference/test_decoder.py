"""The decoder, its sampler and its chat templates beside transformers and llama.cpp. Real weights: HARMAUG_MODELS, filled by `harmaug models fetch`."""
import os
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from tiny_llama import NAMES, Tiny, weights, write_folder
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.utils.chat_template_utils import render_jinja_template

from harmaug import _C
from harmaug.chat import ChatTemplate
from harmaug.generator import CausalLM, Request, SamplerConfig

PROMPTS = [
    "The capital of France is", "Once upon a time there was a small village by the sea, where", "To bake bread you need", "1, 2, 3, 5, 8,",
    "def fibonacci(n):\n    ", "Dear Sir or Madam,\n\nI am writing to", "The three laws of motion say that", "Q: Why is the sky blue?\nA:",
    "A list of fruits:\n1. Apple\n2. Pear\n3.", "In 1969, the first people", "Water boils at", "My favourite season is autumn because",
    "<|im_start|>user\nTell me about owls.<|im_end|>\n<|im_start|>assistant\n", "The opposite of hot is", "She opened the letter and",
    "SELECT name FROM", "Photosynthesis is the process by which", "The train was late again, so", "Roses are red,", "When the bell rang, the children",
]


@pytest.fixture(scope="module")
def smollm2():
    assert os.environ.get("HARMAUG_MODELS"), "set HARMAUG_MODELS to a folder filled by `harmaug models fetch minilm smollm2`"
    (path,) = (Path(os.environ["HARMAUG_MODELS"]) / "smollm2").glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def ours(smollm2):
    return CausalLM.from_pretrained(smollm2, dtype="float32")


SHAPES = [
    (Tiny(), {}),
    (Tiny(hidden=60, heads=6, kv_heads=1, head_dim=10, inner=77, vocab=131, layers=2, tied=True), {}),
    (Tiny(hidden=48, heads=3, kv_heads=3, head_dim=20, inner=70, vocab=97, layers=1, theta=500000.0), {}),
    (Tiny(hidden=96, heads=8, kv_heads=4, head_dim=12, inner=130, vocab=203, layers=4), {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}),
    (Tiny(attention_bias=True, mlp_bias=True), {}),
    (Tiny(rope=("linear", 4.0)), {}),
    (Tiny(rope=("llama3", 8.0, 1.0, 4.0, 64)), {}),
    (Tiny(rope=("llama3", 32.0, 1.0, 4.0, 16), theta=500000.0, context=2048), {}),
]


@pytest.mark.parametrize("c, changes", SHAPES, ids=range(len(SHAPES)))
@pytest.mark.parametrize("seed", [0, 1])
def test_random_models_of_odd_shapes(tmp_path, c, changes, seed):
    folder = write_folder(tmp_path, c, weights(c, seed), **changes)
    ids = np.random.default_rng(seed).integers(0, c.vocab, min(c.context, 700))
    with torch.no_grad():
        want = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.from_numpy(ids)[None]).logits[0].numpy()
    got = _C.CausalLM(folder, dtype="float32").logits(ids)
    assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max()


def dequantised(path, head_dim):
    """The GGUF file's tensors as gguf-py dequantises them, under transformers' names and in its order of rotary pairs."""
    back = {short: long for long, short in NAMES.items()}
    state = {}
    for t in gguf.GGUFReader(path).tensors:
        value = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        if t.name.startswith("blk."):
            _, i, short, end = t.name.split(".")
            if short in ("attn_q", "attn_k"):
                value = value.reshape(-1, head_dim // 2, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            state[f"model.layers.{i}.{back[short]}.{end}"] = torch.from_numpy(value.copy())
        else:
            state[{"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[t.name]] = torch.from_numpy(value.copy())
    return state


def test_smollm2_equals_transformers_on_its_dequantised_weights(smollm2, ours):
    c = ours.config
    config = LlamaConfig(**{key: c[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                                                    "intermediate_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")},
                         rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]})
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(dequantised(smollm2, c["head_dim"]), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    low = CausalLM.from_pretrained(smollm2, dtype="bfloat16")
    for text in (PROMPTS[1], " ".join(PROMPTS)):
        ids = ours.tokenizer.encode(text)
        with torch.no_grad():
            want = model(torch.tensor([ids])).logits[0].numpy()
        assert np.abs(ours.logits(ids) - want).max() <= 2e-4 * np.abs(want).max()
        rounded = low.logits(ids)      # bfloat16: 8 bits a factor
        assert np.sqrt(((rounded - want) ** 2).mean()) <= 0.02 * np.sqrt((want ** 2).mean())


@pytest.fixture(scope="module")
def float32_gguf(smollm2, tmp_path_factory):
    """SmolLM2 with every matrix dequantised, metadata unchanged."""
    source = gguf.GGUFReader(smollm2)
    path = tmp_path_factory.mktemp("gguf") / "smollm2.F32.gguf"
    out = gguf.GGUFWriter(path, "llama")
    for field in source.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        out.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for t in source.tensors:
        out.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    yield path
    path.unlink()


def test_greedy_continuations_equal_llama_cpp(float32_gguf, ours):
    """20 prompts, 64 tokens: llama.cpp reads prompt and our continuation, and must have chosen each of its tokens itself. A difference
    counts only where its two best logits are more than 1e-3 apart."""
    theirs = llama_cpp.Llama(str(float32_gguf), n_ctx=512, n_batch=512, n_ubatch=512, logits_all=True, type_k=0, type_v=0, verbose=False)
    other = CausalLM.from_pretrained(float32_gguf, dtype="float32")
    sampling = SamplerConfig(temperature=0.0, max_new_tokens=64)
    ours_said, other_said = (list(lm.stream([Request(prompt=text) for text in PROMPTS], sampling=sampling)) for lm in (ours, other))
    assert ours_said == other_said      # the quantised file and the float32 one are one model
    close = 0
    for text, (_, _, got) in zip(PROMPTS, ours_said):
        ids = ours.tokenizer.encode(text)
        assert ids == theirs.tokenize(text.encode(), add_bos=False, special=True)
        theirs.reset()
        theirs.eval(ids + list(got.ids))
        logits = np.array(theirs.scores[len(ids) - 1:len(ids) + len(got.ids) - 1])
        best = np.sort(logits, -1)[:, -2:]
        for step, token in enumerate(got.ids):
            if logits[step].argmax() != token:
                assert best[step, 1] - best[step, 0] <= 1e-3, (text, step)
                close += 1
        mine = ours.logits(ids + list(got.ids))[len(ids) - 1:-1]
        assert np.abs(mine - logits).max() <= 2e-4 * np.abs(logits).max()
    assert close <= 3
    theirs.close()


@pytest.mark.parametrize("name, option, warper", [
    ("top_k", 1, TopKLogitsWarper), ("top_k", 40, TopKLogitsWarper), ("top_p", 0.5, TopPLogitsWarper), ("top_p", 0.95, TopPLogitsWarper),
    ("min_p", 0.05, MinPLogitsWarper), ("min_p", 0.3, MinPLogitsWarper), ("typical_p", 0.3, TypicalLogitsWarper), ("typical_p", 0.95, TypicalLogitsWarper),
])
def test_filters_keep_what_transformers_keeps(ours, name, option, warper):
    """On real logits. Theirs in float64: a token within 1e-5 of the threshold may differ."""
    rows = ours.logits(ours.tokenizer.encode(PROMPTS[1]))
    for row in rows:
        want = torch.isfinite(warper(option)(None, torch.from_numpy(row)[None].double())[0]).numpy()
        got = _C.sampler_probabilities(row, **{name: option}) > 0
        p = np.exp(row.astype(np.float64) - row.max())
        assert (p / p.sum())[want != got].sum() < 1e-5


@pytest.mark.parametrize("options", [
    {"repetition_penalty": 1.3, "temperature": 0.8}, {"repetition_penalty": 0.8, "top_k": 50, "top_p": 0.9}, {"temperature": 1.5, "min_p": 0.02, "typical_p": 0.9},
    {"repetition_penalty": 1.1, "temperature": 0.7, "top_k": 100, "top_p": 0.97, "min_p": 0.01, "typical_p": 0.95},
], ids=str)
def test_the_chain_of_processors_gives_transformers_distribution(ours, options):
    """All of them in generate()'s order, with banned tokens and a minimum length, on real logits behind real tokens."""
    makers = {"temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper,
              "typical_p": TypicalLogitsWarper}
    ids = ours.tokenizer.encode(PROMPTS[1])
    rows = ours.logits(ids)
    for n in range(4, len(ids)):
        banned = np.argsort(-rows[n])[[0, 4]].tolist()
        chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(options.get("repetition_penalty", 1.0)),
                                     NoBadWordsLogitsProcessor([[i] for i in banned], eos_token_id=None),
                                     MinNewTokensLengthLogitsProcessor(3, n - 1, list(ours.stop_ids), device="cpu")])
        chain += [makers[name](options[name]) for name in makers if name in options]
        want = torch.softmax(chain(torch.tensor([ids[:n + 1]]), torch.from_numpy(rows[n])[None].double())[0], -1).numpy()
        got = _C.sampler_probabilities(rows[n], prompt=ids[:3], ids=ids[3:n + 1], banned=banned + list(ours.stop_ids), **options)
        differ = (got > 0) != (want > 0)
        assert got[differ].sum() + want[differ].sum() < 1e-5
        np.testing.assert_allclose(got[~differ], want[~differ], rtol=3e-4, atol=1e-9)


TEMPLATES = [
    ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    ("{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content'] | trim %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n"
    "    {%- set system = '' %}\n{%- endif %}\n{{- bos_token }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}\n"),
    ("{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% else %}{{ raise_exception('roles: user and assistant') }}{% endif %}{% endfor %}"),
    "{% for message in messages %}\n  {% if loop.first %}\n{{ message | tojson }}\n  {% endif %}\n  {% generation %}\nx{{ message.content }}\n  {% endgeneration %}\n{% endfor %}",
]


@pytest.mark.parametrize("source", TEMPLATES, ids=range(len(TEMPLATES)))
def test_templates_render_as_in_transformers(source):
    messages = [{"role": "user", "content": " What's an \"owl\"? É "}, {"role": "assistant", "content": "A bird."}, {"role": "user", "content": "Thanks"}]
    for n in (1, 3):
        want = render_jinja_template([messages[:n]], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")[0][0]
        got = ChatTemplate(source=source, bos_token="<s>", eos_token="</s>").render(messages[:n], " Sure:")
        assert got == want + " Sure:" and got.tail.endswith(" Sure:") and want.endswith(got.tail[:-6])
