#include "python/causal_lm.h"

#include <stdlib.h>
#include <string.h>

#include "models/decoder_layout.h"

#define LOGITS_ROWS 256     /* tokens a forward pass of logits(): the interpreter checks for signals between passes */

PyArrayObject *
py_ids_array(PyObject *obj, const char *what)
{
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_O(obj);
    if (array != NULL && PyArray_SIZE(array) == 0) {     /* an empty list is an empty array of float64 */
        Py_DECREF(array);
        npy_intp zero = 0;
        return (PyArrayObject *)PyArray_SimpleNew(1, &zero, NPY_INT64);
    }
    PyArrayObject *ids = array != NULL ? (PyArrayObject *)PyArray_FROM_OTF((PyObject *)array, NPY_INT64, NPY_ARRAY_IN_ARRAY) : NULL;
    Py_XDECREF(array);
    if (ids != NULL && PyArray_NDIM(ids) != 1) {
        PyErr_Format(PyExc_ValueError, "%s must be one row of token ids, got %d dimensions", what, PyArray_NDIM(ids));
        Py_CLEAR(ids);
    }
    return ids;
}

const causal_lm_object *
py_causal_lm(PyObject *module, PyObject *obj)
{
    const module_state *state = (module_state *)PyModule_GetState(module);
    if (!PyObject_TypeCheck(obj, (PyTypeObject *)state->CausalLM)) {
        PyErr_Format(PyExc_TypeError, "lm must be a harmaug._C.CausalLM, got %R", (PyObject *)Py_TYPE(obj));
        return NULL;
    }
    return (const causal_lm_object *)obj;
}

/* -- new -- */

static const char *const formats[] = {[HA_WEIGHT_F32] = "float32", [HA_WEIGHT_BF16] = "bfloat16", [HA_WEIGHT_Q8] = "int8", [HA_WEIGHT_Q4] = "int4"};

/* NULL is the default: bfloat16 where the CPU multiplies it (twice float32's rate, half its bytes), else float32. */
static int
parse_dtype(const char *name, ha_weight_format *out)
{
    if (name == NULL) {
        *out = strcmp(ha_kernels_get()->isa, "avx512bf16") == 0 ? HA_WEIGHT_BF16 : HA_WEIGHT_F32;
    }
    else {
        size_t i = 0;
        while (i < sizeof(formats) / sizeof(formats[0]) && (formats[i] == NULL || strcmp(name, formats[i]) != 0)) {
            i++;
        }
        if (i == sizeof(formats) / sizeof(formats[0])) {
            PyErr_Format(PyExc_ValueError, "dtype must be None, 'float32', 'bfloat16', 'int8' or 'int4', got '%s'", name);
            return -1;
        }
        *out = (ha_weight_format)i;
    }
    return 0;
}

static int
fs_path(PyObject *object, void *out)
{
    return PyUnicode_FSConverter(object, out);
}

static PyObject *
causal_lm_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "dtype", "n_threads", NULL};
    PyObject *path = NULL;
    const char *dtype = NULL;
    int n_threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$zi:CausalLM", names, fs_path, &path, &dtype, &n_threads)) {
        return NULL;
    }
    ha_weight_format format = HA_WEIGHT_F32;
    if (parse_dtype(dtype, &format) < 0) {
        Py_DECREF(path);
        return NULL;
    }
    const char *bytes = PyBytes_AsString(path);
    ha_decoder *decoder = NULL;
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ha_decoder_open(bytes, format, n_threads, &decoder, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(type), status, &err);
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    causal_lm_object *self = (causal_lm_object *)alloc(type, 0);
    if (self == NULL) {
        ha_decoder_free(decoder);
        return NULL;
    }
    self->decoder = decoder;
    self->n_threads = n_threads;
    return (PyObject *)self;
}

static void
causal_lm_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ha_decoder_free(((causal_lm_object *)self)->decoder);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* -- logits -- */

/* Rows [at, at + count) of the logits of ids (n,). */
static ha_status
logits_rows(const causal_lm_object *lm, ha_decoder_state *state, ha_kv_cache *cache, const int32_t *ids, size_t count, float *out, ha_error *err)
{
    size_t rows[LOGITS_ROWS];
    for (size_t i = 0; i < count; i++) {
        rows[i] = i;
    }
    const ha_segment segment = {ids, count, NULL, cache};
    ha_status status = ha_decoder_forward(lm->decoder, state, &segment, 1, err);
    return status == HA_OK ? ha_decoder_head(lm->decoder, state, rows, count, out, err) : status;
}

int
py_narrow_ids(const int64_t *ids, size_t n, size_t vocab_size, int32_t *out)
{
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint64_t)ids[i] >= vocab_size) {
            PyErr_Format(PyExc_ValueError, "token %zu: id %lld lies outside the vocabulary of %zu", i, (long long)ids[i], vocab_size);
            return -1;
        }
        out[i] = (int32_t)ids[i];
    }
    return 0;
}

static PyObject *
causal_lm_logits(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t n_args, PyObject *keywords)
{
    const causal_lm_object *lm = (const causal_lm_object *)self;
    const ha_decoder_config *c = ha_decoder_config_of(lm->decoder);
    PyArrayObject *wide = NULL, *out = NULL;
    int32_t *ids = NULL;
    ha_kv_cache *cache = NULL;
    ha_decoder_state *state = NULL;
    ha_error err;
    ha_status status = HA_OK;
    if (n_args != 1 || (keywords != NULL && PyTuple_Size(keywords) > 0)) {
        PyErr_SetString(PyExc_TypeError, "logits(ids, /) takes one argument");
        return NULL;
    }
    if ((wide = py_ids_array(args[0], "logits: ids")) == NULL) {
        return NULL;
    }
    const size_t n = (size_t)PyArray_SIZE(wide), chunk = n < LOGITS_ROWS ? n : LOGITS_ROWS;
    const int n_threads = py_threads(lm->n_threads);
    if (n_threads == 0) {
        goto done;
    }
    if (n == 0 || n > c->max_position_embeddings) {
        status = ha_fail(&err, HA_ERR_VALUE, "logits: %zu tokens; the model's context takes 1..%zu", n, c->max_position_embeddings);
        goto done;
    }
    ids = malloc(n * sizeof(*ids));
    if (ids == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (py_narrow_ids(PyArray_DATA(wide), n, c->vocab_size, ids) < 0) {
        goto done;
    }
    const npy_intp dims[2] = {(npy_intp)n, (npy_intp)c->vocab_size};
    if ((out = (PyArrayObject *)PyArray_SimpleNew(2, dims, NPY_FLOAT32)) == NULL) {
        goto done;
    }
    if ((status = ha_decoder_cache_new(lm->decoder, n, &cache, &err)) != HA_OK ||
        (status = ha_decoder_state_new(lm->decoder, chunk, n_threads, &state, &err)) != HA_OK) {
        Py_CLEAR(out);
        goto done;
    }
    float *data = PyArray_DATA(out);
    for (size_t at = 0; at < n; at += chunk) {
        const size_t count = n - at < chunk ? n - at : chunk;
        Py_BEGIN_ALLOW_THREADS
        status = logits_rows(lm, state, cache, ids + at, count, data + at * c->vocab_size, &err);
        Py_END_ALLOW_THREADS
        if (status != HA_OK || PyErr_CheckSignals() < 0) {
            Py_CLEAR(out);
            break;
        }
    }
done:
    ha_kv_cache_free(cache);
    ha_decoder_state_free(state);
    free(ids);
    Py_XDECREF(wide);
    return status != HA_OK ? py_raise(PyType_GetModule(cls), status, &err) : (PyObject *)out;
}

/* -- what it is -- */

static PyObject *
causal_lm_config(PyObject *self, void *unused)
{
    (void)unused;
    const ha_decoder_config *c = ha_decoder_config_of(((causal_lm_object *)self)->decoder);
    PyObject *stop_ids = PyList_New(0);
    for (size_t i = 0; stop_ids != NULL && i < c->n_stop_ids; i++) {
        PyObject *id = PyLong_FromLong(c->stop_ids[i]);
        if (id == NULL || PyList_Append(stop_ids, id) < 0) {
            Py_CLEAR(stop_ids);
        }
        Py_XDECREF(id);
    }
    if (stop_ids == NULL) {
        return NULL;
    }
    return Py_BuildValue("{s:s,s:O,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:d,s:d,s:O,s:N}",
        "model_type", c->family->model_type, "gguf", c->gguf ? Py_True : Py_False,
        "vocab_size", (Py_ssize_t)c->vocab_size, "hidden_size", (Py_ssize_t)c->hidden_size,
        "num_hidden_layers", (Py_ssize_t)c->n_layers, "num_attention_heads", (Py_ssize_t)c->n_heads,
        "num_key_value_heads", (Py_ssize_t)c->n_kv_heads, "head_dim", (Py_ssize_t)c->head_dim,
        "intermediate_size", (Py_ssize_t)c->intermediate_size, "max_position_embeddings", (Py_ssize_t)c->max_position_embeddings,
        "sliding_window", (Py_ssize_t)c->sliding_window, c->family->keys->eps, (double)c->norm_eps, "rope_theta", c->rope_theta,
        "tie_word_embeddings", c->tied ? Py_True : Py_False, "stop_ids", stop_ids);
}

static PyObject *
causal_lm_dtype(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(formats[ha_decoder_format(((causal_lm_object *)self)->decoder)]);
}

static PyObject *
causal_lm_weight_bytes(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(ha_decoder_weight_bytes(((causal_lm_object *)self)->decoder));
}

static PyMethodDef causal_lm_methods[] = {
    {"logits", (PyCFunction)(void (*)(void))causal_lm_logits, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("logits(ids, /)\n--\n\nNext-token logits after each prefix of ids: float32 (len(ids), vocab_size).")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef causal_lm_getters[] = {
    {"config", causal_lm_config, NULL, PyDoc_STR("The model's configuration, as a new dict."), NULL},
    {"dtype", causal_lm_dtype, NULL, PyDoc_STR("The compute format of the weights."), NULL},
    {"weight_bytes", causal_lm_weight_bytes, NULL, PyDoc_STR("Bytes of the weights in the compute format."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(causal_lm_doc,
"CausalLM(path, *, dtype=None, n_threads=0)\n"
"--\n\n"
"A decoder (llama, mistral, qwen2, qwen3, gemma, gemma2, gpt2) from a .gguf file or a Hugging Face folder.\n\n"
"Parameters\n"
"----------\n"
"path : str or path-like\n"
"dtype : {None, 'float32', 'bfloat16', 'int8', 'int4'}\n"
"    What the weights are widened or rounded to, once. None: bfloat16 where the CPU multiplies it, else float32. int8, int4: in groups of 32 along a\n"
"    row, and so is the input of every matrix, to 8 bits; a GGUF file's own Q8_0, and Q4_0 and Q4_1, stay as they are.\n"
"n_threads : int, default 0\n"
"    0 means the library default. No result depends on it.\n\n"
"Raises\n"
"------\n"
"OSError\n"
"    If a file can't be opened.\n"
"FormatError\n"
"    If it breaks its format, or asks for what this library does not honour exactly.\n");

static PyType_Slot causal_lm_slots[] = {
    {Py_tp_new, causal_lm_new},
    {Py_tp_dealloc, causal_lm_dealloc},
    {Py_tp_methods, causal_lm_methods},
    {Py_tp_getset, causal_lm_getters},
    {Py_tp_doc, (void *)causal_lm_doc},
    {0, NULL},
};

static PyType_Spec causal_lm_spec = {
    .name = "harmaug._C.CausalLM",
    .basicsize = sizeof(causal_lm_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = causal_lm_slots,
};

int
py_add_causal_lm(PyObject *module)
{
    module_state *state = (module_state *)PyModule_GetState(module);
    state->CausalLM = PyType_FromModuleAndSpec(module, &causal_lm_spec, NULL);
    return state->CausalLM != NULL ? PyModule_AddType(module, (PyTypeObject *)state->CausalLM) : -1;
}
