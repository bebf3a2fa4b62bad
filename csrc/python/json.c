#include "python/pyharmaug.h"

#include "io/json.h"

static PyObject *
to_python(const ha_json *json, const ha_json_node *node);

static PyObject *
text_of(const char *bytes, size_t length)
{
    return PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)length, NULL);
}

static PyObject *
number_to_python(const ha_json_node *node)
{
    for (size_t i = 0; i < node->length; i++) {
        if (node->string[i] == '.' || node->string[i] == 'e' || node->string[i] == 'E') {
            return PyFloat_FromDouble(node->number);
        }
    }
    return PyLong_FromString(node->string, NULL, 10);
}

/* Depth is at most 256: the parser saw to it. */
static PyObject *
container_to_python(const ha_json *json, const ha_json_node *node)
{
    const int object = node->type == HA_JSON_OBJECT;
    PyObject *container = object ? PyDict_New() : PyList_New(0);
    if (container == NULL) {
        return NULL;
    }
    for (const ha_json_node *child = ha_json_first(json, node); child != NULL; child = ha_json_next(json, child)) {
        PyObject *value = to_python(json, child);
        PyObject *key = value != NULL && object ? text_of(child->key, child->key_length) : NULL;
        int failed = value == NULL || (object && key == NULL);
        if (!failed) {
            failed = (object ? PyDict_SetItem(container, key, value) : PyList_Append(container, value)) < 0;
        }
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (failed) {
            Py_DECREF(container);
            return NULL;
        }
    }
    return container;
}

static PyObject *
to_python(const ha_json *json, const ha_json_node *node)
{
    switch (node->type) {
    case HA_JSON_FALSE: Py_RETURN_FALSE;
    case HA_JSON_TRUE: Py_RETURN_TRUE;
    case HA_JSON_NUMBER: return number_to_python(node);
    case HA_JSON_STRING: return text_of(node->string, node->length);
    case HA_JSON_ARRAY:
    case HA_JSON_OBJECT: return container_to_python(json, node);
    default: Py_RETURN_NONE;
    }
}

PyDoc_STRVAR(json_loads_doc,
"json_loads(data, *, name='<bytes>')\n"
"--\n\n"
"What the C core's JSON reader makes of `data`: RFC 8259, UTF-8, no duplicate keys, nesting up to 256.\n\n"
"Parameters\n"
"----------\n"
"data : bytes\n"
"name : str, default '<bytes>'\n"
"    Begins the message of an error.\n\n"
"Returns\n"
"-------\n"
"dict, list, str, int, float, bool or None\n\n"
"Raises\n"
"------\n"
"FormatError\n"
"    Naming line and column.\n");

static PyObject *
json_loads(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "name", NULL};
    const char *data = NULL, *name = "<bytes>";
    Py_ssize_t length = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y#|$s:json_loads", names, &data, &length, &name)) {
        return NULL;
    }
    ha_json *json = NULL;
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS      /* bytes are immutable and the caller's arguments keep them alive */
    status = ha_json_parse(name, data, (size_t)length, &json, &err);
    Py_END_ALLOW_THREADS
    if (status != HA_OK) {
        return py_raise(module, status, &err);
    }
    PyObject *value = to_python(json, ha_json_root(json));
    ha_json_free(json);
    return value;
}

static PyMethodDef json_methods[] = {
    {"json_loads", (PyCFunction)(void (*)(void))json_loads, METH_VARARGS | METH_KEYWORDS, json_loads_doc},
    {NULL, NULL, 0, NULL},
};

int
py_add_json(PyObject *module)
{
    return PyModule_AddFunctions(module, json_methods);
}
