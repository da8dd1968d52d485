/*
 * gemm: multiplies two matrices in place on the device, and checks every element of the product.
 *
 * Messages are words; the buffers stay between messages:
 *   setup rows=4096 k=64 n=64 seed=7   allocates A, B and C, 64-aligned; fills A and B with
 *                                      pseudo-random values in [-1, 1], and C with NaN
 *   compute repeat=3                   C = A x B, this many times
 *   check                              counts the elements of C that are not the product
 *   free                               gives the buffers back
 *   rows=4096 ... repeat=3 check=1     setup, compute and check in one
 *
 * The answer is JSON: rows, k, n, bytes (of all three), a, b, c (offsets in linear memory), and
 * wrong, checked, max_error, which are 0 before the check.
 */
#include "agent.h"

#define SKEW 2240 /* C is not a power of two away from A: their rows would share cache sets */

/* What a row of a product costs, a little more than the host counts, and how much one operation may
 * cost: see compute in docs/abi.md. Parts begin at multiples of so many rows, where tensors may. */
#define ROW_WORK(k, n) ((n) * ((k) + 104) + 32 * (k) + 512)
#define MOST_WORK (((int64_t)1 << 31) - ((int64_t)1 << 28))
#define ALIGNED_ROWS 64

typedef struct {
    int64_t rows, k, n, seed, repeat, check;
} arguments_t;

/* Owns the buffers: a is f32[rows][k], b is f32[n][k] (transposed), c is f32[rows][n]. */
static struct {
    arguments_t shape;
    float *a, *b, *c;
    int64_t wrong, checked;
    double max_error;
} gemm;

static int32_t read_argument(const char *word, uint32_t nbytes, arguments_t *arguments)
{
    const struct {
        const char *key;
        int64_t low, high, *value;
    } known[] = {
        {"rows=", 1, INT32_MAX, &arguments->rows},
        {"k=", 1, INT32_MAX, &arguments->k},
        {"n=", 1, INT32_MAX, &arguments->n},
        {"seed=", INT64_MIN, INT64_MAX, &arguments->seed},
        {"repeat=", 0, INT32_MAX, &arguments->repeat},
        {"check=", 0, 1, &arguments->check},
    };
    for (uint32_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t key = (uint32_t)strlen(known[i].key);
        if (nbytes > key && memcmp(word, known[i].key, key) == 0)
            return agent_parse_int(word + key, nbytes - key, known[i].low, known[i].high,
                                   known[i].value);
    }
    return -ISTHMUS_EINVAL;
}

/* Values are whole multiples of 1/1024: exact in f16 and TF32 too, so a device that multiplies in
 * those loses nothing, and a product of 64 terms is exact in f32 whatever the order of its sum. */
static void fill(float *values, size_t count, uint64_t *random)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (float)((int32_t)(agent_random_next(random) % 2049) - 1024) / 1024;
}

/* Bytes of f32[rows][columns] with SKEW in front; 0 where a wasm32 guest cannot have so many. */
static size_t matrix_nbytes(int64_t rows, int64_t columns)
{
    uint64_t count = (uint64_t)rows * (uint64_t)columns; /* both below 2^31: no overflow */
    return count > UINT32_MAX / sizeof(float) - SKEW ? 0 : (size_t)count * sizeof(float) + SKEW;
}

static char *allocate(int64_t rows, int64_t columns)
{
    size_t nbytes = matrix_nbytes(rows, columns);
    return nbytes ? pages_take(nbytes) : NULL;
}

static void release(void)
{
    const arguments_t *shape = &gemm.shape;
    pages_give(gemm.a, matrix_nbytes(shape->rows, shape->k));
    pages_give(gemm.b, matrix_nbytes(shape->n, shape->k));
    if (gemm.c)
        pages_give((char *)gemm.c - SKEW, matrix_nbytes(shape->rows, shape->n));
    memset(&gemm, 0, sizeof gemm);
}

static int32_t setup(const arguments_t *arguments)
{
    uint64_t random = (uint64_t)arguments->seed;
    release();
    gemm.shape = *arguments;
    gemm.a = (float *)allocate(arguments->rows, arguments->k);
    gemm.b = gemm.a ? (float *)allocate(arguments->n, arguments->k) : NULL;
    char *room = gemm.b ? allocate(arguments->rows, arguments->n) : NULL;
    if (!room) {
        release();
        return -ISTHMUS_ENOMEM;
    }
    gemm.c = (float *)(room + SKEW);
    fill(gemm.a, (size_t)(arguments->rows * arguments->k), &random);
    fill(gemm.b, (size_t)(arguments->n * arguments->k), &random);
    for (size_t i = 0; i < (size_t)(arguments->rows * arguments->n); i++)
        gemm.c[i] = __builtin_nanf("");
    return 0;
}

static isthmus_tensor_t matrix(const float *data, int64_t columns, int64_t rows)
{
    return (isthmus_tensor_t){
        .dtype = ISTHMUS_DTYPE_F32,
        .data = ISTHMUS_PTR(data),
        .ne = {(uint32_t)columns, (uint32_t)rows, 1, 1},
    };
}

/* The product of some of A's rows: the whole may be more than one operation is allowed to cost. */
static int32_t compute_rows(int64_t first, int64_t rows)
{
    isthmus_tensor_t a = matrix(gemm.a + first * gemm.shape.k, gemm.shape.k, rows);
    isthmus_tensor_t b = matrix(gemm.b, gemm.shape.k, gemm.shape.n);
    isthmus_tensor_t c = matrix(gemm.c + first * gemm.shape.n, gemm.shape.n, rows);
    isthmus_operation_t product = {
        .op = ISTHMUS_OP_MATMUL,
        .dst = ISTHMUS_PTR(&c),
        .src0 = ISTHMUS_PTR(&b),
        .src1 = ISTHMUS_PTR(&a),
    };
    return isthmus_compute(&product, 1);
}

static int32_t compute(int64_t repeat)
{
    if (!gemm.c)
        return -ISTHMUS_EINVAL;
    const arguments_t *shape = &gemm.shape;
    int64_t most = MOST_WORK / ROW_WORK(shape->k, shape->n) / ALIGNED_ROWS * ALIGNED_ROWS;
    if (most < ALIGNED_ROWS)
        most = ALIGNED_ROWS;
    while (repeat-- > 0)
        for (int64_t first = 0; first < shape->rows; first += most) {
            int64_t left = shape->rows - first;
            AGENT_TRY(compute_rows(first, left < most ? left : most));
        }
    return 0;
}

/* The sum of a[i] * b[i] in f64: each product is exact there. */
static double dot(const float *a, const float *b, size_t k)
{
    v128_t sums[2] = {wasm_f64x2_splat(0), wasm_f64x2_splat(0)};
    size_t i = 0;
    for (; i + 4 <= k; i += 4) {
        v128_t x = wasm_v128_load(a + i), y = wasm_v128_load(b + i);
        v128_t low = wasm_f64x2_mul(wasm_f64x2_promote_low_f32x4(x),
                                    wasm_f64x2_promote_low_f32x4(y));
        x = wasm_i64x2_shuffle(x, x, 1, 1);
        y = wasm_i64x2_shuffle(y, y, 1, 1);
        v128_t high = wasm_f64x2_mul(wasm_f64x2_promote_low_f32x4(x),
                                     wasm_f64x2_promote_low_f32x4(y));
        sums[0] = wasm_f64x2_add(sums[0], low);
        sums[1] = wasm_f64x2_add(sums[1], high);
    }
    v128_t sum = wasm_f64x2_add(sums[0], sums[1]);
    double result = wasm_f64x2_extract_lane(sum, 0) + wasm_f64x2_extract_lane(sum, 1);
    for (; i < k; i++)
        result += (double)a[i] * b[i];
    return result;
}

/*
 * Compares every element of C with its own product in f64. An f32 sum of k terms of random sign
 * wanders to about sqrt(k) / 3, and each of its k additions rounds by at most 2^-24 of that, in
 * either direction: together about k * 2e-8, far below the tolerance at any k. A misplaced or
 * missing term is wrong by about 1/3, far above it up to a k of a million.
 */
static int32_t check(void)
{
    if (!gemm.c)
        return -ISTHMUS_EINVAL;
    size_t rows = (size_t)gemm.shape.rows, k = (size_t)gemm.shape.k, n = (size_t)gemm.shape.n;
    gemm.wrong = gemm.checked = 0;
    gemm.max_error = 0;
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < n; column++) {
            double expected = dot(gemm.a + row * k, gemm.b + column * k, k);
            double error = __builtin_fabs(gemm.c[row * n + column] - expected);
            double tolerance = 1e-4 * (1 + __builtin_fabs(expected)) * (1 + (double)k / 1024);
            gemm.wrong += !(error <= tolerance); /* NaN is wrong */
            if (gemm.max_error == gemm.max_error && !(error <= gemm.max_error))
                gemm.max_error = error; /* a NaN stays */
            gemm.checked++;
        }
    return 0;
}

static int32_t answer(void)
{
    AGENT_TEXT_FREED agent_text_t text = {0};
    const arguments_t *shape = &gemm.shape;
    int64_t nbytes = 4 * (shape->rows * shape->k + shape->n * shape->k + shape->rows * shape->n);
    const struct {
        const char *key;
        int64_t value;
    } fields[] = {
        {"{\"rows\":", shape->rows},      {",\"k\":", shape->k},
        {",\"n\":", shape->n},            {",\"bytes\":", nbytes},
        {",\"a\":", ISTHMUS_PTR(gemm.a)}, {",\"b\":", ISTHMUS_PTR(gemm.b)},
        {",\"c\":", ISTHMUS_PTR(gemm.c)}, {",\"wrong\":", gemm.wrong},
        {",\"checked\":", gemm.checked},
    };
    for (uint32_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        agent_text_append_string(&text, fields[i].key);
        agent_text_append_int(&text, fields[i].value);
    }
    agent_text_append_string(&text, ",\"max_error\":");
    agent_text_append_float(&text, gemm.max_error);
    agent_text_append_string(&text, "}");
    return agent_reply_text(&text);
}

static int32_t run(const char *verb, uint32_t nbytes, const arguments_t *arguments)
{
    if (agent_equals(verb, nbytes, "setup"))
        return setup(arguments);
    if (agent_equals(verb, nbytes, "compute"))
        return compute(arguments->repeat);
    if (agent_equals(verb, nbytes, "check"))
        return check();
    if (agent_equals(verb, nbytes, "free")) {
        release();
        return 0;
    }
    if (nbytes)
        return -ISTHMUS_EINVAL;
    AGENT_TRY(setup(arguments));
    AGENT_TRY(compute(arguments->repeat));
    return arguments->check ? check() : 0;
}

__attribute__((export_name("on_message"))) int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TRY(agent_message(nbytes, &message));
    arguments_t arguments = {.rows = 4096, .k = 64, .n = 64, .seed = 7, .repeat = 1, .check = 1};
    const char *cursor = message, *word, *verb = NULL;
    uint32_t verb_nbytes = 0, word_nbytes;
    while ((word_nbytes = agent_word(&cursor, &word)) > 0) {
        if (!verb && !memchr(word, '=', word_nbytes)) {
            verb = word;
            verb_nbytes = word_nbytes;
        } else {
            AGENT_TRY(read_argument(word, word_nbytes, &arguments));
        }
    }
    AGENT_TRY(run(verb, verb_nbytes, &arguments));
    return answer();
}
