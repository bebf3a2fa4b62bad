/* _C.EncoderParams: every weight of an encoder in one block, by name. */
#include "python/pyharmaug.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/tensor_file.h"
#include "models/encoder.h"
#include "models/encoder_layout.h"
#include "python/batch.h"

typedef struct params_object {
    PyObject_HEAD
    ha_encoder_params *params;
} params_object;

/* -- shared with the other files of this folder -- */

ha_encoder_params *
py_encoder_params(PyObject *module, PyObject *obj)
{
    const module_state *state = (module_state *)PyModule_GetState(module);
    if (!PyObject_TypeCheck(obj, (PyTypeObject *)state->EncoderParams)) {
        PyErr_Format(PyExc_TypeError, "params must be a harmaug._C.EncoderParams, got %R", (PyObject *)Py_TYPE(obj));
        return NULL;
    }
    return ((params_object *)obj)->params;
}

PyObject *
py_encoder_config(const ha_encoder_config *c)
{
    PyObject *config = Py_BuildValue("{s:s,s:s,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:d}", "model_type", c->model_type, "architecture", c->architecture,
                         "vocab_size", (Py_ssize_t)c->vocab_size, "hidden_size", (Py_ssize_t)c->hidden_size,
                         "num_hidden_layers", (Py_ssize_t)c->n_layers, "num_attention_heads", (Py_ssize_t)c->n_heads,
                         "intermediate_size", (Py_ssize_t)c->intermediate_size,
                         "max_position_embeddings", (Py_ssize_t)c->max_position_embeddings, "max_tokens", (Py_ssize_t)c->max_tokens,
                         "type_vocab_size", (Py_ssize_t)c->type_vocab_size, "num_labels", (Py_ssize_t)c->num_labels,
                         "layer_norm_eps", (double)c->layer_norm_eps);
    PyObject *types = config != NULL && c->window > 0 ? PyList_New((Py_ssize_t)c->n_layers) : NULL;
    for (size_t i = 0; types != NULL && i < c->n_layers; i++) {
        PyObject *name = PyUnicode_FromString(c->windowed[i] ? "sliding_attention" : "full_attention");
        if (name == NULL || PyList_SetItem(types, (Py_ssize_t)i, name) < 0) {
            Py_CLEAR(types);
        }
    }
    if (PyErr_Occurred() || (types != NULL && PyDict_SetItemString(config, "layer_types", types) < 0)) {
        Py_CLEAR(config);
    }
    Py_XDECREF(types);
    return config;
}

static PyObject *
wrap(PyTypeObject *type, ha_encoder_params *params)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    params_object *self = (params_object *)allocate(type, 0);
    if (self == NULL) {
        ha_encoder_params_free(params);
        return NULL;
    }
    self->params = params;
    return (PyObject *)self;
}

static void
params_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ha_encoder_params_free(((params_object *)self)->params);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* -- reading, copying, writing -- */

/* A sequence of layer numbers; *out is for PyMem_Free. None: no selection. */
static int
layer_list(PyObject *obj, size_t **out, size_t *count)
{
    *out = NULL;
    *count = 0;
    if (obj == Py_None) {
        return 1;
    }
    PyObject *items = PySequence_Tuple(obj);
    if (items == NULL) {
        return 0;
    }
    *count = (size_t)PyTuple_Size(items);
    *out = PyMem_Calloc(*count + 1, sizeof(**out));
    for (size_t i = 0; *out != NULL && i < *count; i++) {
        (*out)[i] = PyLong_AsSize_t(PyTuple_GetItem(items, (Py_ssize_t)i));
        if ((*out)[i] == (size_t)-1 && PyErr_Occurred()) {
            PyMem_Free(*out);
            *out = NULL;
        }
    }
    Py_DECREF(items);
    if (*out == NULL && !PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    return *out != NULL;
}

PyDoc_STRVAR(read_doc,
"read(folder, *, layers=None, new_head=0, seed=0)\n"
"--\n\n"
"Read the weights of a Hugging Face folder as float32.\n\n"
"Parameters\n"
"----------\n"
"folder : str or path-like\n"
"    Holds config.json and model.safetensors (or its shards).\n"
"layers : sequence of int, optional\n"
"    Encoder layers to keep, in this order. None keeps all.\n"
"new_head : int, default 0\n"
"    0: the classification head must be in the file. Otherwise a new one with this many labels.\n"
"seed : int, default 0\n"
"    Of the new head's weights.\n\n"
"Raises\n"
"------\n"
"OSError, FormatError\n"
"    Naming the file, the setting or the tensor.\n");

static PyObject *
params_read(PyObject *cls, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"folder", "layers", "new_head", "seed", NULL};
    PyObject *folder = NULL, *layers_obj = Py_None;
    Py_ssize_t new_head = 0;
    unsigned long long seed = 0;
    size_t *layers = NULL, n_kept = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$OnK:read", names, PyUnicode_FSConverter, &folder, &layers_obj, &new_head, &seed)) {
        return NULL;
    }
    if (new_head < 0 || new_head > 4096) {
        PyErr_Format(PyExc_ValueError, "read: new_head must be from 0 to 4096 labels, got %zd", new_head);
        Py_DECREF(folder);
        return NULL;
    }
    if (!layer_list(layers_obj, &layers, &n_kept)) {
        Py_DECREF(folder);
        return NULL;
    }
    ha_encoder_params *params = NULL;
    ha_error err;
    ha_status status;
    const char *path = PyBytes_AsString(folder);
    Py_BEGIN_ALLOW_THREADS
    status = ha_encoder_params_read(path, layers, n_kept, (size_t)new_head, seed, &params, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(folder);
    PyMem_Free(layers);
    if (status != HA_OK) {
        return py_raise(PyType_GetModule((PyTypeObject *)cls), status, &err);
    }
    return wrap((PyTypeObject *)cls, params);
}

static PyObject *
params_copy(PyObject *self, PyObject *unused)
{
    (void)unused;
    ha_encoder_params *params = NULL;
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ha_encoder_params_copy(((params_object *)self)->params, &params, &err);
    Py_END_ALLOW_THREADS
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(Py_TYPE(self)), status, &err);
    }
    return wrap(Py_TYPE(self), params);
}

PyDoc_STRVAR(write_doc,
"write(path, *, dtype='float32', embeddings=None)\n"
"--\n\n"
"Write a model.safetensors: whole, or not at all.\n\n"
"Parameters\n"
"----------\n"
"path : str or path-like\n"
"dtype : str, default 'float32'\n"
"    float32 or float16; bfloat16 or int8: what an Encoder of that dtype has in it, and the rest in float32.\n"
"embeddings : str, optional\n"
"    'int4' with dtype int8: word embeddings of 4 bits. None: as the other weights.\n\n"
"Raises\n"
"------\n"
"OSError\n"
"    With the path and the cause.\n");

static PyObject *
params_write(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "dtype", "embeddings", NULL};
    static const struct { const char *name; ha_dtype dtype; } known[] = {
        {"float32", HA_F32}, {"float16", HA_F16}, {"bfloat16", HA_BF16}, {"int8", HA_I8},
    };
    PyObject *path = NULL;
    const char *dtype = "float32", *embeddings = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$sz:write", names, PyUnicode_FSConverter, &path, &dtype, &embeddings)) {
        return NULL;
    }
    size_t which = 0;
    while (which < sizeof(known) / sizeof(known[0]) && strcmp(dtype, known[which].name) != 0) {
        which++;
    }
    if (which == sizeof(known) / sizeof(known[0])) {
        PyErr_Format(PyExc_ValueError, "write: dtype must be float32, float16, bfloat16 or int8, got '%s'", dtype);
        Py_DECREF(path);
        return NULL;
    }
    if (embeddings != NULL && (known[which].dtype != HA_I8 || strcmp(embeddings, "int4") != 0)) {
        PyErr_Format(PyExc_ValueError, "write: embeddings must be None, or 'int4' with dtype int8, got '%s' with %s", embeddings, dtype);
        Py_DECREF(path);
        return NULL;
    }
    ha_error err;
    ha_status status;
    const char *file = PyBytes_AsString(path);
    Py_BEGIN_ALLOW_THREADS
    status = ha_encoder_params_write(((params_object *)self)->params, file, known[which].dtype, embeddings != NULL, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(Py_TYPE(self)), status, &err);
    }
    Py_RETURN_NONE;
}

/* -- single parameters -- */

/* The parameter of this name, or NULL with KeyError (TypeError) set. */
static const ha_param *
find_param(PyObject *self, PyObject *name)
{
    PyObject *bytes = PyUnicode_Check(name) ? PyUnicode_AsUTF8String(name) : NULL;
    if (bytes == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "a parameter's name must be str");
        }
        return NULL;
    }
    const char *text = PyBytes_AsString(bytes);
    const ha_param *param = strlen(text) == (size_t)PyBytes_Size(bytes) ? ha_encoder_params_find(((params_object *)self)->params, text) : NULL;
    Py_DECREF(bytes);
    if (param == NULL) {
        PyErr_SetObject(PyExc_KeyError, name);
    }
    return param;
}

static PyObject *
shape_tuple(int ndim, const size_t *shape)
{
    PyObject *tuple = PyTuple_New(ndim);
    for (int i = 0; tuple != NULL && i < ndim; i++) {
        PyObject *extent = PyLong_FromSize_t(shape[i]);
        if (extent == NULL || PyTuple_SetItem(tuple, i, extent) < 0) {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

/* A float32 array of exactly this shape, or NULL with ValueError set. */
static PyArrayObject *
array_of(PyObject *obj, const char *what, const char *name, int ndim, const size_t *shape)
{
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_OTF(obj, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (array == NULL) {
        return NULL;
    }
    int same = PyArray_NDIM(array) == ndim;
    for (int i = 0; i < ndim && same; i++) {
        same = (size_t)PyArray_DIM(array, i) == shape[i];
    }
    if (!same) {
        PyObject *got = PyObject_GetAttrString((PyObject *)array, "shape"), *wanted = shape_tuple(ndim, shape);
        if (got != NULL && wanted != NULL) {
            PyErr_Format(PyExc_ValueError, "%s: '%s' must have shape %S, got %S", what, name, wanted, got);
        }
        Py_XDECREF(wanted);
        Py_XDECREF(got);
        Py_CLEAR(array);
    }
    return array;
}

static PyObject *
params_shape(PyObject *self, PyObject *name)
{
    const ha_param *param = find_param(self, name);
    return param != NULL ? shape_tuple(param->ndim, param->shape) : NULL;
}

static PyObject *
params_depth(PyObject *self, PyObject *name)
{
    const ha_encoder_params *params = ((params_object *)self)->params;
    const ha_param *param = find_param(self, name);
    return param != NULL ? PyLong_FromSize_t(params->config.n_layers + 1 - ha_param_depth(&params->config, (size_t)(param - params->items))) : NULL;
}

static PyObject *
params_get(PyObject *self, PyObject *name)
{
    const ha_param *param = find_param(self, name);
    if (param == NULL) {
        return NULL;
    }
    const npy_intp dims[3] = {(npy_intp)param->shape[0], (npy_intp)param->shape[1], (npy_intp)param->shape[2]};
    PyObject *array = PyArray_SimpleNew(param->ndim, dims, NPY_FLOAT32);
    if (array != NULL) {
        memcpy(PyArray_DATA((PyArrayObject *)array), ((params_object *)self)->params->data + param->offset, param->size * sizeof(float));
    }
    return array;
}

static PyObject *
params_set(PyObject *self, PyObject *args)
{
    PyObject *name, *value;
    if (!PyArg_ParseTuple(args, "OO:set", &name, &value)) {
        return NULL;
    }
    const ha_param *param = find_param(self, name);
    PyArrayObject *array = param != NULL ? array_of(value, "set", param->name, param->ndim, param->shape) : NULL;
    if (array == NULL) {
        return NULL;
    }
    memcpy(((params_object *)self)->params->data + param->offset, PyArray_DATA(array), param->size * sizeof(float));
    Py_DECREF(array);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(add_low_rank_doc,
"add_low_rank(name, B, A, scale, /)\n"
"--\n\n"
"Add scale * B @ A to a weight (Hu et al. 2021, arXiv 2106.09685, eq. 3).\n\n"
"Parameters\n"
"----------\n"
"name : str\n"
"    Of a matrix (n, k).\n"
"B : array_like, shape (n, r)\n"
"A : array_like, shape (r, k)\n"
"scale : float\n"
"    alpha / r.\n");

static PyObject *
params_add_low_rank(PyObject *self, PyObject *args)
{
    PyObject *name, *b_obj, *a_obj, *result = NULL;
    PyArrayObject *b = NULL, *a = NULL;
    double scale;
    if (!PyArg_ParseTuple(args, "OOOd:add_low_rank", &name, &b_obj, &a_obj, &scale)) {
        return NULL;
    }
    const ha_param *param = find_param(self, name);
    if (param == NULL) {
        return NULL;
    }
    if (param->ndim != 2) {
        return PyErr_Format(PyExc_ValueError, "add_low_rank: '%s' is %s, a low-rank update needs a matrix", param->name,
                            param->ndim == 1 ? "a vector" : "no matrix");
    }
    b = (PyArrayObject *)PyArray_FROM_OTF(b_obj, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (b == NULL) {
        goto done;
    }
    const size_t rank = PyArray_NDIM(b) == 2 ? (size_t)PyArray_DIM(b, 1) : 0;
    if (rank == 0 || (size_t)PyArray_DIM(b, 0) != param->shape[0]) {
        PyErr_Format(PyExc_ValueError, "add_low_rank: B of '%s' must have shape (%zu, rank)", param->name, param->shape[0]);
        goto done;
    }
    const size_t a_shape[2] = {rank, param->shape[1]};
    a = array_of(a_obj, "add_low_rank: A of", param->name, 2, a_shape);
    if (a == NULL) {
        goto done;
    }
    const ha_kernels *kernels = ha_kernels_get();
    const ha_gemm gemm = {
        .m = param->shape[0], .n = param->shape[1], .k = rank, .alpha = (float)scale, .beta = 1.0f,
        .a = PyArray_DATA(b), .a_row = (ptrdiff_t)rank, .a_col = 1, .b = PyArray_DATA(a), .b_row = (ptrdiff_t)param->shape[1], .b_col = 1,
        .c = ((params_object *)self)->params->data + param->offset, .ldc = param->shape[1],
    };
    void *scratch = malloc(kernels->gemm_scratch_bytes(gemm.m, gemm.n, gemm.k, 0) + 1);
    if (scratch == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    kernels->gemm_f32(&gemm, scratch, 0);
    Py_END_ALLOW_THREADS
    free(scratch);
    result = Py_NewRef(Py_None);
done:
    Py_XDECREF(b);
    Py_XDECREF(a);
    return result;
}

PyDoc_STRVAR(gradients_doc,
"gradients(ids, offsets, dlogits, type_ids=None, *, dropout=0, attention_dropout=dropout, classifier_dropout=dropout, seed=0, step=0, n_threads=0,\n"
"          precision='float32')\n"
"--\n\n"
"The forward and the backward pass of training over one ragged batch.\n\n"
"Parameters\n"
"----------\n"
"ids, offsets, type_ids : array_like of int\n"
"    As for Encoder.logits().\n"
"dlogits : array_like, shape (n, num_labels)\n"
"    Gradient of the loss with respect to the logits.\n"
"dropout, attention_dropout, classifier_dropout : float, default 0\n"
"    As for Trainer; masks are drawn by counter from (seed, step).\n"
"precision : 'float32' or 'bfloat16'\n"
"    As for Trainer.\n\n"
"Returns\n"
"-------\n"
"logits : ndarray, shape (n, num_labels), float32\n"
"gradient : ndarray, shape (size,), float32\n"
"    Of every parameter, flat, in the order of `names`.\n"
"word_rows : ndarray, shape (vocab_size,), bool\n"
"    The word embedding rows that the batch touches.\n");

static PyObject *
params_gradients(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ids", "offsets", "dlogits", "type_ids", "dropout", "attention_dropout", "classifier_dropout", "seed", "step", "n_threads", "precision",
                            NULL};
    const ha_encoder_params *params = ((params_object *)self)->params;
    PyObject *ids, *offsets, *dlogits_obj, *types = Py_None, *result = NULL;
    PyObject *logits = NULL, *grads = NULL, *words = NULL;
    PyArrayObject *dlogits = NULL;
    py_batch rows = {0};
    ha_tape *tape = NULL;
    ha_dropouts dropout = {.attention = NAN, .classifier = NAN};
    unsigned long long seed = 0, step = 0;
    int n_threads = 0, bf16 = 0;
    const char *precision = "float32";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|O$fffKKis:gradients", names, &ids, &offsets, &dlogits_obj, &types,
                                     &dropout.hidden, &dropout.attention, &dropout.classifier, &seed, &step, &n_threads, &precision) ||
        !py_precision(precision, &bf16)) {
        return NULL;
    }
    py_dropouts_complete(&dropout);
    if (!py_batch_open(ids, offsets, types, &rows)) {
        goto done;
    }
    const size_t wanted[2] = {rows.batch.n_rows, params->config.num_labels};
    if ((dlogits = array_of(dlogits_obj, "gradients", "dlogits", 2, wanted)) == NULL) {
        goto done;
    }
    const npy_intp shape[2] = {(npy_intp)rows.batch.n_rows, (npy_intp)params->config.num_labels};
    const npy_intp total = (npy_intp)params->total, vocab = (npy_intp)params->config.vocab_size;
    logits = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    grads = PyArray_ZEROS(1, &total, NPY_FLOAT32, 0);
    words = PyArray_ZEROS(1, &vocab, NPY_BOOL, 0);
    if (logits == NULL || grads == NULL || words == NULL || (tape = ha_tape_new(bf16)) == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_NoMemory();
        }
        goto done;
    }
    float *y = PyArray_DATA((PyArrayObject *)logits), *g = PyArray_DATA((PyArrayObject *)grads);
    const float *dy = PyArray_DATA(dlogits);
    uint8_t *touched = PyArray_DATA((PyArrayObject *)words);
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ha_encoder_train_forward(params, &rows.batch, &dropout, seed, step, tape, y, n_threads, &err);
    if (status == HA_OK) {
        status = ha_encoder_train_backward(params, &rows.batch, tape, dy, g, NULL, touched, n_threads, &err);
    }
    Py_END_ALLOW_THREADS
    result = status == HA_OK ? PyTuple_Pack(3, logits, grads, words) : py_raise(PyType_GetModule(Py_TYPE(self)), status, &err);
done:
    ha_tape_free(tape);
    py_batch_close(&rows);
    Py_XDECREF(dlogits);
    Py_XDECREF(logits);
    Py_XDECREF(grads);
    Py_XDECREF(words);
    return result;
}

static PyObject *
params_names(PyObject *self, void *unused)
{
    (void)unused;
    const ha_encoder_params *params = ((params_object *)self)->params;
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names != NULL && i < params->count; i++) {
        if (params->items[i].size == 0) {
            continue;
        }
        PyObject *name = PyUnicode_FromString(params->items[i].name);
        if (name == NULL || PyList_Append(names, name) < 0) {
            Py_CLEAR(names);
        }
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *
params_config(PyObject *self, void *unused)
{
    (void)unused;
    return py_encoder_config(&((params_object *)self)->params->config);
}

static PyObject *
params_size(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(((params_object *)self)->params->total);
}

static PyMethodDef params_methods[] = {
    {"read", (PyCFunction)(void (*)(void))params_read, METH_VARARGS | METH_KEYWORDS | METH_CLASS, read_doc},
    {"copy", params_copy, METH_NOARGS, PyDoc_STR("copy()\n--\n\nAnother block with the same weights.")},
    {"write", (PyCFunction)(void (*)(void))params_write, METH_VARARGS | METH_KEYWORDS, write_doc},
    {"shape", params_shape, METH_O, PyDoc_STR("shape(name, /)\n--\n\nShape of a parameter. KeyError: no such one.")},
    {"depth", params_depth, METH_O,
     PyDoc_STR("depth(name, /)\n--\n\nHow many levels a parameter stands below the head: 0 the head itself, 1 the last layer, the number of layers and 1 the "
               "embeddings.")},
    {"get", params_get, METH_O, PyDoc_STR("get(name, /)\n--\n\nA copy of a parameter, float32.")},
    {"set", params_set, METH_VARARGS, PyDoc_STR("set(name, value, /)\n--\n\nReplace a parameter by an array of the same shape.")},
    {"add_low_rank", params_add_low_rank, METH_VARARGS, add_low_rank_doc},
    {"gradients", (PyCFunction)(void (*)(void))params_gradients, METH_VARARGS | METH_KEYWORDS, gradients_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef params_getters[] = {
    {"names", params_names, NULL, PyDoc_STR("Names of the parameters, as in a transformers checkpoint, in the block's order."), NULL},
    {"config", params_config, NULL, PyDoc_STR("Extents under their names in BERT's config.json, the class in transformers, the most tokens of a row and, of a model with windows, the type of each layer, as a new dict."), NULL},
    {"size", params_size, NULL, PyDoc_STR("Number of weights."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot params_slots[] = {
    {Py_tp_dealloc, params_dealloc},
    {Py_tp_methods, params_methods},
    {Py_tp_getset, params_getters},
    {Py_tp_doc, (void *)PyDoc_STR("Every weight of an encoder as float32, by name; EncoderParams.read() makes one.")},
    {0, NULL},
};

static PyType_Spec params_spec = {
    .name = "harmaug._C.EncoderParams",
    .basicsize = sizeof(params_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = params_slots,
};

int
py_add_encoder_params(PyObject *module)
{
    module_state *state = (module_state *)PyModule_GetState(module);
    state->EncoderParams = PyType_FromModuleAndSpec(module, &params_spec, NULL);
    return state->EncoderParams != NULL ? PyModule_AddType(module, (PyTypeObject *)state->EncoderParams) : -1;
}
