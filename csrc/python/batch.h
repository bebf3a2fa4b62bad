/* A ragged batch from Python objects: the arrays are converted, held and checked to the point where the core may follow the offsets. */
#ifndef HARMAUG_PYTHON_BATCH_H
#define HARMAUG_PYTHON_BATCH_H

#include "python/pyharmaug.h"

#include <math.h>
#include <string.h>

#include "models/encoder.h"

typedef struct py_batch {
    PyArrayObject *ids, *offsets, *types;   /* types NULL: none given */
    ha_batch batch;                         /* borrows from them */
} py_batch;

/* type_ids may be None. 0 with an exception set; py_batch_close() is for both outcomes. */
int py_batch_open(PyObject *ids, PyObject *offsets, PyObject *type_ids, py_batch *out);
void py_batch_close(py_batch *batch);

/* Probabilities that were left out (NaN) are that of hidden states. */
static inline void
py_dropouts_complete(ha_dropouts *dropout)
{
    dropout->attention = isnan(dropout->attention) ? dropout->hidden : dropout->attention;
    dropout->classifier = isnan(dropout->classifier) ? dropout->hidden : dropout->classifier;
}

/* What the products of training round their operands to, by name. 0 with an exception set. */
static inline int
py_precision(const char *name, int *bf16)
{
    *bf16 = strcmp(name, "bfloat16") == 0;
    if (!*bf16 && strcmp(name, "float32") != 0) {
        PyErr_Format(PyExc_ValueError, "precision must be 'float32' or 'bfloat16', got '%s'", name);
        return 0;
    }
    return 1;
}

#endif
