/* Crop, antialiased resize and mirror of one 8-bit RGB image.

   The same bits as torch's and PIL's resize of uint8: fixed-point weights, rows first, rounded to 8
   bits in between. Faster because rows are resized only as columns need them, in a ring that stays
   in the first-level cache, and because a mirrored crop is written mirrored. raycl.views.ops uses
   torch where this was not built (no compiler, no AVX2). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))
#define TAPS 4   /* pixels that one 16-byte load brings */
#define STEP 4   /* pixels that are written at a time */
#define SLACK 32 /* bytes beyond a row that may be read or written */

/* How one axis is resized: each output position is a weighted mean of neighbouring inputs. */
typedef struct {
    int groups, most, shift; /* groups of TAPS weights; most weights that are not 0; fixed point */
    int *first, *count;      /* (out) first input position, number of weights */
    int16_t *weights;        /* (out, groups * TAPS), 0 beyond count; out is a multiple of STEP */
} Axis;

static double bilinear(double x)
{
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

static double bicubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

static void free_axis(Axis *axis)
{
    free(axis->first);
    free(axis->weights);
}

/* Returns 0, or -1 where memory is short. */
static int plan_axis(Axis *axis, int in, int out, int cubic, int mirrored)
{
    double (*filter)(double) = cubic ? bicubic : bilinear;
    const double scale = (double)in / out, stretch = scale > 1 ? scale : 1;
    const double support = (cubic ? 2 : 1) * stretch;
    const int padded = (out + STEP - 1) / STEP * STEP;
    double *exact = NULL, highest = 0;

    axis->weights = NULL;
    axis->first = calloc(2 * (size_t)padded, sizeof(int));
    if (!axis->first)
        return -1;
    axis->count = axis->first + padded;
    axis->most = 0;
    for (int i = 0; i < out; i++) {
        const double centre = scale * ((mirrored ? out - 1 - i : i) + 0.5);
        const int low = (int)(centre - support + 0.5), high = (int)(centre + support + 0.5);
        axis->first[i] = low > 0 ? low : 0;
        axis->count[i] = (high < in ? high : in) - axis->first[i];
        if (axis->count[i] > axis->most)
            axis->most = axis->count[i];
    }
    axis->groups = (axis->most + TAPS - 1) / TAPS;
    const int room = axis->groups * TAPS;
    axis->weights = calloc((size_t)padded * room, sizeof(int16_t));
    exact = calloc((size_t)out * room, sizeof(double));
    if (!axis->weights || !exact) {
        free(exact);
        free_axis(axis);
        return -1;
    }
    for (int i = 0; i < out; i++) {
        const double centre = scale * ((mirrored ? out - 1 - i : i) + 0.5);
        double *w = exact + (size_t)i * room, total = 0;
        for (int k = 0; k < axis->count[i]; k++)
            total += w[k] = filter((axis->first[i] + k - centre + 0.5) / stretch);
        for (int k = 0; k < axis->count[i]; k++) {
            w[k] /= total;
            highest = w[k] > highest ? w[k] : highest;
        }
    }
    axis->shift = 0;
    while (axis->shift < 22 && (int)(0.5 + highest * (1 << (axis->shift + 1))) < (1 << 15))
        axis->shift++;
    for (size_t i = 0; i < (size_t)out * room; i++)
        axis->weights[i] = (int16_t)(exact[i] * (1 << axis->shift) + (exact[i] < 0 ? -0.5 : 0.5));
    free(exact);
    return 0;
}

static inline AVX2 __m256i pair_of_weights(const int16_t *weights)
{
    int32_t pair;
    memcpy(&pair, weights, sizeof pair);
    return _mm256_set1_epi32(pair);
}

/* One pixel of two rows, one in each half of a register, as 4 x 32 bits. */
static inline AVX2 __attribute__((always_inline)) __m256i
pixel(const uint8_t *upper, const uint8_t *lower, const int16_t *weights, const int groups,
      __m256i half, __m128i shift)
{
    const __m256i left = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
                                          0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m256i right = _mm256_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1,
                                           -1, 6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1,
                                           -1, -1);
    __m256i sum = half;
    for (int g = 0; g < groups; g++, weights += TAPS, upper += 3 * TAPS, lower += 3 * TAPS) {
        const __m256i both = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128((const void *)upper)),
            _mm_loadu_si128((const void *)lower), 1);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(both, left),
                                                      pair_of_weights(weights)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(both, right),
                                                      pair_of_weights(weights + 2)));
    }
    return _mm256_sra_epi32(sum, shift);
}

/* Two rows at once, four pixels at a time. With `groups` constant the loops unroll. */
static inline AVX2 __attribute__((always_inline)) void
resize_rows(const Axis *x, int size, const int groups, const uint8_t *const in[2], uint8_t *out[2])
{
    const __m256i close_up = _mm256_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1,
                                              -1, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1,
                                              -1, -1);
    const __m256i half = _mm256_set1_epi32((1 << x->shift) >> 1);
    const __m128i shift = _mm_cvtsi32_si128(x->shift);

    for (int i = 0; i < size; i += STEP) {
        __m256i sums[STEP];
        for (int k = 0; k < STEP; k++) {
            const int from = 3 * x->first[i + k];
            const int16_t *weights = x->weights + (size_t)(i + k) * groups * TAPS;
            sums[k] = pixel(in[0] + from, in[1] + from, weights, groups, half, shift);
        }
        const __m256i done = _mm256_shuffle_epi8(
            _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                                _mm256_packs_epi32(sums[2], sums[3])),
            close_up);
        _mm_storeu_si128((void *)(out[0] + 3 * i), _mm256_castsi256_si128(done));
        _mm_storeu_si128((void *)(out[1] + 3 * i), _mm256_extracti128_si256(done, 1));
    }
}

/* One output row from rows that are resized already; `rows` has an even number, as `weights`. */
static inline AVX2 __attribute__((always_inline)) void
resize_columns(const uint8_t *const *rows, const int16_t *weights, const int count, int shift,
               uint8_t *out, int bytes)
{
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32((1 << shift) >> 1);
    const __m128i by = _mm_cvtsi32_si128(shift);

    for (int at = 0; at < bytes; at += 32) {
        __m256i sums[4] = {half, half, half, half};
        for (int k = 0; k < count; k += 2) {
            const __m256i w = pair_of_weights(weights + k);
            const __m256i a = _mm256_loadu_si256((const void *)(rows[k] + at));
            const __m256i b = _mm256_loadu_si256((const void *)(rows[k + 1] + at));
            const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
            const __m256i mixed[4] = {
                _mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
                _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero)};
            for (int i = 0; i < 4; i++)
                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(mixed[i], w));
        }
        for (int i = 0; i < 4; i++)
            sums[i] = _mm256_sra_epi32(sums[i], by);
        const __m256i done = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                                                 _mm256_packs_epi32(sums[2], sums[3]));
        if (at + 32 <= bytes) {
            _mm256_storeu_si256((void *)(out + at), done);
        } else {
            uint8_t rest[32];
            _mm256_storeu_si256((void *)rest, done);
            memcpy(out + at, rest, bytes - at);
        }
    }
}

typedef struct {
    const uint8_t *image; /* the crop's first pixel */
    Py_ssize_t stride, room; /* bytes of a row of the image; from that pixel to the image's end */
    int height, width;
} Crop;

static AVX2 int resize(const Crop *crop, uint8_t *out, int height, int width, int flip, int cubic)
{
    Axis x = {0}, y = {0};
    if (plan_axis(&x, crop->width, width, cubic, flip))
        return -1;
    if (plan_axis(&y, crop->height, height, cubic, 0)) {
        free_axis(&x);
        return -1;
    }
    const int taps = y.groups * TAPS, slots = y.most + 2, bytes = 3 * width;
    const size_t read = 3 * (size_t)(crop->width + x.groups * TAPS) + SLACK, kept = bytes + SLACK;
    uint8_t *memory = malloc(2 * read + slots * kept);
    const uint8_t **rows = malloc(taps * sizeof *rows);
    const int failed = !memory || !rows;

    for (int i = 0, done = 0; i < height && !failed; i++) {
        for (; done < y.first[i] + y.count[i]; done += 2) {
            const uint8_t *in[2];
            uint8_t *to[2];
            for (int k = 0; k < 2; k++) {
                const int row = done + k < crop->height ? done + k : crop->height - 1;
                in[k] = crop->image + row * crop->stride;
                /* At the image's end a load would pass it. */
                if (row * crop->stride + (Py_ssize_t)read > crop->room)
                    in[k] = memcpy(memory + k * read, in[k], 3 * (size_t)crop->width);
                to[k] = memory + 2 * read + (size_t)((done + k) % slots) * kept;
            }
            if (x.groups == 1)
                resize_rows(&x, width, 1, in, to);
            else if (x.groups == 2)
                resize_rows(&x, width, 2, in, to);
            else
                resize_rows(&x, width, x.groups, in, to);
        }
        const int even = y.count[i] + y.count[i] % 2;
        for (int k = 0; k < even; k++) /* a row that is not there weighs nothing */
            rows[k] = memory + 2 * read +
                      (size_t)((y.first[i] + (k < y.count[i] ? k : 0)) % slots) * kept;
        const int16_t *weights = y.weights + (size_t)i * taps;
        if (even == 2)
            resize_columns(rows, weights, 2, y.shift, out, bytes);
        else if (even == 4)
            resize_columns(rows, weights, 4, y.shift, out, bytes);
        else
            resize_columns(rows, weights, even, y.shift, out, bytes);
        out += bytes;
    }
    free(rows);
    free(memory);
    free_axis(&x);
    free_axis(&y);
    return failed ? -1 : 0;
}

static int is_image(const Py_buffer *buffer)
{
    return buffer->ndim == 3 && buffer->itemsize == 1 && buffer->shape[2] == 3 &&
           buffer->shape[0] > 0 && buffer->shape[1] > 0 && buffer->shape[0] <= 1 << 20 &&
           buffer->shape[1] <= 1 << 20;
}

static PyObject *crop_resize(PyObject *self, PyObject *args)
{
    PyObject *from, *to;
    Py_buffer image, out;
    int top, left, flip, cubic, failed = 0;
    Crop crop;

    if (!PyArg_ParseTuple(args, "OOiiiipp", &from, &to, &top, &left, &crop.height, &crop.width,
                          &flip, &cubic))
        return NULL;
    if (PyObject_GetBuffer(from, &image, PyBUF_ND))
        return NULL;
    if (PyObject_GetBuffer(to, &out, PyBUF_ND | PyBUF_WRITABLE)) {
        PyBuffer_Release(&image);
        return NULL;
    }
    if (!is_image(&image) || !is_image(&out)) {
        PyErr_SetString(PyExc_ValueError, "images are (H, W, 3) uint8, both sides at most 2^20");
    } else if (top < 0 || left < 0 || crop.height < 1 || crop.width < 1 ||
               crop.height > image.shape[0] - top || crop.width > image.shape[1] - left) {
        PyErr_Format(PyExc_ValueError,
                     "a crop of %d x %d pixels at row %d, column %d is not inside an image of %zd "
                     "x %zd",
                     crop.height, crop.width, top, left, image.shape[0], image.shape[1]);
    } else {
        crop.stride = 3 * image.shape[1];
        crop.room = image.len - top * crop.stride - 3 * left;
        crop.image = (const uint8_t *)image.buf + (image.len - crop.room);
        Py_BEGIN_ALLOW_THREADS
        failed = resize(&crop, out.buf, (int)out.shape[0], (int)out.shape[1], flip, cubic);
        Py_END_ALLOW_THREADS
        if (failed)
            PyErr_NoMemory();
    }
    PyBuffer_Release(&image);
    PyBuffer_Release(&out);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"crop_resize", crop_resize, METH_VARARGS,
     "crop_resize(image, out, top, left, height, width, flip, bicubic): writes `out`."},
    {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_crop", NULL, 0, methods};

PyMODINIT_FUNC PyInit__crop(void)
{
    if (!__builtin_cpu_supports("avx2")) {
        PyErr_SetString(PyExc_ImportError, "this processor has no AVX2");
        return NULL;
    }
    return PyModule_Create(&module);
}
