/* Sources: transformers' configuration and modeling files of each family (names, defaults, options); llama.cpp's gguf-py/gguf/constants.py and
 * convert_hf_to_gguf.py (names and the order of rows in GGUF). */
#include "models/decoder_layout.h"

#include <stdio.h>
#include <string.h>

#include "models/decoder.h"

const ha_decoder_names ha_gguf_names = {
    "", "token_embd", "position_embd", "output_norm", "blk", "output", {
        [HA_ROLE_ATTENTION_NORM] = "attn_norm", [HA_ROLE_ATTENTION_POST_NORM] = "post_attention_norm",
        [HA_ROLE_MLP_NORM] = "ffn_norm", [HA_ROLE_MLP_POST_NORM] = "post_ffw_norm",
        [HA_ROLE_QUERY_NORM] = "attn_q_norm", [HA_ROLE_KEY_NORM] = "attn_k_norm",
        [HA_ROLE_QKV] = "attn_qkv", [HA_ROLE_QUERY] = "attn_q", [HA_ROLE_KEY] = "attn_k", [HA_ROLE_VALUE] = "attn_v", [HA_ROLE_OUTPUT] = "attn_output",
        [HA_ROLE_GATE] = "ffn_gate", [HA_ROLE_UP] = "ffn_up", [HA_ROLE_DOWN] = "ffn_down",
    },
};

#define LLAMA_MATRICES \
    [HA_ROLE_QUERY] = "self_attn.q_proj", [HA_ROLE_KEY] = "self_attn.k_proj", [HA_ROLE_VALUE] = "self_attn.v_proj", \
    [HA_ROLE_OUTPUT] = "self_attn.o_proj", [HA_ROLE_GATE] = "mlp.gate_proj", [HA_ROLE_UP] = "mlp.up_proj", [HA_ROLE_DOWN] = "mlp.down_proj"

static const ha_decoder_names llama_names = {
    "model.", "embed_tokens", NULL, "norm", "layers", "lm_head", {
        LLAMA_MATRICES, [HA_ROLE_ATTENTION_NORM] = "input_layernorm", [HA_ROLE_MLP_NORM] = "post_attention_layernorm",
        [HA_ROLE_QUERY_NORM] = "self_attn.q_norm", [HA_ROLE_KEY_NORM] = "self_attn.k_norm",
    },
};
static const ha_decoder_names gemma2_names = {
    "model.", "embed_tokens", NULL, "norm", "layers", "lm_head", {
        LLAMA_MATRICES, [HA_ROLE_ATTENTION_NORM] = "input_layernorm", [HA_ROLE_ATTENTION_POST_NORM] = "post_attention_layernorm",
        [HA_ROLE_MLP_NORM] = "pre_feedforward_layernorm", [HA_ROLE_MLP_POST_NORM] = "post_feedforward_layernorm",
    },
};
static const ha_decoder_names gpt2_names = {
    "transformer.", "wte", "wpe", "ln_f", "h", "lm_head", {
        [HA_ROLE_ATTENTION_NORM] = "ln_1", [HA_ROLE_MLP_NORM] = "ln_2", [HA_ROLE_QKV] = "attn.c_attn", [HA_ROLE_OUTPUT] = "attn.c_proj",
        [HA_ROLE_UP] = "mlp.c_fc", [HA_ROLE_DOWN] = "mlp.c_proj",
    },
};

static const ha_decoder_keys llama_keys = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act",
};
static const ha_decoder_keys gemma2_keys = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "rms_norm_eps", "hidden_activation",
};
static const ha_decoder_keys gpt2_keys = {"n_embd", "n_inner", "n_layer", "n_head", "n_positions", "layer_norm_epsilon", "activation_function"};

#define GEMMA (HA_NORM_LESS_ONE | HA_SCALED_EMBEDDING | HA_TIED | HA_OPTIONAL_BIAS)

static const ha_decoder_family families[] = {
    {"llama", "llama", &llama_names, &llama_keys, HA_ROTARY_PAIRS | HA_OPTIONAL_BIAS | HA_OPTIONAL_MLP_BIAS, "silu",
     32000, 4096, 11008, 32, 32, 0, 0, 2048, 0, 1e-6},
    {"mistral", NULL, &llama_names, &llama_keys, HA_SLIDE_ALL, "silu", 32000, 4096, 14336, 32, 32, 8, 0, 4096 * 32, 4096, 1e-6},
    {"qwen2", "qwen2", &llama_names, &llama_keys, HA_QKV_BIAS | HA_SLIDE_LATE, "silu", 151936, 4096, 22016, 32, 32, 32, 0, 32768, 4096, 1e-6},
    {"qwen3", "qwen3", &llama_names, &llama_keys, HA_HEAD_NORMS | HA_OPTIONAL_BIAS | HA_SLIDE_LATE, "silu",
     151936, 4096, 22016, 32, 32, 32, 128, 32768, 4096, 1e-6},
    {"gemma", "gemma", &llama_names, &llama_keys, GEMMA | HA_GELU_IS_TANH, "gelu_pytorch_tanh", 256000, 3072, 24576, 28, 16, 16, 256, 8192, 0, 1e-6},
    {"gemma2", "gemma2", &gemma2_names, &gemma2_keys, GEMMA | HA_POST_NORMS | HA_SLIDE_EVEN | HA_SOFTCAPS, "gelu_pytorch_tanh",
     256000, 2304, 9216, 26, 8, 4, 256, 8192, 4096, 1e-6},
    {"gpt2", "gpt2", &gpt2_names, &gpt2_keys, HA_LAYER_NORM | HA_LEARNED_POSITIONS | HA_UNGATED | HA_CONV1D | HA_ALL_BIAS | HA_TIED, "gelu_new",
     50257, 768, 0, 12, 12, 0, 0, 1024, 0, 1e-5},
};

#define N_FAMILIES (sizeof(families) / sizeof(families[0]))

const ha_decoder_family *
ha_decoder_family_named(const char *name, size_t length, int gguf)
{
    for (size_t i = 0; i < N_FAMILIES; i++) {
        const char *known = gguf ? families[i].architecture : families[i].model_type;
        if (known != NULL && strlen(known) == length && memcmp(known, name, length) == 0) {
            return &families[i];
        }
    }
    return NULL;
}

const char *
ha_decoder_families(char out[128], int gguf)
{
    size_t used = 0;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        const char *name = gguf ? families[i].architecture : families[i].model_type;
        if (name != NULL && used < 100) {
            used += (size_t)snprintf(out + used, 128 - used, "%s%s", used > 0 ? ", " : "", name);
        }
    }
    return out;
}
