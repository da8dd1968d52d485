// A chat by wasi-nn, as the guests that people have: MODEL [PROMPT], or one line after the other.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NN(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(#name))) uint32_t name
NN(load_by_name_with_config)(const char *, uint32_t, const char *, uint32_t, uint32_t *);
NN(init_execution_context)(uint32_t, uint32_t *);
NN(set_input)(uint32_t, uint32_t, const void *);
NN(compute)(uint32_t);
NN(compute_single)(uint32_t);
NN(fini_single)(uint32_t);
NN(get_output)(uint32_t, uint32_t, char *, uint32_t, uint32_t *);
NN(get_output_single)(uint32_t, uint32_t, char *, uint32_t, uint32_t *);
NN(unload)(uint32_t);

struct tensor {
    const uint32_t *dims;
    uint32_t n_dims;
    uint8_t type;
    const char *data;
    uint32_t nbytes;
};

static char output[24576];
static uint32_t context;

static void check(const char *what, uint32_t error) {
    if (error) {
        fprintf(stderr, "%s failed: %u\n", what, error);
        exit(1);
    }
}

static void set_prompt(const char *text) {
    const uint32_t dims[] = {1};
    const struct tensor tensor = {dims, 1, 3, text, strlen(text)};
    check("set_input", set_input(context, 0, &tensor));
}

static void show(uint32_t index) {
    uint32_t nbytes = 0;
    check("get_output", get_output(context, index, output, sizeof output, &nbytes));
    printf("%.*s\n", (int)nbytes, output);
}

static void answer(const char *text) {
    set_prompt(text);
    check("compute", compute(context));
    show(0);
}

static void stream(const char *text, int most) {
    set_prompt(text);
    show(1);
    uint32_t error = 0, nbytes = 0;
    for (int i = 0; i < most && !(error = compute_single(context)); i++) {
        check("get_output_single", get_output_single(context, 0, output, sizeof output, &nbytes));
        printf("%.*s", (int)nbytes, output);
        fflush(stdout);
    }
    if (error && error != 100 && error != 101) check("compute_single", error);
    printf("\n");
    show(1);
    check("fini_single", fini_single(context));
}

static int option(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int main(int argc, char **argv) {
    char config[256], line[4096];
    uint32_t graph;
    const int n_predict = option("n_predict", 12);
    snprintf(config, sizeof config, "{\"ctx-size\": %d, \"n-predict\": %d, \"enable-log\": true}",
             option("ctx_size", 256), n_predict);
    const char *name = argc > 1 ? argv[1] : "default";
    check("load", load_by_name_with_config(name, strlen(name), config, strlen(config), &graph));
    check("init_execution_context", init_execution_context(graph, &context));
    if (argc > 2) {
        stream(argv[2], n_predict);
        answer(argv[2]);
    } else {
        while (printf("[You]:\n"), fgets(line, sizeof line, stdin)) {
            line[strcspn(line, "\n")] = 0;
            if (!*line) continue;
            printf("[Bot]:");
            answer(line);
        }
    }
    check("unload", unload(graph));
    return 0;
}
