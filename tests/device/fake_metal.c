// A GPU of Apple's without a Mac: a ggml backend `MTL` that has Metal's rules and the processor's
// kernels. Linked with a ggml library, it is loaded in its place, and breaks off loudly:
//
//   a buffer without a copy     whole pages of 16 KiB, of one mapping, at most maxBufferLength
//   its memory                  stays mapped until the buffer is freed, and as it is during a command
//   a command                   runs on a thread of its own, after those before it; nobody else
//                               touches or frees what it works in
//   a tensor                    lies in one buffer, with what its kernel needs behind it
//
// Sources: Apple, `makeBuffer(bytesNoCopy:length:options:deallocator:)`, `maxBufferLength`,
// `makeCommandBufferWithUnretainedReferences()`; ggml 0.26, `ggml-backend-impl.h`,
// `ggml-metal.cpp`, `ggml-metal-device.m`, whose way to answer a refusal is kept too.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// ------------------------------------------------------------------ ggml's interface of backends

typedef struct Tensor {
  int type;
  struct Buffer *buffer;
  int64_t ne[4];
  size_t nb[4];
  int op;
  int32_t op_params[16], flags;
  struct Tensor *src[10], *view_src;
  size_t view_offset;
  char *data, name[64];
  void *extra;
  char padding[8];
} Tensor;
typedef struct Device Device;
typedef struct BufferType BufferType;
typedef struct Buffer Buffer;
typedef struct Backend Backend;
typedef struct Registry Registry;
typedef struct { Device *device; void *context; } Event;
typedef void Unused(void);
struct BufferType {
  const char *(*get_name)(BufferType *);
  Buffer *(*alloc_buffer)(BufferType *, size_t);
  Unused *alloc_buffer_n;
  size_t (*get_alignment)(BufferType *), (*get_max_size)(BufferType *);
  size_t (*get_alloc_size)(BufferType *, const Tensor *);
  Unused *get_alloc_size_n;
  bool (*is_host)(BufferType *);
  Device *device;
  void *context;
};
typedef struct {
  void (*free_buffer)(Buffer *);
  void *(*get_base)(Buffer *);
  Unused *init_tensor;
  void (*memset_tensor)(Buffer *, Tensor *, uint8_t, size_t, size_t);
  void (*set_tensor)(Buffer *, Tensor *, const void *, size_t, size_t);
  void (*get_tensor)(Buffer *, const Tensor *, void *, size_t, size_t);
  Unused *set_tensor_2d, *get_tensor_2d;
  bool (*cpy_tensor)(Buffer *, const Tensor *, Tensor *);
  void (*clear)(Buffer *, uint8_t);
  Unused *reset;
} BufferCalls;
struct Buffer {
  BufferCalls calls;
  BufferType *type;
  struct Memory *memory;
  size_t nbytes;
  int usage;
};
struct Backend {
  const uint8_t *guid;
  const char *(*get_name)(Backend *);
  void (*free)(Backend *);
  void (*set_tensor_async)(Backend *, Tensor *, const void *, size_t, size_t);
  void (*get_tensor_async)(Backend *, const Tensor *, void *, size_t, size_t);
  Unused *set_tensor_2d_async, *get_tensor_2d_async, *cpy_tensor_async;
  void (*synchronize)(Backend *);
  Unused *plan_create, *plan_free, *plan_update, *plan_compute;
  int (*graph_compute)(Backend *, void *);
  void (*event_record)(Backend *, Event *), (*event_wait)(Backend *, Event *);
  Unused *graph_optimize;
  Device *device;
  uintptr_t last;  // the number of its last command
};
typedef struct {
  const char *name, *description;
  size_t memory_free, memory_total;
  int type;
  const char *device_id;
  bool async, host_buffer, buffer_from_host_ptr, events, mmap_support;
} Props;
struct Device {
  const char *(*get_name)(Device *), *(*get_description)(Device *);
  void (*get_memory)(Device *, size_t *, size_t *);
  int (*get_type)(Device *);
  void (*get_props)(Device *, Props *);
  Backend *(*init_backend)(Device *, const char *);
  BufferType *(*get_buffer_type)(Device *), *(*get_host_buffer_type)(Device *);
  Buffer *(*buffer_from_host_ptr)(Device *, void *, size_t, size_t);
  bool (*supports_op)(Device *, const Tensor *), (*supports_buft)(Device *, BufferType *);
  bool (*offload_op)(Device *, const Tensor *);
  Event *(*event_new)(Device *);
  void (*event_free)(Device *, Event *), (*event_synchronize)(Device *, Event *);
  Registry *registry;
  void *context;
};
struct Registry {
  int api_version;
  const char *(*get_name)(Registry *);
  size_t (*get_device_count)(Registry *);
  Device *(*get_device)(Registry *, size_t);
  void *(*get_proc_address)(Registry *, const char *);
  void *context;
};
enum { API_VERSION = 2, CPU = 0, GPU = 1, LOG_ERROR = 4 };
struct InitParams { size_t nbytes; void *memory; bool no_alloc; };

extern const char *ggml_version(void);
extern void ggml_backend_register(Registry *);
extern Device *ggml_backend_dev_by_type(int);
extern Backend *ggml_backend_dev_init(Device *, const char *);
extern bool ggml_backend_dev_supports_op(Device *, const Tensor *);
extern int ggml_backend_graph_compute(Backend *, void *);
extern void *ggml_backend_reg_get_proc_address(Registry *, const char *);
extern Buffer *ggml_backend_buffer_init(BufferType *, BufferCalls, struct Memory *, size_t);
extern int ggml_graph_n_nodes(void *);
extern Tensor *ggml_graph_node(void *, int);
extern size_t ggml_nbytes(const Tensor *), ggml_graph_overhead_custom(size_t, bool);
extern int64_t ggml_nelements(const Tensor *);
extern const char *ggml_op_desc(const Tensor *), *ggml_type_name(int);
extern void *ggml_init(struct InitParams), *ggml_new_graph_custom(void *, size_t, bool);
extern void ggml_free(void *), ggml_graph_add_node(void *, Tensor *);
extern void ggml_log_internal(int, const char *, ...);

// ------------------------------------------------------------------ rules

#define BREACH(...) (fprintf(stderr, "metal: breach: " __VA_ARGS__), fputc('\n', stderr), abort())
enum { PAGE = 16384, EXTRA = 4096, ALIGNMENT = 32, LATE_US = 300 };

typedef struct Memory {  // what a buffer of Metal's is over
  uintptr_t begin, end;
  int n_commands;
  bool owned;
  struct Memory *next;
} Memory;
typedef struct Command {
  uintptr_t number;
  void *context, *graph;     // a graph, or
  char *target, *source;     // bytes to copy
  size_t nbytes;
  bool copied;
  Tensor *tensors;
  Memory **memories;
  int n_memories;
  struct Command *next;
} Command;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Memory *memories;
static Command *first, **last = &first;
static uintptr_t n_submitted, n_done;
static size_t longest, most, taken;  // maxBufferLength; memory of all buffers, and what they have
static Device device;
static BufferType own_type, mapped_type;
static const char *(*why_not_one)(uintptr_t, uintptr_t);

static size_t setting(const char *name, size_t otherwise) {
  const char *text = getenv(name);
  return text ? strtoull(text, NULL, 10) : otherwise;
}

static void on_change(uintptr_t begin, uintptr_t end, const char *what) {
  pthread_mutex_lock(&lock);
  for (Memory *it = memories; it; it = it->next) {
    if (it->begin >= end || begin >= it->end) continue;
    if (it->n_commands) BREACH("memory was %s while a command works in it", what);
    if (strcmp(what, "protected") != 0) BREACH("memory was %s under a buffer that was not freed", what);
  }
  pthread_mutex_unlock(&lock);
}

static Memory *new_memory(uintptr_t begin, size_t nbytes, bool owned) {
  const char *why = why_not_one(begin, begin + nbytes);
  if (begin % PAGE || nbytes % PAGE)
    BREACH("a buffer of %zu bytes at %#zx: these are not whole pages of 16 KiB", nbytes, begin);
  if (nbytes > longest) BREACH("a buffer of %zu bytes: maxBufferLength is %zu", nbytes, longest);
  if (!nbytes || why) BREACH("a buffer over %zu bytes that %s", nbytes, nbytes ? why : "are none");
  pthread_mutex_lock(&lock);
  Memory *new = NULL;
  if (taken + nbytes <= most) {
    new = malloc(sizeof(Memory));
    *new = (Memory){begin, begin + nbytes, 0, owned, memories};
    memories = new;
    taken += nbytes;
  }
  pthread_mutex_unlock(&lock);
  return new;
}

static void be_idle(Buffer *buffer, const char *what) {
  pthread_mutex_lock(&lock);
  if (buffer->memory->n_commands) BREACH("a buffer was %s while a command works in it", what);
  pthread_mutex_unlock(&lock);
}

static Memory *memory_of(const Tensor *tensor);

static size_t behind(const Tensor *tensor) {  // bytes that the operation's kernel writes after its result
  const char *op = ggml_op_desc(tensor);
  if (!strcmp(op, "FLASH_ATTN_EXT") || !strcmp(op, "MUL_MAT_ID")) return EXTRA;
  if (!strcmp(op, "ARGSORT") || !strcmp(op, "CUMSUM")) return ggml_nbytes(tensor);
  if (!strcmp(op, "TOP_K")) return 8 * ggml_nelements(tensor->src[0]) - ggml_nbytes(tensor);
  return 0;
}

static bool is_view(const Tensor *tensor) {
  static const char *names[] = {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"};
  for (int i = 0; i < 5; i++)
    if (!strcmp(ggml_op_desc(tensor), names[i])) return true;
  return false;
}

static void check_place(const Tensor *tensor, size_t more) {
  Memory *memory = memory_of(tensor);
  uintptr_t begin = (uintptr_t)tensor->data, end = begin + ggml_nbytes(tensor) + more;
  if (!memory) BREACH("the tensor '%s' (%s) is in no buffer", tensor->name, ggml_op_desc(tensor));
  if (begin < memory->begin || end > memory->end)
    BREACH("the tensor '%s' (%s) does not lie in its buffer", tensor->name, ggml_op_desc(tensor));
}

// ------------------------------------------------------------------ buffers

static void free_buffer(Buffer *buffer) {
  Memory *memory = buffer->memory, **at = &memories;
  be_idle(buffer, "freed");
  pthread_mutex_lock(&lock);
  while (*at != memory) at = &(*at)->next;
  *at = memory->next;
  taken -= memory->end - memory->begin;
  pthread_mutex_unlock(&lock);
  if (memory->owned) munmap((void *)memory->begin, memory->end - memory->begin);
  free(memory);
}
static void *get_base(Buffer *buffer) {
  if (!buffer->memory) BREACH("a buffer was used that Metal did not make");
  return (void *)buffer->memory->begin;
}
static void memset_tensor(Buffer *buffer, Tensor *tensor, uint8_t value, size_t offset, size_t nbytes) {
  be_idle(buffer, "written to");
  memset(tensor->data + offset, value, nbytes);
}
static void set_tensor(Buffer *buffer, Tensor *tensor, const void *data, size_t offset, size_t nbytes) {
  be_idle(buffer, "written to");
  memcpy(tensor->data + offset, data, nbytes);
}
static void get_tensor(Buffer *buffer, const Tensor *tensor, void *data, size_t offset, size_t nbytes) {
  be_idle(buffer, "read");
  memcpy(data, tensor->data + offset, nbytes);
}
static bool cpy_tensor(Buffer *buffer, const Tensor *source, Tensor *target) {
  if (source->buffer->calls.free_buffer != free_buffer) return false;
  be_idle(buffer, "written to"), be_idle(source->buffer, "read");
  memcpy(target->data, source->data, ggml_nbytes(source));
  return true;
}
static void clear(Buffer *buffer, uint8_t value) {
  be_idle(buffer, "written to");
  memset((void *)buffer->memory->begin, value, buffer->nbytes);
}
static const BufferCalls buffer_calls = {
  .free_buffer = free_buffer, .get_base = get_base, .memset_tensor = memset_tensor, .set_tensor = set_tensor,
  .get_tensor = get_tensor, .cpy_tensor = cpy_tensor, .clear = clear};

static Memory *memory_of(const Tensor *tensor) {
  Buffer *buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
  return buffer && buffer->calls.free_buffer == free_buffer ? buffer->memory : NULL;
}

static const char *type_name(BufferType *type) { return type == &own_type ? "MTL0" : "MTL0_Mapped"; }
static Buffer *alloc_buffer(BufferType *type, size_t nbytes) {
  size_t whole = (nbytes + PAGE - 1) / PAGE * PAGE;
  if (whole > longest || taken + whole > most) {
    ggml_log_internal(LOG_ERROR, "metal: error: failed to allocate buffer, size = %8.2f MiB\n", nbytes / 1048576.0);
    return NULL;
  }
  void *at = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return NULL;
  memset(at, 0xa5, whole);  // its contents are undefined
  return ggml_backend_buffer_init(type, buffer_calls, new_memory((uintptr_t)at, whole, true), nbytes);
}
static size_t get_alignment(BufferType *type) { return ALIGNMENT; }
static size_t get_max_size(BufferType *type) { return longest; }
static size_t get_alloc_size(BufferType *type, const Tensor *tensor) { return ggml_nbytes(tensor) + behind(tensor); }
static bool is_host(BufferType *type) { return false; }

// ggml rounds to whole pages, and libllama relies on it; all others mean what they say.
static Buffer *buffer_from_host_ptr(Device *it, void *at, size_t nbytes, size_t longest_tensor) {
  Dl_info caller;
  if (dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "llama")) {
    size_t before = (uintptr_t)at % PAGE;
    at = (char *)at - before, nbytes = (nbytes + before + PAGE - 1) / PAGE * PAGE;
  }
  Memory *memory = new_memory((uintptr_t)at, nbytes, false);
  if (!memory) ggml_log_internal(LOG_ERROR, "metal: error: failed to allocate buffer, size = %8.2f MiB\n", nbytes / 1048576.0);
  return ggml_backend_buffer_init(&mapped_type, buffer_calls, memory, nbytes);  // as ggml does, also without
}

// ------------------------------------------------------------------ commands

static void wait_for(uintptr_t number) {
  pthread_mutex_lock(&lock);
  while (n_done < number) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
}

static void compute(Backend *processor, void *graph, int begin, int end) {
  void *context = ggml_init((struct InitParams){ggml_graph_overhead_custom(end, false) + 4096, NULL, true});
  void *part = ggml_new_graph_custom(context, end, false);
  for (int i = begin; i < end; i++) ggml_graph_add_node(part, ggml_graph_node(graph, i));
  if (begin < end && ggml_backend_graph_compute(processor, part) != 0) BREACH("the processor failed");
  ggml_free(context);
}

static void run(Backend *processor, Command *it) {
  int n = it->graph ? ggml_graph_n_nodes(it->graph) : 0, begun = 0;
  usleep(LATE_US);  // whoever does not wait is early
  if (it->target) memcpy(it->target, it->source, it->nbytes);
  for (int i = 0; i < n; i++) {
    Tensor *node = ggml_graph_node(it->graph, i);
    size_t more = behind(node);
    if (!more) continue;
    compute(processor, it->graph, begun, i);
    memset(node->data + ggml_nbytes(node), 0xa5, more);
    begun = i;
  }
  compute(processor, it->graph, begun, n);
}

static void *work(void *nothing) {
  Backend *processor = ggml_backend_dev_init(ggml_backend_dev_by_type(CPU), NULL);
  Registry *registry = ggml_backend_dev_by_type(CPU)->registry;
  ((void (*)(Backend *, int))ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"))(processor, 1);
  for (;;) {
    pthread_mutex_lock(&lock);
    while (!first) pthread_cond_wait(&changed, &lock);
    Command *it = first;
    pthread_mutex_unlock(&lock);
    run(processor, it);
    pthread_mutex_lock(&lock);
    if (!(first = it->next)) last = &first;
    for (int i = 0; i < it->n_memories; i++) it->memories[i]->n_commands--;
    n_done = it->number;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    if (it->context) ggml_free(it->context);
    if (it->copied) free(it->source);
    free(it->tensors), free(it->memories), free(it);
  }
}

static void submit(Backend *backend, Command *it) {
  static bool started;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < it->n_memories; i++) it->memories[i]->n_commands++;
  backend->last = it->number = ++n_submitted;
  *last = it, last = &it->next;
  pthread_t thread;
  if (!started) started = !pthread_create(&thread, NULL, work, NULL);
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}

static void use(Command *it, Memory *memory) {
  for (int i = 0; i < it->n_memories; i++)
    if (it->memories[i] == memory) return;
  it->memories = realloc(it->memories, (it->n_memories + 1) * sizeof(Memory *));
  it->memories[it->n_memories++] = memory;
}

typedef struct { const Tensor *from; Tensor *to; } Pair;
static Pair *find(Pair *pairs, size_t n, const Tensor *tensor) {
  size_t at = ((uintptr_t)tensor >> 4) * 0x9e3779b97f4a7c15u % n;
  while (pairs[at].from && pairs[at].from != tensor) at = (at + 1) % n;
  return &pairs[at];
}
static Tensor *encoded(Command *it, Pair *pairs, size_t n, int *count, const Tensor *tensor) {
  Pair *pair = find(pairs, n, tensor);
  if (!pair->from) {
    *pair = (Pair){tensor, &it->tensors[(*count)++]};
    *pair->to = *tensor;
    memset(pair->to->src, 0, sizeof tensor->src);
  }
  return pair->to;
}

// Metal encodes a graph when it is submitted: what becomes of its tensors afterwards is of no interest.
static int graph_compute(Backend *backend, void *graph) {
  int n = ggml_graph_n_nodes(graph), count = 0;
  size_t n_pairs = (size_t)n * 24 + 1;
  if (!n) return 0;
  Command *it = calloc(1, sizeof(Command));
  Pair *pairs = calloc(n_pairs, sizeof(Pair));
  it->tensors = calloc((size_t)n * 11, sizeof(Tensor));
  it->context = ggml_init((struct InitParams){ggml_graph_overhead_custom(n, false) + 4096, NULL, true});
  it->graph = ggml_new_graph_custom(it->context, n, false);
  for (int i = 0; i < n; i++) {
    Tensor *node = ggml_graph_node(graph, i), *copy = encoded(it, pairs, n_pairs, &count, node);
    bool computes = !is_view(node) && ggml_nelements(node);
    for (int j = 0; j < 10; j++) {
      if (!node->src[j]) continue;
      copy->src[j] = encoded(it, pairs, n_pairs, &count, node->src[j]);
      if (computes) check_place(node->src[j], 0), use(it, memory_of(node->src[j]));
    }
    if (computes) check_place(node, behind(node)), use(it, memory_of(node));
    ggml_graph_add_node(it->graph, copy);
  }
  free(pairs);
  submit(backend, it);
  return 0;
}

static void copy_later(Backend *backend, const Tensor *tensor, char *target, char *source, size_t nbytes, bool copied) {
  Command *it = calloc(1, sizeof(Command));
  *it = (Command){.target = target, .source = source, .nbytes = nbytes, .copied = copied};
  check_place(tensor, 0);
  use(it, memory_of(tensor));
  submit(backend, it);
}
static void set_tensor_async(Backend *backend, Tensor *tensor, const void *data, size_t offset, size_t nbytes) {
  void *copy = memcpy(malloc(nbytes), data, nbytes);
  copy_later(backend, tensor, tensor->data + offset, copy, nbytes, true);
}
static void get_tensor_async(Backend *backend, const Tensor *tensor, void *data, size_t offset, size_t nbytes) {
  copy_later(backend, tensor, data, tensor->data + offset, nbytes, false);
}
static const char *backend_name(Backend *backend) { return "MTL0"; }
static void synchronize(Backend *backend) { wait_for(backend->last); }
static void free_backend(Backend *backend) { synchronize(backend), free(backend); }
static void event_record(Backend *backend, Event *event) { event->context = (void *)backend->last; }
static void event_wait(Backend *backend, Event *event) {}  // one queue: what came before is done before

// ------------------------------------------------------------------ the device

static const char *device_name(Device *it) { return "MTL0"; }
static const char *device_description(Device *it) { return "a stand-in for a GPU of Apple's"; }
static void get_memory(Device *it, size_t *left, size_t *total) { *total = most, *left = most - taken; }
static int get_type(Device *it) { return GPU; }
static void get_props(Device *it, Props *props) {
  *props = (Props){.name = "MTL0", .description = device_description(it), .type = GPU, .async = true,
                   .buffer_from_host_ptr = true, .events = true, .mmap_support = true};
  get_memory(it, &props->memory_free, &props->memory_total);
}
static Backend *init_backend(Device *it, const char *params) {
  static const uint8_t guid[16] = "isthmus, no mac";
  Backend *new = calloc(1, sizeof(Backend));
  *new = (Backend){.guid = guid, .get_name = backend_name, .free = free_backend, .set_tensor_async = set_tensor_async,
                   .get_tensor_async = get_tensor_async, .synchronize = synchronize, .graph_compute = graph_compute,
                   .event_record = event_record, .event_wait = event_wait, .device = it};
  return new;
}
static BufferType *get_buffer_type(Device *it) { return &own_type; }
static bool supports_op(Device *it, const Tensor *tensor) {
  static const int head_sizes[] = {32, 40, 48, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576};
  if (!strcmp(ggml_op_desc(tensor), "FLASH_ATTN_EXT")) {
    bool known = tensor->src[1]->type == tensor->src[2]->type && tensor->src[1]->ne[0] >= tensor->src[2]->ne[0];
    bool of_size = false;
    for (int i = 0; i < 14; i++) of_size |= tensor->src[0]->ne[0] == head_sizes[i];
    if (!known || !of_size) return false;
  }
  return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(CPU), tensor);
}
static bool supports_buft(Device *it, BufferType *type) { return type->device == it; }
static bool offload_op(Device *it, const Tensor *tensor) { return false; }
static Event *event_new(Device *it) { return calloc(1, sizeof(Event)); }
static void event_free(Device *it, Event *event) { free(event); }
static void event_synchronize(Device *it, Event *event) { wait_for((uintptr_t)event->context); }

static const char *registry_name(Registry *it) { return "MTL"; }
static size_t device_count(Registry *it) { return setting("FAKE_METAL_DEVICES", 1); }
static Device *get_device(Registry *it, size_t index) { return &device; }
static void *get_proc_address(Registry *it, const char *name) { return NULL; }
static Registry registry = {API_VERSION, registry_name, device_count, get_device, get_proc_address, NULL};

__attribute__((constructor)) static void begin(void) {
  void (*watch)(void *) = dlsym(RTLD_DEFAULT, "pages_watch");
  why_not_one = dlsym(RTLD_DEFAULT, "pages_why_not_one");
  if (!watch || !why_not_one) BREACH("load fake_pages first: nobody tells what is mapped");
  if (strncmp(ggml_version(), "0.26.", 5)) BREACH("this interface is that of ggml 0.26, not %s", ggml_version());
  longest = setting("FAKE_METAL_LONGEST", (size_t)256 << 20);
  most = setting("FAKE_METAL_MEMORY", (size_t)16 << 30);
  device = (Device){device_name, device_description, get_memory, get_type, get_props, init_backend, get_buffer_type,
                    NULL, buffer_from_host_ptr, supports_op, supports_buft, offload_op, event_new, event_free,
                    event_synchronize, &registry, NULL};
  own_type = (BufferType){.get_name = type_name, .alloc_buffer = alloc_buffer, .get_alignment = get_alignment,
                          .get_max_size = get_max_size, .get_alloc_size = get_alloc_size, .is_host = is_host,
                          .device = &device};
  mapped_type = own_type;
  watch(on_change);
  ggml_backend_register(&registry);
}
