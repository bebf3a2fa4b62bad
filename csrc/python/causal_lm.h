/* What causal_lm.c, generation_run.c and reader.c share. */
#ifndef HARMAUG_PYTHON_CAUSAL_LM_H
#define HARMAUG_PYTHON_CAUSAL_LM_H

#include "python/pyharmaug.h"

#include "models/decoder.h"
#include "tokenizer/tokenizer.h"

typedef struct causal_lm_object {
    PyObject_HEAD
    ha_decoder *decoder;
    int n_threads;
} causal_lm_object;

/* obj as a C-contiguous int64 vector, a new reference; NULL with an exception set. An empty sequence gives an empty vector. */
PyArrayObject *py_ids_array(PyObject *obj, const char *what);

/* Ids as int32; -1 with ValueError set for one outside the vocabulary. */
int py_narrow_ids(const int64_t *ids, size_t n, size_t vocab_size, int32_t *out);

/* The decoder of a CausalLM, borrowed; NULL with TypeError set for anything else. */
const causal_lm_object *py_causal_lm(PyObject *module, PyObject *obj);

#endif
