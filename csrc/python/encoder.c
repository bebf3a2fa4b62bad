/* _C.Encoder: the inference form of an encoder with a classification head. */
#include "python/pyharmaug.h"

#include "models/encoder.h"
#include "python/batch.h"

typedef struct encoder_object {
    PyObject_HEAD
    ha_encoder *encoder;
    ha_error note;              /* about the cache */
    ha_weight_format format;
    int n_threads;
} encoder_object;

const ha_encoder *
py_encoder(PyObject *module, PyObject *obj, int *n_threads)
{
    module_state *state = PyModule_GetState(module);
    if (!PyObject_TypeCheck(obj, (PyTypeObject *)state->Encoder)) {
        PyErr_Format(PyExc_TypeError, "expected a _C.Encoder, got %R", (PyObject *)Py_TYPE(obj));
        return NULL;
    }
    *n_threads = ((encoder_object *)obj)->n_threads;
    return ((encoder_object *)obj)->encoder;
}

static int
parse_format(PyObject *module, const char *dtype, ha_weight_format *out)
{
    ha_error err;
    const ha_status status = ha_weight_format_named(dtype, out, &err);
    if (status != HA_OK) {
        py_raise(module, status, &err);
    }
    return status == HA_OK;
}

/* An object around an empty encoder, which open() or from_params() fills. */
static encoder_object *
allocate(PyTypeObject *type, ha_weight_format format, int n_threads)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    encoder_object *self = (encoder_object *)alloc(type, 0);
    if (self != NULL) {
        self->format = format;
        self->n_threads = n_threads;
    }
    return self;
}

static PyObject *
encoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"folder", "dtype", "n_threads", "cache", NULL};
    PyObject *folder = NULL, *cache = NULL;
    const char *dtype = "float32";
    int n_threads = 0;
    ha_weight_format format;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$siO&:Encoder", names, PyUnicode_FSConverter, &folder, &dtype, &n_threads,
                                     py_optional_path, &cache)) {
        return NULL;
    }
    encoder_object *self = parse_format(PyType_GetModule(type), dtype, &format) ? allocate(type, format, n_threads) : NULL;
    if (self != NULL) {
        ha_error err;
        ha_status status;
        const char *path = PyBytes_AsString(folder), *cache_path = cache != NULL ? PyBytes_AsString(cache) : NULL;
        Py_BEGIN_ALLOW_THREADS
        status = ha_encoder_open_cached(path, format, cache_path, &self->encoder, &self->note, &err);
        Py_END_ALLOW_THREADS
        if (status != HA_OK) {
            py_raise(PyType_GetModule(type), status, &err);
            Py_CLEAR(self);
        }
    }
    Py_DECREF(folder);
    Py_XDECREF(cache);
    return (PyObject *)self;
}

PyDoc_STRVAR(from_params_doc,
"from_params(params, *, dtype='float32', n_threads=0)\n"
"--\n\n"
"The inference form of an EncoderParams, which it copies.\n");

static PyObject *
encoder_from_params(PyObject *cls, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"params", "dtype", "n_threads", NULL};
    PyTypeObject *type = (PyTypeObject *)cls;
    PyObject *params_obj, *module = PyType_GetModule(type);
    const char *dtype = "float32";
    int n_threads = 0;
    ha_weight_format format;
    if (module == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O|$si:from_params", names, &params_obj, &dtype, &n_threads)) {
        return NULL;
    }
    const ha_encoder_params *params = py_encoder_params(module, params_obj);
    encoder_object *self = params != NULL && parse_format(module, dtype, &format) ? allocate(type, format, n_threads) : NULL;
    if (self != NULL) {
        ha_error err;
        ha_status status;
        Py_BEGIN_ALLOW_THREADS      /* the caller's arguments keep params alive */
        status = ha_encoder_from_params(params, format, &self->encoder, &err);
        Py_END_ALLOW_THREADS
        if (status != HA_OK) {
            py_raise(module, status, &err);
            Py_CLEAR(self);
        }
    }
    return (PyObject *)self;
}

static void
encoder_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ha_encoder_free(((encoder_object *)self)->encoder);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* -- logits -- */

PyDoc_STRVAR(logits_doc,
"logits(ids, offsets, type_ids=None, *, n_threads=None)\n"
"--\n\n"
"Class scores of a ragged batch. A row's logits do not depend on the others, nor on the number of threads. The GIL is released.\n\n"
"Parameters\n"
"----------\n"
"ids : array_like of int, shape (total,)\n"
"offsets : array_like of int, shape (n + 1,)\n"
"    Row i is ids[offsets[i]:offsets[i + 1]].\n"
"type_ids : array_like of int, shape (total,), optional\n"
"    None: all 0.\n"
"n_threads : int, optional\n"
"    None: that of the encoder.\n\n"
"Returns\n"
"-------\n"
"ndarray, shape (n, num_labels), float32\n\n"
"Raises\n"
"------\n"
"ValueError\n"
"    Naming the row that is empty, too long, or holds an id outside the vocabulary.\n");

static PyObject *
encoder_logits(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ids", "offsets", "type_ids", "n_threads", NULL};
    encoder_object *self = (encoder_object *)obj;
    PyObject *ids_obj, *offsets_obj, *types_obj = Py_None, *threads_obj = Py_None;
    PyArrayObject *out = NULL;
    py_batch rows = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$O:logits", names, &ids_obj, &offsets_obj, &types_obj, &threads_obj)) {
        return NULL;
    }
    const long asked = threads_obj != Py_None ? PyLong_AsLong(threads_obj) : self->n_threads;
    int n_threads = 0;
    if ((asked == -1 && PyErr_Occurred()) || (n_threads = py_threads(asked)) == 0 || !py_batch_open(ids_obj, offsets_obj, types_obj, &rows)) {
        goto done;
    }
    const npy_intp dims[2] = {(npy_intp)rows.batch.n_rows, (npy_intp)ha_encoder_config_of(self->encoder)->num_labels};
    out = (PyArrayObject *)PyArray_SimpleNew(2, dims, NPY_FLOAT32);
    if (out == NULL) {
        goto done;
    }
    float *logits = PyArray_DATA(out);
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ha_encoder_logits(self->encoder, &rows.batch, logits, n_threads, &err);
    Py_END_ALLOW_THREADS
    if (status != HA_OK) {
        py_raise(PyType_GetModule(Py_TYPE(obj)), status, &err);
        Py_CLEAR(out);
    }
done:
    py_batch_close(&rows);
    return (PyObject *)out;
}

static PyObject *
encoder_config(PyObject *self, void *unused)
{
    (void)unused;
    return py_encoder_config(ha_encoder_config_of(((encoder_object *)self)->encoder));
}

static PyObject *
encoder_dtype(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(((encoder_object *)self)->format == HA_WEIGHT_BF16 ? "bfloat16" : "float32");
}

static PyObject *
encoder_n_threads(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((encoder_object *)self)->n_threads);
}

static PyObject *
encoder_cache_note(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_DecodeFSDefault(((encoder_object *)self)->note.message);
}

static PyMethodDef encoder_methods[] = {
    {"from_params", (PyCFunction)(void (*)(void))encoder_from_params, METH_VARARGS | METH_KEYWORDS | METH_CLASS, from_params_doc},
    {"logits", (PyCFunction)(void (*)(void))encoder_logits, METH_VARARGS | METH_KEYWORDS, logits_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef encoder_getters[] = {
    {"config", encoder_config, NULL, PyDoc_STR("Extents under their names in BERT's config.json, the class in transformers, and the most tokens of a row, as a new dict."), NULL},
    {"dtype", encoder_dtype, NULL, PyDoc_STR("Storage of the weights: float32 or bfloat16."), NULL},
    {"cache_note", encoder_cache_note, NULL, PyDoc_STR("Why a file in the cache was not used or could not be written; empty when there is nothing to tell."), NULL},
    {"n_threads", encoder_n_threads, NULL, PyDoc_STR("Threads of a call; 0: the library's default."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(encoder_doc,
"Encoder(folder, *, dtype='float32', n_threads=0, cache=None)\n"
"--\n\n"
"An encoder with its classification head, ready to run; immutable, so that one serves many threads.\n\n"
"Parameters\n"
"----------\n"
"folder : str or path-like\n"
"    Holds config.json and model.safetensors (or its shards). Stays mapped: word embedding rows are read from it.\n"
"dtype : str, default 'float32'\n"
"    float32 or bfloat16.\n"
"n_threads : int, default 0\n"
"    0: the library's default.\n"
"cache : str or path-like, optional\n"
"    A folder in which packed weights are kept, for the next opening to map them.\n\n"
"Raises\n"
"------\n"
"OSError, FormatError\n"
"    Naming the file, the setting or the tensor.\n");

static PyType_Slot encoder_slots[] = {
    {Py_tp_new, encoder_new},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, encoder_methods},
    {Py_tp_getset, encoder_getters},
    {Py_tp_doc, (void *)encoder_doc},
    {0, NULL},
};

static PyType_Spec encoder_spec = {
    .name = "harmaug._C.Encoder",
    .basicsize = sizeof(encoder_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = encoder_slots,
};

int
py_add_encoder(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    state->Encoder = PyType_FromModuleAndSpec(module, &encoder_spec, NULL);
    return state->Encoder != NULL ? PyModule_AddType(module, (PyTypeObject *)state->Encoder) : -1;
}
