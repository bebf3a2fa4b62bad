#include "python/pyharmaug.h"

#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "io/tensor_file.h"

typedef struct tensor_file_object {
    PyObject_HEAD
    ha_tensor_file *file;
} tensor_file_object;

/* Bytes of a file as str: what is no UTF-8 comes back as lone surrogates and finds its way home through utf8_of(). */
static PyObject *
text_of(const char *bytes, size_t length)
{
    return PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)length, "surrogateescape");
}

static PyObject *
utf8_of(PyObject *text)
{
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_TypeError, "a tensor's name must be str, got %R", (PyObject *)Py_TYPE(text));
        return NULL;
    }
    return PyUnicode_AsEncodedString(text, "utf-8", "surrogateescape");
}

static PyObject *
shape_tuple(const ha_tensor *tensor)
{
    PyObject *shape = PyTuple_New(tensor->ndim);
    for (int i = 0; shape != NULL && i < tensor->ndim; i++) {
        PyObject *extent = PyLong_FromSize_t(tensor->shape[i]);
        if (extent == NULL || PyTuple_SetItem(shape, i, extent) < 0) {
            Py_CLEAR(shape);
        }
    }
    return shape;
}

/* The tensor of this name, or NULL with KeyError (TypeError) set. */
static const ha_tensor *
find_tensor(PyObject *self, PyObject *name)
{
    PyObject *bytes = utf8_of(name);
    if (bytes == NULL) {
        return NULL;
    }
    const char *key = PyBytes_AsString(bytes);
    const ha_tensor *tensor = strlen(key) == (size_t)PyBytes_Size(bytes) ? ha_tensor_file_find(((tensor_file_object *)self)->file, key) : NULL;
    Py_DECREF(bytes);
    if (tensor == NULL) {
        PyErr_SetObject(PyExc_KeyError, name);
    }
    return tensor;
}

/* -- methods -- */

static PyObject *
tensor_file_info(PyObject *self, PyObject *name)
{
    const ha_tensor *tensor = find_tensor(self, name);
    PyObject *shape = tensor != NULL ? shape_tuple(tensor) : NULL;
    return shape != NULL ? Py_BuildValue("(sN)", tensor->type_name, shape) : NULL;
}

static PyObject *
tensor_file_read(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t n_args, PyObject *keywords)
{
    if (n_args != 1 || (keywords != NULL && PyTuple_Size(keywords) > 0)) {
        PyErr_SetString(PyExc_TypeError, "read(name, /) takes one argument");
        return NULL;
    }
    const ha_tensor *tensor = find_tensor(self, args[0]);
    if (tensor == NULL) {
        return NULL;
    }
    ha_error err;
    ha_status status = ha_tensor_rows_f32(tensor, 0, 0, NULL, &err);    /* is there a reader? before the memory is asked for */
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(cls), status, &err);
    }
    npy_intp dims[HA_MAX_DIMS];
    for (int i = 0; i < tensor->ndim; i++) {
        dims[i] = (npy_intp)tensor->shape[i];
    }
    PyObject *array = PyArray_SimpleNew(tensor->ndim, dims, NPY_FLOAT32);
    if (array == NULL) {
        return NULL;
    }
    float *out = PyArray_DATA((PyArrayObject *)array);
    if (PyArray_SIZE((PyArrayObject *)array) > 0) {
        Py_BEGIN_ALLOW_THREADS      /* self keeps the mapping; the array is ours alone */
        status = ha_tensor_rows_f32(tensor, 0, tensor->ndim >= 2 ? tensor->shape[0] : 1, out, &err);
        Py_END_ALLOW_THREADS
    }
    if (status != HA_OK) {
        Py_DECREF(array);
        return py_raise(PyType_GetModule(cls), status, &err);
    }
    return array;
}

static PyObject *
tensor_file_names(PyObject *self, void *unused)
{
    (void)unused;
    const ha_tensor_file *file = ((tensor_file_object *)self)->file;
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names != NULL && i < ha_tensor_file_count(file); i++) {
        const char *name = ha_tensor_file_at(file, i)->name;
        PyObject *text = text_of(name, strlen(name));
        if (text == NULL || PyList_Append(names, text) < 0) {
            Py_CLEAR(names);
        }
        Py_XDECREF(text);
    }
    return names;
}

/* -- metadata -- */

/* Nested at most as deep as the reader allows. */
static PyObject *
value_to_python(const ha_gguf_value *value)
{
    int64_t i = 0;
    uint64_t u = 0;
    double f = 0;
    if (value->type == HA_GGUF_STRING) {
        return text_of((const char *)value->data, (size_t)value->count);
    }
    if (value->type != HA_GGUF_ARRAY) {
        const int kind = ha_gguf_scalar(value, &i, &u, &f);
        return value->type == HA_GGUF_BOOL ? PyBool_FromLong((long)u) : kind == 1 ? PyLong_FromLongLong(i) :
               kind == 2 ? PyLong_FromUnsignedLongLong(u) : PyFloat_FromDouble(f);
    }
    PyObject *list = PyList_New(0);
    const uint8_t *at = value->data;
    for (uint64_t n = 0; list != NULL && n < value->count; n++) {
        ha_gguf_value item;
        ha_gguf_next(value, &at, &item);
        PyObject *object = value_to_python(&item);
        if (object == NULL || PyList_Append(list, object) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(object);
    }
    return list;
}

/* dict[key] = value; steals the value (NULL: an exception is set). 0 or -1. */
static int
set_item(PyObject *dict, const char *key, size_t key_length, PyObject *value)
{
    PyObject *name = value != NULL ? text_of(key, key_length) : NULL;
    const int result = name != NULL ? PyDict_SetItem(dict, name, value) : -1;
    Py_XDECREF(name);
    Py_XDECREF(value);
    return result;
}

static PyObject *
tensor_file_metadata(PyObject *self, void *unused)
{
    (void)unused;
    const ha_tensor_file *file = ((tensor_file_object *)self)->file;
    PyObject *dict = PyDict_New();
    int result = dict != NULL ? 0 : -1;
    for (size_t i = 0; result == 0 && i < ha_gguf_count(file); i++) {
        const char *key;
        size_t key_length;
        ha_gguf_value value;
        ha_gguf_at(file, i, &key, &key_length, &value);
        result = set_item(dict, key, key_length, value_to_python(&value));
    }
    const ha_json *document = NULL;
    const ha_json_node *metadata = ha_safetensors_metadata(file, &document);
    const ha_json_node *item = metadata != NULL ? ha_json_first(document, metadata) : NULL;
    for (; result == 0 && item != NULL; item = ha_json_next(document, item)) {
        result = set_item(dict, item->key, item->key_length, text_of(item->string, item->length));
    }
    if (result < 0) {
        Py_CLEAR(dict);
    }
    return dict;
}

/* -- type -- */

/* A str or path-like as the bytes that the system wants. */
static int
fs_path(PyObject *object, void *out)
{
    return PyUnicode_FSConverter(object, out);
}

static PyObject *
tensor_file_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", NULL};
    PyObject *path = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:TensorFile", names, fs_path, &path)) {
        return NULL;
    }
    const char *bytes = PyBytes_AsString(path);
    ha_tensor_file *file = NULL;
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ha_tensor_file_open(bytes, &file, &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (status != HA_OK) {
        return py_raise(PyType_GetModule(type), status, &err);
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = alloc(type, 0);
    if (self == NULL) {
        ha_tensor_file_close(file);
        return NULL;
    }
    ((tensor_file_object *)self)->file = file;
    return self;
}

static void
tensor_file_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ha_tensor_file_close(((tensor_file_object *)self)->file);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *
tensor_file_metadata_end(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(ha_gguf_metadata_end(((tensor_file_object *)self)->file));
}

static PyMethodDef tensor_file_methods[] = {
    {"info", tensor_file_info, METH_O,
     PyDoc_STR("info(name, /)\n--\n\n(type name as the file's format calls it, shape) of a tensor. KeyError when there is none.")},
    {"read", (PyCFunction)(void (*)(void))tensor_file_read, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("read(name, /)\n--\n\nThe tensor as a new float32 array, dequantised. FormatError for a type without a reader.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tensor_file_getters[] = {
    {"names", tensor_file_names, NULL, PyDoc_STR("Names of the tensors, in file order."), NULL},
    {"metadata", tensor_file_metadata, NULL, PyDoc_STR("GGUF metadata, or safetensors' __metadata__, as a new dict."), NULL},
    {"metadata_end", tensor_file_metadata_end, NULL, PyDoc_STR("GGUF: bytes of header and metadata, before the tensors; else 0."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(tensor_file_doc,
"TensorFile(path)\n"
"--\n\n"
"Named tensors of a safetensors file (single, or sharded by its index), a GGUF file, or the folder that holds one.\n\n"
"Parameters\n"
"----------\n"
"path : str or path-like\n"
"    Told apart by content, not by name. Mapped read-only for the life of the object.\n\n"
"Raises\n"
"------\n"
"OSError\n"
"    If it can't be opened.\n"
"FormatError\n"
"    If it breaks its format.\n");

static PyType_Slot tensor_file_slots[] = {
    {Py_tp_new, tensor_file_new},
    {Py_tp_dealloc, tensor_file_dealloc},
    {Py_tp_methods, tensor_file_methods},
    {Py_tp_getset, tensor_file_getters},
    {Py_tp_doc, (void *)tensor_file_doc},
    {0, NULL},
};

static PyType_Spec tensor_file_spec = {
    .name = "harmaug._C.TensorFile",
    .basicsize = sizeof(tensor_file_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tensor_file_slots,
};

/* -- writing -- */

/* Fills out[i] from one item of the dict; keeps what it borrows from in keep[2 * i] (name) and keep[2 * i + 1] (array). */
static int
tensor_to_write(PyObject *name, PyObject *value, ha_dtype dtype, ha_tensor_out *out, PyObject **keep)
{
    keep[0] = utf8_of(name);
    if (keep[0] == NULL) {
        return -1;
    }
    out->name = PyBytes_AsString(keep[0]);
    if (strlen(out->name) != (size_t)PyBytes_Size(keep[0])) {
        PyErr_SetString(PyExc_ValueError, "write_safetensors: a tensor's name holds a NUL character");
        return -1;
    }
    keep[1] = PyArray_FROM_OTF(value, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (keep[1] == NULL) {
        return -1;
    }
    PyArrayObject *array = (PyArrayObject *)keep[1];
    if (PyArray_NDIM(array) > HA_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "write_safetensors: %R has %d dimensions, at most 8 are written", name, PyArray_NDIM(array));
        return -1;
    }
    out->dtype = dtype;
    out->ndim = PyArray_NDIM(array);
    for (int i = 0; i < out->ndim; i++) {
        out->shape[i] = (size_t)PyArray_DIM(array, i);
    }
    out->data = PyArray_DATA(array);
    return 0;
}

/* A dict of str to str as JSON text (bytes), by the standard library; NULL with an exception set. */
static PyObject *
metadata_json(PyObject *metadata)
{
    PyObject *json = PyImport_ImportModule("json");
    PyObject *text = json != NULL ? PyObject_CallMethod(json, "dumps", "O", metadata) : NULL;
    PyObject *bytes = text != NULL ? PyUnicode_AsUTF8String(text) : NULL;
    Py_XDECREF(json);
    Py_XDECREF(text);
    return bytes;
}

static int
parse_dtype(const char *name, ha_dtype *out)
{
    static const struct { const char *name; ha_dtype dtype; } known[] = {{"F32", HA_F32}, {"F16", HA_F16}, {"BF16", HA_BF16}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(name, known[i].name) == 0) {
            *out = known[i].dtype;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "write_safetensors: dtype must be F32, F16 or BF16, got '%s'", name);
    return -1;
}

PyDoc_STRVAR(write_safetensors_doc,
"write_safetensors(path, tensors, *, dtype='F32', metadata=None)\n"
"--\n\n"
"Write a safetensors file: whole, or not at all.\n\n"
"Parameters\n"
"----------\n"
"path : str or path-like\n"
"tensors : dict of str to array_like\n"
"    Converted to float32, then stored as `dtype` (nearest, ties to even).\n"
"dtype : str, default 'F32'\n"
"    F32, F16 or BF16.\n"
"metadata : dict of str to str, optional\n"
"    None writes {'format': 'pt'}.\n\n"
"Raises\n"
"------\n"
"OSError\n"
"    With the path and the cause; nothing is left behind.\n");

static PyObject *
write_safetensors(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "tensors", "dtype", "metadata", NULL};
    PyObject *path = NULL, *tensors = NULL, *metadata = Py_None, *json = NULL, *items = NULL, *result = NULL;
    const char *dtype_name = "F32";
    ha_dtype dtype = HA_F32;
    ha_tensor_out *out = NULL;
    PyObject **keep = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O!|$sO:write_safetensors", names, fs_path, &path, &PyDict_Type, &tensors,
                                     &dtype_name, &metadata)) {
        return NULL;    /* the converter released the path */
    }
    const Py_ssize_t count = PyDict_Size(tensors);
    items = PyDict_Items(tensors);      /* a copy: converting an array runs arbitrary code */
    if (items == NULL || parse_dtype(dtype_name, &dtype) < 0 || (metadata != Py_None && (json = metadata_json(metadata)) == NULL)) {
        goto done;
    }
    out = calloc((size_t)count + 1, sizeof(*out));
    keep = calloc(2 * (size_t)count + 2, sizeof(*keep));
    if (out == NULL || keep == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyList_GetItem(items, i);
        if (tensor_to_write(PyTuple_GetItem(item, 0), PyTuple_GetItem(item, 1), dtype, &out[i], &keep[2 * i]) < 0) {
            goto done;
        }
    }
    const char *path_bytes = PyBytes_AsString(path), *json_bytes = json != NULL ? PyBytes_AsString(json) : NULL;
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS      /* names and arrays are held by `keep` */
    status = ha_safetensors_write(path_bytes, out, (size_t)count, json_bytes, &err);
    Py_END_ALLOW_THREADS
    result = status != HA_OK ? py_raise(module, status, &err) : Py_NewRef(Py_None);
done:
    for (Py_ssize_t i = 0; keep != NULL && i < 2 * count; i++) {
        Py_XDECREF(keep[i]);
    }
    free(keep);
    free(out);
    Py_XDECREF(items);
    Py_XDECREF(json);
    Py_XDECREF(path);
    return result;
}

static PyMethodDef module_methods[] = {
    {"write_safetensors", (PyCFunction)(void (*)(void))write_safetensors, METH_VARARGS | METH_KEYWORDS, write_safetensors_doc},
    {NULL, NULL, 0, NULL},
};

int
py_add_tensor_file(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &tensor_file_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    const int result = PyModule_AddObjectRef(module, "TensorFile", type);
    Py_DECREF(type);
    return result < 0 ? -1 : PyModule_AddFunctions(module, module_methods);
}
