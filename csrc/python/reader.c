#include <stdatomic.h>

#include "python/causal_lm.h"

#include <stdlib.h>

#include "generation/reader.h"

typedef struct reader_object {
    PyObject_HEAD
    ha_reader *reader;
    PyObject *lm;           /* kept alive */
    atomic_int busy;        /* a call is in flight: a reader serves one thread at a time */
} reader_object;

static PyObject *
reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"lm", NULL};
    PyObject *lm = NULL, *module = PyType_GetModule(type);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Reader", names, &lm)) {
        return NULL;
    }
    const causal_lm_object *model = py_causal_lm(module, lm);
    if (model == NULL) {
        return NULL;
    }
    ha_reader *reader = NULL;
    ha_error err;
    ha_status status = ha_reader_new(model->decoder, model->n_threads, &reader, &err);
    if (status != HA_OK) {
        return py_raise(module, status, &err);
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    reader_object *self = (reader_object *)alloc(type, 0);
    if (self == NULL) {
        ha_reader_free(reader);
        return NULL;
    }
    self->reader = reader;
    self->lm = Py_NewRef(lm);
    return (PyObject *)self;
}

static void
reader_dealloc(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    reader_object *self = (reader_object *)obj;
    ha_reader_free(self->reader);
    Py_XDECREF(self->lm);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(obj);
    Py_DECREF(type);
}

static PyObject *
reader_next_logits(PyObject *obj, PyObject *ids_obj)
{
    reader_object *self = (reader_object *)obj;
    PyObject *module = PyType_GetModule(Py_TYPE(obj));
    const size_t vocab_size = ha_decoder_config_of(((const causal_lm_object *)self->lm)->decoder)->vocab_size;
    PyArrayObject *wide = py_ids_array(ids_obj, "next_logits: ids"), *out = NULL;
    if (wide == NULL) {
        return NULL;
    }
    const size_t n = (size_t)PyArray_SIZE(wide);
    const npy_intp dims[1] = {(npy_intp)vocab_size};
    int32_t *ids = malloc((n + 1) * sizeof(*ids));
    if (ids == NULL) {
        PyErr_NoMemory();
    }
    else if (py_narrow_ids(PyArray_DATA(wide), n, vocab_size, ids) == 0) {
        out = (PyArrayObject *)PyArray_SimpleNew(1, dims, NPY_FLOAT32);
    }
    Py_DECREF(wide);
    if (out != NULL && atomic_exchange(&self->busy, 1)) {
        PyErr_SetString(PyExc_RuntimeError, "a reader is used by one thread at a time");
        Py_CLEAR(out);
    }
    else if (out != NULL) {
        float *data = PyArray_DATA(out);
        ha_error err;
        ha_status status;
        Py_BEGIN_ALLOW_THREADS
        status = ha_reader_next(self->reader, ids, n, data, &err);
        Py_END_ALLOW_THREADS
        atomic_store(&self->busy, 0);
        if (status != HA_OK) {
            Py_CLEAR(out);
            py_raise(module, status, &err);
        }
        else if (PyErr_CheckSignals() < 0) {
            Py_CLEAR(out);
        }
    }
    free(ids);
    return (PyObject *)out;
}

static PyObject *
reader_computed(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(ha_reader_computed(((reader_object *)obj)->reader));
}

static PyMethodDef reader_methods[] = {
    {"next_logits", reader_next_logits, METH_O,
     PyDoc_STR("next_logits(ids, /)\n--\n\nNext-token logits after ids: float32 (vocab_size,). What ids have in common with those of the call "
               "before is not computed again; no bit depends on it.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reader_getters[] = {
    {"computed", reader_computed, NULL, PyDoc_STR("Tokens that went through the layers so far."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(reader_doc,
"Reader(lm)\n"
"--\n\n"
"Reads token sequences one after another for the logits that follow them (see csrc/generation/reader.h).\n");

static PyType_Slot reader_slots[] = {
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_getset, reader_getters},
    {Py_tp_doc, (void *)reader_doc},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "harmaug._C.Reader",
    .basicsize = sizeof(reader_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};

int
py_add_reader(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &reader_spec, NULL);
    const int result = type != NULL ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return result;
}
