/* _C.Trainer: training of EncoderParams in place; and the loss and the schedule by themselves. */
#include "python/pyharmaug.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "io/tensor_file.h"
#include "python/batch.h"
#include "training/schedule.h"
#include "training/trainer.h"

typedef struct Trainer {
    PyObject_HEAD
    PyObject *params;       /* keeps the weights alive */
    ha_trainer *trainer;
    atomic_flag busy;       /* a trainer is one thread's at a time */
} Trainer;

/* A tuple or list of str as C strings. The array is for PyMem_Free; the strings live as long as the sequence, which
 * *keep owns. */
static int
string_list(PyObject *obj, const char *name, PyObject **keep, const char ***out, size_t *count)
{
    *keep = PySequence_Tuple(obj);
    if (*keep == NULL) {
        return 0;
    }
    const Py_ssize_t n = PyTuple_Size(*keep);
    *out = PyMem_Calloc((size_t)n + 1, sizeof(**out));
    if (*out == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyTuple_GetItem(*keep, i);
        Py_ssize_t length = 0;
        (*out)[i] = PyUnicode_Check(item) ? PyUnicode_AsUTF8AndSize(item, &length) : NULL;
        if ((*out)[i] == NULL || strlen((*out)[i]) != (size_t)length) {
            if (!PyErr_Occurred()) {
                PyErr_Format(PyExc_TypeError, "Trainer: %s must be a sequence of str without NUL", name);
            }
            return 0;
        }
    }
    *count = (size_t)n;
    return 1;
}

static void
Trainer_dealloc(Trainer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ha_trainer_free(self->trainer);
    Py_XDECREF(self->params);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *
Trainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"params", "ce_weight", "kl_weight", "temperature", "unsafe_index", "beta1", "beta2", "eps",
                            "weight_decay", "layer_decay", "clip_norm", "dropout", "attention_dropout", "classifier_dropout", "seed",
                            "micro_tokens", "n_threads", "frozen", "lora_rank", "lora_alpha", "lora_targets", "precision", NULL};
    PyObject *params_obj, *frozen_obj = NULL, *targets_obj = NULL, *frozen_keep = NULL, *targets_keep = NULL;
    const char **frozen = NULL, **targets = NULL, *precision = "float32";
    Trainer *self = NULL, *result = NULL;
    unsigned long long seed = 0;
    Py_ssize_t unsafe_index = -1, micro_tokens = 0, rank = 0;
    ha_trainer_config config = {.loss = {.ce_weight = 0.5, .kl_weight = 0.5, .temperature = 1}, .beta1 = 0.9,
                                .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1, .layer_decay = 1, .clip_norm = 1,
                                .dropout = {.hidden = 0.1f, .attention = NAN, .classifier = NAN},
                                .lora_alpha = 16};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$dddnddddddfffKniOnfOs:Trainer", names, &params_obj,
                                     &config.loss.ce_weight, &config.loss.kl_weight, &config.loss.temperature,
                                     &unsafe_index, &config.beta1, &config.beta2, &config.eps, &config.weight_decay,
                                     &config.layer_decay, &config.clip_norm, &config.dropout.hidden, &config.dropout.attention,
                                     &config.dropout.classifier, &seed, &micro_tokens, &config.n_threads, &frozen_obj, &rank, &config.lora_alpha, &targets_obj,
                                     &precision) ||
        !py_precision(precision, &config.bf16)) {
        return NULL;
    }
    py_dropouts_complete(&config.dropout);
    PyObject *module = PyType_GetModule(type);
    ha_encoder_params *params = module != NULL ? py_encoder_params(module, params_obj) : NULL;
    if (params == NULL) {
        return NULL;
    }
    if (micro_tokens < 0 || rank < 0 || unsafe_index < -1) {
        PyErr_SetString(PyExc_ValueError, "Trainer: micro_tokens, lora_rank and unsafe_index must be >= 0");
        return NULL;
    }
    if ((frozen_obj != NULL && !string_list(frozen_obj, "frozen", &frozen_keep, &frozen, &config.n_frozen)) ||
        (targets_obj != NULL &&
         !string_list(targets_obj, "lora_targets", &targets_keep, &targets, &config.n_lora_targets))) {
        goto done;
    }
    config.seed = seed;
    config.loss.unsafe_index = unsafe_index >= 0 ? (size_t)unsafe_index : params->config.num_labels > 1;
    config.micro_tokens = (size_t)micro_tokens;
    config.lora_rank = (size_t)rank;
    config.frozen = frozen;
    config.lora_targets = targets;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    self = (Trainer *)allocate(type, 0);
    if (self == NULL) {
        goto done;
    }
    atomic_flag_clear(&self->busy);
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ha_trainer_new(params, &config, &self->trainer, &err);
    Py_END_ALLOW_THREADS
    if (status != HA_OK) {
        py_raise(module, status, &err);
        goto done;
    }
    self->params = Py_NewRef(params_obj);
    result = self;
    self = NULL;
done:
    Py_XDECREF(self);
    Py_XDECREF(frozen_keep);
    Py_XDECREF(targets_keep);
    PyMem_Free(frozen);
    PyMem_Free(targets);
    return (PyObject *)result;
}

static int
enter(Trainer *self)
{
    if (atomic_flag_test_and_set(&self->busy)) {
        PyErr_SetString(PyExc_RuntimeError, "Trainer: in use by another thread");
        return 0;
    }
    return 1;
}

static void
leave(Trainer *self)
{
    atomic_flag_clear(&self->busy);
}

static PyObject *
raise_for(Trainer *self, ha_status status, const ha_error *err)
{
    return py_raise(PyType_GetModule(Py_TYPE(self)), status, err);
}

/* A C-contiguous 1-D array of `type`; n >= 0 asks for that length. None gives NULL where `optional`. 1 on success. */
static int
vector(PyObject *obj, int type, const char *name, npy_intp n, int optional, PyArrayObject **out)
{
    *out = NULL;
    if (optional && (obj == NULL || obj == Py_None)) {
        return 1;
    }
    /* integers must not be cut silently: casts that NumPy calls safe alone */
    *out = (PyArrayObject *)PyArray_FROM_OTF(obj, type,
                                             NPY_ARRAY_IN_ARRAY | (type == NPY_FLOAT32 ? NPY_ARRAY_FORCECAST : 0));
    if (*out == NULL) {
        return 0;
    }
    if (PyArray_NDIM(*out) != 1 || (n >= 0 && PyArray_DIM(*out, 0) != n)) {
        if (n >= 0) {
            PyErr_Format(PyExc_ValueError, "%s must have shape (%zd,)", name, (Py_ssize_t)n);
        } else {
            PyErr_Format(PyExc_ValueError, "%s must have one axis", name);
        }
        Py_DECREF(*out);
        *out = NULL;
        return 0;
    }
    return 1;
}

/* The arrays of one call, and the structs that view them. */
typedef struct rows {
    PyArrayObject *ids, *offsets, *types, *hard, *soft, *weights;
    ha_batch batch;
    ha_targets targets;
} rows;

static int
rows_targets(rows *r, PyObject *hard, PyObject *soft, PyObject *weights, npy_intp n)
{
    if (!vector(hard, NPY_INT8, "hard", n, 1, &r->hard) || !vector(soft, NPY_FLOAT32, "soft", n, 1, &r->soft) ||
        !vector(weights, NPY_FLOAT32, "weights", n, 1, &r->weights)) {
        return 0;
    }
    r->targets = (ha_targets){.hard = r->hard != NULL ? PyArray_DATA(r->hard) : NULL,
                              .soft = r->soft != NULL ? PyArray_DATA(r->soft) : NULL,
                              .weight = r->weights != NULL ? PyArray_DATA(r->weights) : NULL};
    return 1;
}

static int
rows_batch(rows *r, PyObject *ids, PyObject *offsets, PyObject *types)
{
    if (!vector(ids, NPY_INT32, "ids", -1, 0, &r->ids) || !vector(offsets, NPY_INT64, "offsets", -1, 0, &r->offsets) ||
        !vector(types, NPY_UINT8, "type_ids", PyArray_DIM(r->ids, 0), 1, &r->types)) {
        return 0;
    }
    const npy_intp n = PyArray_DIM(r->offsets, 0) - 1;
    const int64_t *at = PyArray_DATA(r->offsets);
    int good = n >= 0 && at[0] == 0 && at[n] == (int64_t)PyArray_DIM(r->ids, 0);
    for (npy_intp i = 0; good && i < n; i++) {
        good = at[i] <= at[i + 1];
    }
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "offsets must start at 0, never fall, and end at len(ids)");
        return 0;
    }
    r->batch = (ha_batch){.n_rows = (size_t)n,
                          .offsets = at,
                          .ids = PyArray_DATA(r->ids),
                          .type_ids = r->types != NULL ? PyArray_DATA(r->types) : NULL};
    return 1;
}

static void
rows_release(rows *r)
{
    Py_XDECREF(r->ids);
    Py_XDECREF(r->offsets);
    Py_XDECREF(r->types);
    Py_XDECREF(r->hard);
    Py_XDECREF(r->soft);
    Py_XDECREF(r->weights);
}

PyDoc_STRVAR(step_doc,
"step(ids, offsets, hard=None, soft=None, weights=None, *, lr, type_ids=None)\n"
"--\n\n"
"One optimizer step over a ragged batch. The GIL is released.\n\n"
"Parameters\n"
"----------\n"
"ids : array_like of int32, shape (total,)\n"
"offsets : array_like of int64, shape (n + 1,)\n"
"    Row i is ids[offsets[i]:offsets[i + 1]].\n"
"hard : array_like of int8, shape (n,), optional\n"
"    0 safe, 1 unsafe, -1 none.\n"
"soft : array_like of float32, shape (n,), optional\n"
"    The teacher's P(unsafe), NaN for none.\n"
"weights : array_like of float32, shape (n,), optional\n"
"    Weight of each row, 1 by default.\n"
"lr : float\n"
"    Learning rate of this step.\n"
"type_ids : array_like of uint8, shape (total,), optional\n\n"
"Returns\n"
"-------\n"
"dict\n"
"    loss (weighted mean, before the update), grad_norm (before clipping), tokens, step (made so far).\n\n"
"Raises\n"
"------\n"
"ValueError\n"
"    For a row that the model cannot take, or a loss that is not finite; the weights are then as before the call.\n");

static PyObject *
Trainer_step(Trainer *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ids", "offsets", "hard", "soft", "weights", "lr", "type_ids", NULL};
    PyObject *ids, *offsets, *hard = NULL, *soft = NULL, *weights = NULL, *types = NULL, *result = NULL;
    double lr = NAN;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OOO$dO:step", names, &ids, &offsets, &hard, &soft, &weights, &lr,
                                     &types)) {
        return NULL;
    }
    rows r = {0};
    if (!rows_batch(&r, ids, offsets, types) || !rows_targets(&r, hard, soft, weights, (npy_intp)r.batch.n_rows) ||
        !enter(self)) {
        goto done;
    }
    ha_error err;
    ha_step step;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = ha_trainer_step(self->trainer, &r.batch, &r.targets, lr, &step, &err);
    Py_END_ALLOW_THREADS
    leave(self);
    result = status != HA_OK ? raise_for(self, status, &err)
                             : Py_BuildValue("{s:d,s:d,s:n,s:K}", "loss", step.loss, "grad_norm", step.grad_norm,
                                             "tokens", (Py_ssize_t)step.n_tokens, "step",
                                             (unsigned long long)ha_trainer_steps(self->trainer));
done:
    rows_release(&r);
    return result;
}

/* Calls one of the file functions with the path's bytes. which: 0 save, 1 load, 2 save_adapter; flag: moments, or the
 * dtype. */
static PyObject *
with_path(Trainer *self, PyObject *path, int which, unsigned long long steps, int flag)
{
    const char *name = PyBytes_AsString(path);
    if (name == NULL || !enter(self)) {
        return NULL;
    }
    ha_error err;
    ha_status status;
    Py_BEGIN_ALLOW_THREADS
    status = which == 0   ? ha_trainer_save(self->trainer, name, flag, &err)
             : which == 1 ? ha_trainer_load(self->trainer, name, steps, flag, &err)
                          : ha_trainer_save_adapter(self->trainer, name, flag, &err);
    Py_END_ALLOW_THREADS
    leave(self);
    if (status != HA_OK) {
        return raise_for(self, status, &err);
    }
    Py_RETURN_NONE;
}

static PyObject *
Trainer_save(Trainer *self, PyObject *args)
{
    PyObject *path = NULL;
    int moments = 1;
    if (!PyArg_ParseTuple(args, "O&|p:save", PyUnicode_FSConverter, &path, &moments)) {
        return NULL;
    }
    PyObject *result = with_path(self, path, 0, 0, moments);
    Py_DECREF(path);
    return result;
}

static PyObject *
Trainer_load(Trainer *self, PyObject *args)
{
    PyObject *path = NULL;
    unsigned long long steps;
    int moments = 1;
    if (!PyArg_ParseTuple(args, "O&K|p:load", PyUnicode_FSConverter, &path, &steps, &moments)) {
        return NULL;
    }
    PyObject *result = with_path(self, path, 1, steps, moments);
    Py_DECREF(path);
    return result;
}

static PyObject *
Trainer_save_adapter(Trainer *self, PyObject *args)
{
    PyObject *path = NULL;
    const char *dtype = "float16";
    if (!PyArg_ParseTuple(args, "O&|s:save_adapter", PyUnicode_FSConverter, &path, &dtype)) {
        return NULL;
    }
    PyObject *result = NULL;
    if (strcmp(dtype, "float16") != 0 && strcmp(dtype, "float32") != 0) {
        PyErr_Format(PyExc_ValueError, "save_adapter: dtype must be float16 or float32, got %s", dtype);
    } else {
        result = with_path(self, path, 2, 0, strcmp(dtype, "float16") == 0 ? HA_F16 : HA_F32);
    }
    Py_DECREF(path);
    return result;
}

static PyObject *
Trainer_settle(Trainer *self, PyObject *unused)
{
    (void)unused;
    if (!enter(self)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    ha_trainer_settle(self->trainer);
    Py_END_ALLOW_THREADS
    leave(self);
    Py_RETURN_NONE;
}

static PyObject *
Trainer_get_steps(Trainer *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(ha_trainer_steps(self->trainer));
}

static PyObject *
Trainer_get_trainable(Trainer *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(ha_trainer_trainable(self->trainer));
}

static PyMethodDef Trainer_methods[] = {
    {"step", (PyCFunction)(void (*)(void))Trainer_step, METH_VARARGS | METH_KEYWORDS, step_doc},
    {"save", (PyCFunction)Trainer_save, METH_VARARGS,
     PyDoc_STR("save(path, moments=True, /)\n--\n\nWrite trained weights, and the moments, as safetensors, whole or "
               "not at all.")},
    {"load", (PyCFunction)Trainer_load, METH_VARARGS,
     PyDoc_STR("load(path, steps, moments=True, /)\n--\n\nGo on from a saved state. The trainer must be new, made with "
               "the same arguments on the same initial weights.")},
    {"settle", (PyCFunction)Trainer_settle, METH_NOARGS,
     PyDoc_STR("settle()\n--\n\nBring every weight up to date, before they are read: the word embedding rows that no "
               "batch held have decay outstanding. Saving does it too.")},
    {"save_adapter", (PyCFunction)Trainer_save_adapter, METH_VARARGS,
     PyDoc_STR("save_adapter(path, dtype='float16', /)\n--\n\nWrite LoRA factors and the other trained weights under "
               "PEFT's names.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Trainer_getset[] = {
    {"steps", (getter)Trainer_get_steps, NULL, PyDoc_STR("Steps made."), NULL},
    {"trainable", (getter)Trainer_get_trainable, NULL, PyDoc_STR("How many numbers are trained."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(Trainer_doc,
"Trainer(params, *, ce_weight=0.5, kl_weight=0.5, temperature=1.0, unsafe_index=1, beta1=0.9, beta2=0.999,\n"
"        eps=1e-8, weight_decay=0.1, layer_decay=1.0, clip_norm=1.0, dropout=0.1, attention_dropout=dropout,\n"
"        classifier_dropout=dropout, seed=0, micro_tokens=0, n_threads=0, frozen=(), lora_rank=0, lora_alpha=16.0, lora_targets=(),\n"
"        precision='float32')\n"
"--\n\n"
"AdamW training of EncoderParams, in place.\n\n"
"Parameters\n"
"----------\n"
"params : EncoderParams\n"
"    What is trained. Nothing else may write it meanwhile; settle() comes before reading it.\n"
"ce_weight, kl_weight, temperature : float\n"
"    Loss of a row: ce_weight * CE(hard) + kl_weight * T^2 * KL(soft || student), both softened by T. A row that\n"
"    lacks one label gives the other term the weight of both.\n"
"unsafe_index : int\n"
"    Which of two labels is unsafe; the last by default.\n"
"weight_decay : float\n"
"    Of matrices; biases and LayerNorm have none.\n"
"layer_decay : float\n"
"    The learning rate of what stands d levels below the head (its last layer 1, the embeddings the number of layers\n"
"    and 1) is multiplied by layer_decay**d.\n"
"clip_norm : float\n"
"    Largest global gradient norm; 0: no clipping.\n"
"dropout, attention_dropout, classifier_dropout : float\n"
"    Probabilities where transformers' model of the family has its dropout layers: on hidden states, on attention's\n"
"    probabilities, in the head.\n"
"micro_tokens : int\n"
"    A step's rows are worked on in groups of about so many tokens, which bounds memory; 0: all at once.\n"
"frozen : sequence of str\n"
"    Patterns of parameter names that are not trained; '*' stands for any text.\n"
"lora_rank : int\n"
"    0: none. Otherwise the matrices that lora_targets names are trained as W0 + lora_alpha / lora_rank * B A.\n"
"lora_targets : sequence of str\n"
"    Ends of module names, as PEFT's target_modules.\n"
"precision : 'float32' or 'bfloat16'\n"
"    'bfloat16': the operands of every Linear and of DeBERTa's convolution, the head among them, are rounded to bfloat16 (nearest even) in the forward\n"
"    pass and for both gradients, and their products summed in float32. Everything else stays float32: weights, moments, what stands between the\n"
"    Linears, attention's scores, LayerNorm, softmax, the loss, the product of LoRA's factors.\n");

static PyType_Slot Trainer_slots[] = {
    {Py_tp_doc, (void *)Trainer_doc},
    {Py_tp_new, (void *)Trainer_new},
    {Py_tp_dealloc, (void *)Trainer_dealloc},
    {Py_tp_methods, Trainer_methods},
    {Py_tp_getset, Trainer_getset},
    {0, NULL},
};

static PyType_Spec Trainer_spec = {
    .name = "harmaug._C.Trainer", .basicsize = sizeof(Trainer), .flags = Py_TPFLAGS_DEFAULT, .slots = Trainer_slots};

PyDoc_STRVAR(distill_loss_doc,
"distill_loss(logits, hard=None, soft=None, weights=None, *, ce_weight=0.5, kl_weight=0.5,\n"
"             temperature=1.0, unsafe_index=1)\n"
"--\n\n"
"The loss of Trainer by itself.\n\n"
"Parameters\n"
"----------\n"
"logits : array_like of float32, shape (n, 1) or (n, 2)\n"
"hard, soft, weights, ce_weight, kl_weight, temperature, unsafe_index\n"
"    As in Trainer and Trainer.step.\n\n"
"Returns\n"
"-------\n"
"loss : float\n"
"    Weighted mean.\n"
"dlogits : ndarray of float32, shape of logits\n"
"    Its gradient.\n");

static PyObject *
distill_loss(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"logits", "hard", "soft", "weights", "ce_weight", "kl_weight", "temperature",
                            "unsafe_index", NULL};
    PyObject *logits_obj, *hard = NULL, *soft = NULL, *weights = NULL, *result = NULL;
    PyArrayObject *logits = NULL, *grad = NULL;
    ha_loss_config config = {.ce_weight = 0.5, .kl_weight = 0.5, .temperature = 1};
    Py_ssize_t unsafe_index = -1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OOO$dddn:distill_loss", names, &logits_obj, &hard, &soft,
                                     &weights, &config.ce_weight, &config.kl_weight, &config.temperature,
                                     &unsafe_index)) {
        return NULL;
    }
    rows r = {0};
    ha_error err;
    double total;
    logits = (PyArrayObject *)PyArray_FROM_OTF(logits_obj, NPY_FLOAT32, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (logits == NULL) {
        goto done;
    }
    if (PyArray_NDIM(logits) != 2) {
        PyErr_SetString(PyExc_ValueError, "distill_loss: logits must have shape (n, 1) or (n, 2)");
        goto done;
    }
    const npy_intp n = PyArray_DIM(logits, 0);
    config.num_labels = (size_t)PyArray_DIM(logits, 1);
    config.unsafe_index = unsafe_index >= 0 ? (size_t)unsafe_index : config.num_labels > 1;
    if (!rows_targets(&r, hard, soft, weights, n)) {
        goto done;
    }
    ha_status status = ha_loss_config_check(&config, &err);
    if (status == HA_OK) {
        status = ha_targets_check(&r.targets, (size_t)n, &total, &err);
    }
    if (status != HA_OK) {
        py_raise(module, status, &err);
        goto done;
    }
    grad = (PyArrayObject *)PyArray_SimpleNew(2, PyArray_DIMS(logits), NPY_FLOAT32);
    if (grad != NULL) {
        const double loss =
            ha_distill_loss(&config, &r.targets, (size_t)n, PyArray_DATA(logits), 1 / total, PyArray_DATA(grad));
        result = Py_BuildValue("dO", loss, grad);
    }
done:
    Py_XDECREF(logits);
    Py_XDECREF(grad);
    rows_release(&r);
    return result;
}

static PyObject *
schedule_factor(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    long long step, warmup, total;
    if (!PyArg_ParseTuple(args, "sLLL:schedule_factor", &name, &step, &warmup, &total)) {
        return NULL;
    }
    static const char *const kinds[] = {"constant", "linear", "cosine"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, kinds[i]) == 0 && step >= 0 && warmup >= 0 && total >= 0) {
            return PyFloat_FromDouble(
                ha_schedule_factor((ha_schedule)i, (uint64_t)step, (uint64_t)warmup, (uint64_t)total));
        }
    }
    PyErr_Format(PyExc_ValueError,
                 "schedule_factor: wanted constant, linear or cosine and counts >= 0, got %s, %lld, %lld, %lld", name,
                 step, warmup, total);
    return NULL;
}

static PyMethodDef trainer_functions[] = {
    {"distill_loss", (PyCFunction)(void (*)(void))distill_loss, METH_VARARGS | METH_KEYWORDS, distill_loss_doc},
    {"schedule_factor", schedule_factor, METH_VARARGS,
     PyDoc_STR("schedule_factor(name, step, warmup, total, /)\n--\n\nFactor of the learning rate at the 0-based step: "
               "constant, linear or cosine, "
               "as transformers' get_*_schedule_with_warmup.")},
    {NULL, NULL, 0, NULL},
};

int
py_add_trainer(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &Trainer_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    const int failed =
        PyModule_AddObjectRef(module, "Trainer", type) < 0 || PyModule_AddFunctions(module, trainer_functions) < 0;
    Py_DECREF(type);
    return failed ? -1 : 0;
}
